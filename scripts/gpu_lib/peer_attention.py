"""PyTorch's forms of attention: scaled_dot_product_attention by backend, FlexAttention, flash attention over variable lengths.

A dense mask only where a rule hides something. K and V of two segments are joined beforehand, which is not counted against a form.
"""

import importlib.util
import inspect
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from gpu_lib import peer_timing
from gpu_lib.peer_timing import close, compiled, copies, median_us, near

# Rows and keys of a FlexAttention mask block, and kernel options that fit.
FLEX_BLOCKS = {
    "flex_128x64": ((128, 64), {"BLOCK_M": 128, "BLOCK_N": 64}),
    "flex_64x64": ((64, 64), {"BLOCK_M": 64, "BLOCK_N": 64}),
    "flex_128x128": ((128, 128), {}),
    "flex_256x64": ((256, 64), {"BLOCK_M": 128, "BLOCK_N": 64}),
}


def small(case):
    """The same structure with few rows and problems."""
    media = min(case["media"], 3)
    # As many heads per K/V head as before.
    kv_heads = 1 if case["kv_heads"] < case["heads"] else 2
    heads = kv_heads * (case["heads"] // case["kv_heads"])
    keys = 64 * media if media else min(case["keys"], 70)
    return dict(case, batch=2, rows=min(case["rows"], 24), heads=heads, kv_heads=kv_heads, media=media, keys=keys)


def phi(case, device):
    """For each row of text the number of its medium: media at equal distances, the first at the beginning; a single row sees the last one."""
    row = torch.arange(case["rows"], device=device)
    media = row * case["media"] // case["rows"] + 1 if case["rows"] > 1 else torch.full_like(row, case["media"])
    return media.repeat(case["batch"], 1)


def hides(case):
    """Whether some key is hidden from some row."""
    return case["media"] > 1


class Operands:
    """One copy of a case's operands, [batch, heads, rows, head_dim], over memory that the heads of a row share."""

    def __init__(self, case, device, dtype):
        def made(rows, heads):
            return torch.randn(case["batch"], rows, heads, case["head_dim"], device=device, dtype=dtype).transpose(1, 2)

        self.q = made(case["rows"], case["heads"])
        self.k = made(case["keys"], case["kv_heads"])
        self.v = made(case["keys"], case["kv_heads"])
        # Query heads of one K/V head as rows of one head, [tokens x group, kv_heads, head_dim],
        # made beforehand.
        self.packed = None

    def bytes(self):
        return sum(t.numel() * t.element_size() for t in (self.q, self.k, self.v, self.q))


def sdpa(backend):
    """A form: scaled_dot_product_attention with one backend."""

    def make(case, device, check):
        mask = None
        if hides(case):
            medium = torch.arange(case["keys"], device=device) // 64 + 1
            mask = (phi(case, device)[:, :, None] == medium).unsqueeze(1)
        grouped = case["kv_heads"] < case["heads"]
        # The CPU has two of the backends: one of them checks the operands that the others get.
        forced = SDPBackend.MATH if check and backend != SDPBackend.FLASH_ATTENTION else backend

        def run(o):
            with sdpa_kernel([forced]):
                return scaled_dot_product_attention(o.q, o.k, o.v, attn_mask=mask, enable_gqa=grouped)

        return run, {}

    return make


def flex(blocks, options):
    """A form: FlexAttention, compiled; the block mask, if the rule needs one, is made beforehand, and timed."""

    def make(case, device, check):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        mask, notes = None, {}
        if hides(case):
            media = phi(case, device)

            def visible(b, h, row, key):
                return media[b, row] == key // 64 + 1

            def made():
                return create_block_mask(visible, case["batch"], None, case["rows"], case["keys"], device=device, BLOCK_SIZE=blocks)

            mask = made()
            if not check:
                torch.cuda.synchronize()
                started = time.perf_counter()
                made()
                torch.cuda.synchronize()
                notes = {"mask_us": (time.perf_counter() - started) * 1e6}
        function = flex_attention if check else compiled(flex_attention, check, mode="default")
        grouped = case["kv_heads"] < case["heads"]
        told = {"kernel_options": options} if options and mask is not None and case["rows"] >= 128 and not check else {}
        return lambda o: function(o.q, o.k, o.v, block_mask=mask, enable_gqa=grouped, **told), notes

    return make


def lengths(case, device, group=1):
    """Cumulative rows and keys of each sequence, and the longest of either: one per run of text under the media rule, else one per problem."""
    if not case["media"]:
        rows, keys = [case["rows"]] * case["batch"], [case["keys"]] * case["batch"]
    else:
        row = torch.bincount(phi(case, "cpu")[0], minlength=case["media"] + 1)[1:].tolist()
        rows, keys = row * case["batch"], [64] * (case["media"] * case["batch"])
    rows = [group * n for n in rows]

    def summed(n):
        return torch.tensor([0, *n], device=device).cumsum(0).to(torch.int32)

    return summed(rows), summed(keys), max(rows), max(keys)


def each_sequence(q, k, v, over_rows, over_keys, *_):
    """What flash attention over variable lengths computes, sequence by sequence: shows in a check that the lengths are right."""
    rows, keys = over_rows.tolist(), over_keys.tolist()
    parts = []
    for n in range(len(rows) - 1):
        one = [t.transpose(0, 1) for t in (q[rows[n] : rows[n + 1]], k[keys[n] : keys[n + 1]], v[keys[n] : keys[n + 1]])]
        parts.append(scaled_dot_product_attention(*one, enable_gqa=True).transpose(0, 1))
    return torch.cat(parts)


def over_lengths(device):
    """Flash attention over variable lengths: of the packages flash_attn where one is installed, else PyTorch's own."""
    if device == "cpu":
        return each_sequence
    if importlib.util.find_spec("flash_attn_interface"):
        from flash_attn_interface import flash_attn_varlen_func

        return flash_attn_varlen_func
    if importlib.util.find_spec("flash_attn"):
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def tokens(t):
    return t.transpose(1, 2).flatten(0, 1)


def varlen(case, device, check):
    """A form: one sequence per run of text and its medium."""
    over = lengths(case, device)
    function = over_lengths(device)
    # Some group heads on their own, or with an option in newer versions of PyTorch.
    grouped = {"enable_gqa": True} if case["kv_heads"] < case["heads"] and "enable_gqa" in inspect.signature(function).parameters else {}

    def run(o):
        out = function(tokens(o.q), tokens(o.k), tokens(o.v), *over, **grouped)
        out = out[0] if isinstance(out, tuple) else out
        return out.unflatten(0, (case["batch"], case["rows"])).transpose(1, 2)

    return run, {}


def varlen_packed(case, device, check):
    """A form where heads share K/V: the rows of a group behind each other, so that a tile of keys serves them all. Packing is not counted."""
    group = case["heads"] // case["kv_heads"]
    over = lengths(case, device, group)
    function = over_lengths(device)

    def run(o):
        if o.packed is None:
            q = tokens(o.q).unflatten(1, (case["kv_heads"], group))
            o.packed = q.transpose(1, 2).flatten(0, 1).contiguous()
        out = function(o.packed, tokens(o.k), tokens(o.v), *over)
        return out[0] if isinstance(out, tuple) else out

    def shown(out):
        out = out.unflatten(0, (-1, group)).transpose(1, 2).flatten(1, 2)
        return out.unflatten(0, (case["batch"], case["rows"])).transpose(1, 2)

    run.shown = shown
    return run, {}


FORMS = {
    "sdpa_flash": sdpa(SDPBackend.FLASH_ATTENTION),
    "sdpa_efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION),
    "sdpa_cudnn": sdpa(SDPBackend.CUDNN_ATTENTION),
    "sdpa_math": sdpa(SDPBackend.MATH),
    "varlen": varlen,
    "varlen_packed": varlen_packed,
    # Where nothing is hidden there is no mask.
    "flex": flex(None, {}),
    **{name: flex(*form) for name, form in FLEX_BLOCKS.items()},
}


def exact(case, operands, rows):
    """Some rows of the result in f64, with the rule written again: a row sees the 64 keys of the medium that stands at or before it."""
    group = case["heads"] // case["kv_heads"]
    results = []
    for row in rows:
        at = slice(0, case["keys"])
        if case["media"]:
            # Media are at equal distances; a decode step comes after all of them.
            medium = case["media"] - 1 if case["rows"] == 1 else row * case["media"] // case["rows"]
            at = slice(64 * medium, 64 * medium + 64)
        q = operands.q[:, :, row].to(torch.float64)
        k, v = (t[:, :, at].to(torch.float64).repeat_interleave(group, dim=1) for t in (operands.k, operands.v))
        scores = torch.einsum("bhd,bhkd->bhk", q, k) / case["head_dim"] ** 0.5
        results.append(torch.einsum("bhk,bhkd->bhd", scores.softmax(-1), v))
    return torch.stack(results, 2)


def measure(case, form, check):
    """Microseconds of a form, or None of one that was checked and is right; and what is noted beside it."""
    device, dtype = peer_timing.where(check)
    case = small(case) if check else case
    torch.manual_seed(1)
    run, notes = FORMS[form](case, device, check)
    first = Operands(case, device, dtype)
    shown = getattr(run, "shown", lambda out: out)(run(first))
    if check:
        close(shown, exact(case, first, range(case["rows"])))
        return None, notes
    some = sorted({0, case["rows"] // 3, case["rows"] // 2, case["rows"] - 1})
    near(shown[:, :, some], exact(case, first, some))
    operands = copies(lambda: Operands(case, device, dtype), first, first.bytes())
    for one in operands:
        run(one)
    return median_us(run, operands), notes
