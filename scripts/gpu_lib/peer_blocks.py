"""Public modules as forms of whole blocks: eagerly, and under torch.compile.

    eager, compile                  the public module; compile is max-autotune, in the same kind of captured graph as ours
    eager_cached, compile_cached    of gated blocks, with K and V of the media projected beforehand, as ours reads them
    compile_graphs                  at batch 1 and for decode steps: torch.compile's own CUDA graphs (reduce-overhead)
"""

import copy

import torch

from gpu_lib import peer_modules, peer_timing
from gpu_lib.peer_timing import close, compiled, copies, launches, median_us, near, replayed_us


def moved(inputs, device, dtype):
    return {k: v.to(device=device, dtype=dtype if v.is_floating_point() else v.dtype) for k, v in inputs.items()}


def plain(t):
    return t if torch.is_tensor(t) else t[0]


def norm(p, stem, x):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-5).sqrt() * p[f"{stem}.weight"] + p[f"{stem}.bias"]


def feed_forward(p, stem, x):
    hidden = norm(p, f"{stem}.0", x) @ p[f"{stem}.1.weight"].T
    return hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)) @ p[f"{stem}.3.weight"].T


def attended(q, k, v, heads):
    """One row of queries over some keys, head by head."""
    parts = zip(*(t.chunk(heads, -1) for t in (q, k, v)))
    return torch.cat([((q @ k.T) / q.shape[-1] ** 0.5).softmax(-1) @ v for q, k, v in parts], -1)


def exact_resampler(module, x):
    """OpenFlamingo's resampler in f64, problem by problem."""
    p, heads = module.state_dict(), module.layers[0][0].heads
    results = []
    for features in x.flatten(2, 3).flatten(0, 1):
        latents = p["latents"]
        for n in range(len(module.layers)):
            at = f"layers.{n}.0"
            media, normed = norm(p, f"{at}.norm_media", features), norm(p, f"{at}.norm_latents", latents)
            k, v = (torch.cat([media, normed]) @ p[f"{at}.to_kv.weight"].T).chunk(2, -1)
            latents = latents + attended(normed @ p[f"{at}.to_q.weight"].T, k, v, heads) @ p[f"{at}.to_out.weight"].T
            latents = latents + feed_forward(p, f"layers.{n}.1", latents)
        results.append(norm(p, "norm", latents))
    return torch.stack(results).unflatten(0, x.shape[:2])


def exact_block(module, x, media, media_locations):
    """OpenFlamingo's gated block in f64, row by row: each attends to the last medium at or before it."""
    p, heads = module.block.state_dict(), module.block.attn.heads
    result = torch.empty_like(x)
    for b in range(x.shape[0]):
        for row in range(x.shape[1]):
            number = media_locations[b].sum() if module.decode else media_locations[b, : row + 1].sum()
            attention = torch.zeros_like(x[b, row])
            if number > 0:
                k, v = (media[b, number - 1] @ p["attn.to_kv.weight"].T).chunk(2, -1)
                q = norm(p, "attn.norm", x[b, row : row + 1]) @ p["attn.to_q.weight"].T
                attention = (attended(q, k, v, heads) @ p["attn.to_out.weight"].T)[0]
            y = x[b, row] + p["attn_gate"].tanh() * attention
            result[b, row] = y + p["ff_gate"].tanh() * feed_forward(p, "ff", y)
    return result


def exact(module, inputs):
    """In f64: OpenFlamingo's written apart here, the others by the public module itself."""
    module, inputs = copy.deepcopy(module).double(), moved(inputs, "cpu", torch.float64)
    if isinstance(module, peer_modules.PerceiverResampler):
        return exact_resampler(module, **inputs)
    if isinstance(module, peer_modules.Told):
        return exact_block(module, **inputs)
    return plain(module(**inputs))


def call(module, inputs):
    return plain(module(**inputs))


def measure(job, check):
    """Microseconds of a job's form, or None of one that was checked and is right; and kernels of one call. In a graph if it can be `captured`."""
    form, captured = job["form"], job.get("captured", True)
    module, inputs = peer_modules.build(job["name"], job["shape"], check)
    device, dtype = peer_timing.where(check)
    module = module.to(device=device, dtype=dtype).eval()
    expected = None
    with torch.no_grad():
        if check:
            expected = exact(module, inputs)
        inputs = moved(inputs, device, dtype)
        public = inputs
        if form.endswith("_cached"):
            inputs = peer_modules.with_kv(module, inputs)
        mode = "reduce-overhead" if form == "compile_graphs" else "max-autotune-no-cudagraphs"
        function = compiled(call, check, mode) if form.startswith("compile") else call

        def run(o):
            return function(*o)

        first = (module, inputs)
        if check:
            close(run(first), expected)
            return None, None
        # Bounds roundings of many layers in another order; a wrong operand changes values by their
        # own size.
        near(run(first), call(module, public), share=0.1)
        size = sum(t.numel() * t.element_size() for t in (*module.parameters(), *inputs.values()))
        # A large module's own weights clear the cache.
        l2 = torch.cuda.get_device_properties(0).L2_cache_size
        operands = [first] if size > 2 * l2 else copies(lambda: copy.deepcopy(first), first, size)
        for one in operands:
            run(one)
        us = median_us(run, operands) if captured and form != "compile_graphs" else replayed_us(run, operands)
        return us, launches(lambda: run(first))
