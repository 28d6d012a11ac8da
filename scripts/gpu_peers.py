"""PyTorch's counterparts of the cases that `scripts/gpu bench` times, timed the same way: in a captured graph, cold, the median of 20 replays.

    python scripts/gpu_peers.py --out peers.json [--filter TEXT] [--seconds N]
    python scripts/gpu_peers.py --out peers.json --check      on a processor: small shapes, values compared, no time told

Attention: scaled_dot_product_attention with each backend forced and a dense mask where a rule needs one; FlexAttention with a block mask, whose
making is timed apart; flash attention over variable lengths, under the media rule with one sequence per run of text and its medium. Blocks:
public modules under torch.compile. A backend that refuses a case is listed with its reason. K and V of two segments are joined beforehand, which
is not counted against a peer.
"""

import argparse
import importlib.util
import json
import pathlib
import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

LAUNCHES = 50
REPLAYS = 20
WARM_UP = 3


def attention(batch, rows, heads, head_dim, keys, media=0, kv_heads=None):
    """Shapes of a case: `keys` in all; with `media`, each row of text sees the 64 keys of its medium."""
    return dict(batch=batch, rows=rows, heads=heads, kv_heads=kv_heads or heads, head_dim=head_dim, keys=keys, media=media)


def over_media(batch, rows, media, heads, head_dim, kv_heads=None):
    return attention(batch, rows, heads, head_dim, 64 * media, media, kv_heads)


# By the names of src/profile/cases.rs.
ATTENTION = {
    "attention/openflamingo-resampler/b32": attention(32, 64, 8, 64, 256 + 64),
    "attention/flamingo-resampler/b32-k2304": attention(32, 64, 16, 96, 2304 + 64),
    "attention/flamingo-resampler/b32-k2304-kv4": attention(32, 64, 16, 96, 2304 + 64, kv_heads=4),
    "attention/flamingo-resampler/b1-k2304": attention(1, 64, 16, 96, 2304 + 64),
    "attention/flamingo-9b/b8-l2048-n8": over_media(8, 2048, 8, 32, 128),
    "attention/flamingo-9b/b8-l2048-n8-kv8": over_media(8, 2048, 8, 32, 128, kv_heads=8),
    "attention/openflamingo/b8-l2048-n8": over_media(8, 2048, 8, 8, 64),
    "attention/flamingo-9b/b8-l8192-n32": over_media(8, 8192, 32, 32, 128),
    "attention/flamingo-9b-decode/b64-n1": over_media(64, 1, 1, 32, 128),
    "attention/blip2-cross/b32-k257": attention(32, 32, 12, 64, 257),
    "attention/openflamingo/b8-l2048-n1": over_media(8, 2048, 1, 8, 64),
    "attention/openflamingo/b8-l2048-n4": over_media(8, 2048, 4, 8, 64),
    "attention/openflamingo/b8-l2048-n16": over_media(8, 2048, 16, 8, 64),
    "attention/openflamingo/b8-l2048-n64": over_media(8, 2048, 64, 8, 64),
    "attention/openflamingo/b8-l512-n8": over_media(8, 512, 8, 8, 64),
    "attention/openflamingo/b8-l8192-n8": over_media(8, 8192, 8, 8, 64),
    "attention/openflamingo/b32-l2048-n8": over_media(32, 2048, 8, 8, 64),
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
    """For each row of text the number of its medium: media at equal distances, the first at the beginning."""
    step = max(case["rows"] // case["media"], 1)
    row = torch.arange(case["rows"], device=device)
    return (row // step + 1).clamp(max=case["media"]).repeat(case["batch"], 1)


class Operands:
    """One copy of a case's operands, [batch, heads, rows, head_dim], over memory that the heads of a row share."""

    def __init__(self, case, device, dtype):
        def made(rows, heads):
            return torch.randn(case["batch"], rows, heads, case["head_dim"], device=device, dtype=dtype).transpose(1, 2)

        self.q = made(case["rows"], case["heads"])
        self.k = made(case["keys"], case["kv_heads"])
        self.v = made(case["keys"], case["kv_heads"])

    def bytes(self):
        return sum(t.numel() * t.element_size() for t in (self.q, self.k, self.v, self.q))


def sdpa(backend):
    """A peer: scaled_dot_product_attention with one backend."""

    def make(case, device):
        mask = None
        if case["media"]:
            medium = torch.arange(case["keys"], device=device) // 64 + 1
            mask = (phi(case, device)[:, :, None] == medium).unsqueeze(1)
        grouped = case["kv_heads"] < case["heads"]

        def run(o):
            with sdpa_kernel([backend]):
                return scaled_dot_product_attention(o.q, o.k, o.v, attn_mask=mask, enable_gqa=grouped)

        return run, {}

    return make


def flex(case, device):
    """A peer: FlexAttention, compiled; the block mask is made beforehand, and timed."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    on_gpu = device == "cuda"
    mask, notes = None, {}
    if case["media"]:
        media = phi(case, device)

        def visible(b, h, row, key):
            return media[b, row] == key // 64 + 1

        started = time.perf_counter()
        mask = create_block_mask(visible, case["batch"], None, case["rows"], case["keys"], device=device, BLOCK_SIZE=(128, 64))
        if on_gpu:
            torch.cuda.synchronize()
            notes = {"flex_mask": (time.perf_counter() - started) * 1e6}
    function = torch.compile(flex_attention, dynamic=False) if on_gpu else flex_attention
    grouped = case["kv_heads"] < case["heads"]
    return lambda o: function(o.q, o.k, o.v, block_mask=mask, enable_gqa=grouped), notes


def lengths(case, device):
    """Cumulative rows and keys of each sequence, and the longest of either: one per run of text under the media rule, else one per problem."""
    if not case["media"]:
        rows, keys = [case["rows"]] * case["batch"], [case["keys"]] * case["batch"]
    else:
        row = torch.bincount(phi(case, "cpu")[0], minlength=case["media"] + 1)[1:].tolist()
        rows, keys = row * case["batch"], [64] * (case["media"] * case["batch"])

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


def varlen(case, device):
    """A peer: flash attention over variable lengths, in PyTorch's form or in that of the package flash_attn."""
    over_rows, over_keys, most_rows, most_keys = lengths(case, device)

    def packed(t):
        return t.transpose(1, 2).flatten(0, 1)

    if device == "cpu":
        function = each_sequence
    elif importlib.util.find_spec("flash_attn_interface"):
        from flash_attn_interface import flash_attn_varlen_func as function
    elif importlib.util.find_spec("flash_attn"):
        from flash_attn import flash_attn_varlen_func as function
    else:
        from torch.nn.attention.varlen import varlen_attn as function

    # The package groups heads by itself, newer versions of PyTorch when told to.
    grouped = {"enable_gqa": True} if case["kv_heads"] < case["heads"] and function.__name__ == "varlen_attn" else {}

    def run(o):
        out = function(packed(o.q), packed(o.k), packed(o.v), over_rows, over_keys, most_rows, most_keys, **grouped)
        out = out[0] if isinstance(out, tuple) else out
        return out.unflatten(0, (case["batch"], case["rows"])).transpose(1, 2)

    return run, {}


PEERS = {
    "sdpa_flash": sdpa(SDPBackend.FLASH_ATTENTION),
    "sdpa_efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION),
    "sdpa_cudnn": sdpa(SDPBackend.CUDNN_ATTENTION),
    "sdpa_math": sdpa(SDPBackend.MATH),
    "flex": flex,
    "varlen": varlen,
}


def median_us(run, copies):
    """Microseconds of a call: a captured graph of at least 50 calls that go round over the copies of the operands."""
    calls = -(-LAUNCHES // len(copies)) * len(copies)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for copy in copies[:3]:
            run(copy)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in range(calls):
            run(copies[call % len(copies)])
    times = []
    for replay in range(WARM_UP + REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if replay >= WARM_UP:
            times.append(start.elapsed_time(end) * 1e3 / calls)
    return statistics.median(times)


def reason(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:300]


def exact(case, operands):
    """The result by plain matrix products in f64."""
    q, k, v = (t.to(torch.float64) for t in (operands.q, operands.k, operands.v))
    k, v = (t.repeat_interleave(case["heads"] // case["kv_heads"], dim=1) for t in (k, v))
    scores = q @ k.transpose(2, 3) / case["head_dim"] ** 0.5
    if case["media"]:
        medium = torch.arange(case["keys"], device=q.device) // 64 + 1
        scores = scores.masked_fill((phi(case, q.device)[:, :, None] != medium).unsqueeze(1), float("-inf"))
    return scores.softmax(-1) @ v


def measure(case, make, check):
    """A number, a reason for its absence, or, in a check, that the values are right; and what is noted beside it."""
    device, dtype = ("cpu", torch.float32) if check else ("cuda", torch.bfloat16)
    torch.manual_seed(1)
    try:
        run, notes = make(case, device)
        first = Operands(case, device, dtype)
        if check:
            torch.testing.assert_close(run(first).to(torch.float64), exact(case, first), rtol=1e-4, atol=1e-5)
            return "right", notes
        l2 = torch.cuda.get_device_properties(0).L2_cache_size
        copies = [first] + [Operands(case, device, dtype) for _ in range(min(2 * l2 // first.bytes() + 1, 255))]
        return median_us(run, copies), notes
    except AssertionError as error:
        return f"wrong: {reason(error)}", {}
    except (RuntimeError, NotImplementedError, ImportError, TypeError, ValueError) as error:
        return f"refused: {reason(error)}", {}
    finally:
        if not check:
            torch.cuda.empty_cache()


def block_peer(name, check):
    """A public module, eager and under torch.compile."""
    import gpu_modules

    module, inputs = gpu_modules.build(name, check)
    device, dtype = ("cpu", torch.float32) if check else ("cuda", torch.bfloat16)
    module = module.to(device=device, dtype=dtype).eval()
    inputs = {k: v.to(device=device, dtype=dtype if v.is_floating_point() else v.dtype) for k, v in inputs.items()}
    found = {}
    with torch.no_grad():
        if check:
            out = module(**inputs)
            out = out if torch.is_tensor(out) else out[0]
            return {"eager": "right" if torch.isfinite(out).all() else "wrong: not finite"}
        forms = {"eager": module}
        forms["compile"] = torch.compile(module, mode="max-autotune-no-cudagraphs", dynamic=False)
        for form, function in forms.items():
            try:
                function(**inputs)
                found[form] = median_us(lambda _: function(**inputs), [None])
            except Exception as error:  # what a compiler raises is of any kind; the reason is recorded
                found[form] = f"refused: {reason(error)}"
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--filter", default="", help="only cases whose name contains this text")
    parser.add_argument("--seconds", type=float, default=420, help="start nothing after so long")
    parser.add_argument("--check", action="store_true", help="small shapes on the processor: values, no times")
    arguments = parser.parse_args()

    import gpu_modules

    started = time.monotonic()
    # What another call has found stays.
    cases = json.loads(arguments.out.read_text())["cases"] if arguments.out.exists() else {}
    report = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": "cpu (checks only)" if arguments.check else torch.cuda.get_device_name(0),
        "cases": cases,
    }

    def put(name, values):
        cases.setdefault(name, {}).update(values)
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
        print(name, values, flush=True)

    def late(name):
        if time.monotonic() - started < arguments.seconds:
            return False
        if name not in cases:
            put(name, {"left_out": f"not started within {arguments.seconds:.0f} s"})
        return True

    for name, case in ATTENTION.items():
        if arguments.filter not in name or late(name):
            continue
        case = small(case) if arguments.check else case
        cases.pop(name, None)
        for peer, make in PEERS.items():
            value, notes = measure(case, make, arguments.check)
            put(name, {peer: value, **notes})
    for name in gpu_modules.NAMES:
        if arguments.filter not in name or late(name):
            continue
        try:
            put(name, block_peer(name, arguments.check))
        except ImportError as error:
            put(name, {"eager": f"refused: {reason(error)}", "compile": f"refused: {reason(error)}"})
    wrong = [f"{name} {peer}" for name, peers in cases.items() for peer, value in peers.items() if str(value).startswith("wrong")]
    if wrong:
        raise SystemExit(f"wrong values: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
