"""IDEFICS, Idefics2 and Llama 3.2 Vision."""

import numpy as np

from fixture_lib.file import HIDDEN, ROWS, WIDTHS
from fixture_lib.maths import attention, relu, split


def idefics_resampler(f):
    batch, tokens, width, latents = f.pick([1, 1, 2, 3]), f.pick(ROWS), f.pick(WIDTHS), f.pick(ROWS)
    heads, _, d = f.heads()
    depth, qk_norms = f.pick([1, 2, 3]), bool(f.chance())
    f.config["ctor"] = {"embed_dim": width, "depth": depth, "n_heads": heads, "head_dim": d, "n_latents": latents, "qk_layer_norms": qk_norms}
    state = np.broadcast_to(f.table("latents", latents, width), (batch, latents, width))
    context = f.reals("context", batch, tokens, width)
    for i in range(depth):
        p = f"blocks.{i}"
        kv = np.concatenate([f.ln(f"{p}.0.context_layer_norm", width)(context), f.ln(f"{p}.0.latents_layer_norm", width)(state)], 1)
        part = lambda name: split(f.product(f"{p}.0.{name}_proj", heads * d, width)(kv), heads)
        q, k, v = part("q")[:, tokens:], part("k"), part("v")
        if qk_norms:
            q, k = f.ln(f"{p}.0.q_layer_norm", d)(q), f.ln(f"{p}.0.k_layer_norm", d)(k)
        state = state + f.product(f"{p}.0.output_proj", width, heads * d)(attention(q, k, v))
        normed = f.ln(f"{p}.1.ln", width)(state)
        state = state + f.product(f"{p}.1.c_proj", width, 4 * width)(relu(f.product(f"{p}.1.fc", 4 * width, width)(normed)))
    f.out("out", f.ln("layer_norm", width)(state))


def idefics_block(f):
    heads, _, d = f.heads()
    width, visual, hidden = heads * d, f.pick(WIDTHS), f.pick(HIDDEN)
    batch, rows, images, tokens = f.pick([1, 2, 3]), f.pick(ROWS), f.pick([1, 2, 3, 5]), f.pick(ROWS)
    eps, qk_norms, vector = f.pick([1e-6, 1e-5]), bool(f.chance()), bool(f.chance())
    f.config["ctor"] = {
        "hidden_size": width, "heads": heads, "vision_dim": visual, "intermediate_size": hidden, "rms_norm_eps": eps,
        "qk_layer_norms": qk_norms, "alpha_type": "vector" if vector else "float",
    }  # fmt: skip
    alpha = lambda name: np.tanh(f.table(name, *([1, 1, width] if vector else [1])))
    x, image = f.reals("hidden_states", batch, rows, width), f.reals("image_hidden_states", batch, images * tokens, visual)
    allowed = None
    if not f.chance(6):
        allowed = np.repeat(f.scattered("image_attention_mask", batch, rows, images), tokens, -1)
    part = lambda name, of: split(f.product(f"cross_attn.{name}_proj", width, of.shape[-1])(of), heads)
    q, k, v = part("q", f.rms("input_layernorm", width, eps)(x)), part("k", image), part("v", image)
    if qk_norms:
        q, k = f.rms("cross_attn.q_layer_norm", d, eps)(q), f.rms("cross_attn.k_layer_norm", d, eps)(k)
    x = x + alpha("alpha_cross_attn") * f.product("cross_attn.o_proj", width, width)(attention(q, k, v, allowed))
    normed = f.rms("post_attention_layernorm", width, eps)(x)
    f.out("out", x + alpha("alpha_dense") * f.swiglu("mlp", width, hidden, width)(normed))


def mllama_block(f):
    heads, kv_heads, d = f.heads(groups=True)
    width, hidden, eps = heads * d, f.pick(HIDDEN), f.pick([1e-5, 1e-6])
    batch, rows, images, tiles, tokens = f.pick([1, 2, 3]), f.pick(ROWS), f.pick([1, 2, 4]), f.pick([1, 2, 4]), f.pick([1, 2, 5, 16, 17])
    f.config["ctor"] = {"hidden": width, "heads": heads, "kv_heads": kv_heads, "inter": hidden, "eps": eps}
    states = f.reals("cross_attention_states", batch, images * tiles * tokens, width)
    mask = None if f.chance(5) else f.scattered("cross_attention_mask", batch, rows, images, tiles).reshape(batch, rows, -1)
    q_proj, o_proj = f.product("cross_attn.q_proj", width, width), f.product("cross_attn.o_proj", width, width)
    k, v = (split(f.product(f"cross_attn.{name}_proj", kv_heads * d, width)(states), kv_heads) for name in "kv")
    q_norm, k = f.rms("cross_attn.q_norm", d, eps), f.rms("cross_attn.k_norm", d, eps)(k)
    norm, ff_norm, mlp = f.rms("input_layernorm", width, eps), f.rms("post_attention_layernorm", width, eps), f.swiglu("mlp", width, hidden, width)
    attn_gate, mlp_gate = np.tanh(f.table("cross_attn_attn_gate", 1)), np.tanh(f.table("cross_attn_mlp_gate", 1))

    def block(x, mask):
        allowed = None if mask is None else np.repeat(mask, tokens, -1)
        x = x + attn_gate * o_proj(attention(q_norm(split(q_proj(norm(x)), heads)), k, v, allowed, "all"))
        full = 1.0 if mask is None else mask.any(-1, keepdims=True)
        return x + mlp_gate * full * mlp(ff_norm(x))

    f.out("out", block(f.reals("hidden_states", batch, rows, width), mask))
    if f.chance():
        x = f.reals("decode_hidden_states", batch, f.pick([1, 1, 3]), width)
        f.out("out_decode", block(x, None if mask is None else np.repeat(mask[:, -1:], x.shape[1], 1)))


def idefics2(f, connector):
    heads, kv_heads, d = f.heads(groups=True)
    batch, tokens, width, latents, depth = f.pick([1, 1, 2, 3]), f.pick(ROWS), f.pick(WIDTHS), f.pick(ROWS), f.pick([1, 2, 3])
    f.config["ctor"] = {"hidden": width, "heads": heads, "kv_heads": kv_heads, "head_dim": d, "n_latents": latents, "depth": depth}
    eps, p = 1e-6, "perceiver_resampler." if connector else ""
    if f.chance():
        eps = f.config["ctor"]["rms_norm_eps"] = 1e-5
    if connector:
        visual, hidden = f.pick(WIDTHS), f.pick(HIDDEN)
        f.config["ctor"] |= {"vision_hidden": visual, "text_inter": hidden}
        context = f.swiglu("modality_projection", visual, hidden, width)(f.reals("context", batch, tokens, visual))
    else:
        context = f.reals("context", batch, tokens, width)
    allowed = None
    if not f.chance(5):
        mask = f.scattered("attention_mask", batch, tokens)
        allowed = np.concatenate([mask, np.ones((batch, latents), bool)], 1)[:, None]
    state = np.broadcast_to(f.table(f"{p}latents", latents, width), (batch, latents, width))
    for i in range(depth):
        layer = f"{p}layers.{i}"
        normed = f.rms(f"{layer}.input_latents_norm", width, eps)(state)
        kv = np.concatenate([f.rms(f"{layer}.input_context_norm", width, eps)(context), normed], 1)
        part = lambda name, of, n: split(f.product(f"{layer}.self_attn.{name}_proj", n * d, width)(of), n)
        branch = attention(part("q", normed, heads), part("k", kv, kv_heads), part("v", kv, kv_heads), allowed)
        state = state + f.product(f"{layer}.self_attn.o_proj", width, heads * d)(branch)
        normed = f.rms(f"{layer}.post_attention_layernorm", width, eps)(state)
        state = state + f.swiglu(f"{layer}.mlp", width, 4 * width, width)(normed)
    f.out("out", f.rms(f"{p}norm", width, eps)(state))
