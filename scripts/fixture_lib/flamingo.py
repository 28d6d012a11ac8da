"""The paper's modules, and those of flamingo-pytorch and OpenFlamingo."""

import numpy as np

from fixture_lib.file import ROWS, WIDTHS
from fixture_lib.maths import attention, gelu, split, squared_relu


def resampler_layer(f, p, width, heads, d, ff_mult):
    """flamingo-pytorch and OpenFlamingo: keys are normalised media, then normalised latents."""
    inner = heads * d
    norm_media, norm_latents = f.ln(f"{p}0.norm_media", width), f.ln(f"{p}0.norm_latents", width)
    to_q, to_kv = f.product(f"{p}0.to_q", inner, width), f.product(f"{p}0.to_kv", 2 * inner, width)
    to_out, norm = f.product(f"{p}0.to_out", width, inner), f.ln(f"{p}1.0", width)
    up, down = f.product(f"{p}1.1", ff_mult * width, width), f.product(f"{p}1.3", width, ff_mult * width)

    def layer(x, latents):
        normed = norm_latents(latents)
        k, v = np.split(to_kv(np.concatenate([norm_media(x), normed], 1)), 2, -1)
        latents = latents + to_out(attention(split(to_q(normed), heads), split(k, heads), split(v, heads)))
        return latents + down(gelu(up(norm(latents))))

    return layer


def perceiver(f, frames_axis):
    batch, media, tokens, width = f.pick([1, 1, 2]), f.pick([1, 2, 3]), f.pick(ROWS), f.pick(WIDTHS)
    frames = f.pick([1, 1, 3, 6]) if frames_axis else 1
    heads, _, d = f.heads()
    latents, depth, ff_mult = f.pick(ROWS), f.pick([1, 2, 3]), f.pick([1, 2, 4])
    f.config["ctor"] = {"dim": width, "depth": depth, "dim_head": d, "heads": heads, "num_latents": latents, "ff_mult": ff_mult}
    learned = f.table("latents", latents, width)
    if frames_axis:
        x = f.reals("x", batch, media, frames, tokens, width)
        if f.chance():
            x = x + f.table("frame_embs", frames + f.pick([0, 2]), width)[:frames, None]
        x = x.reshape(batch, media, frames * tokens, width)
        if f.chance():
            x = x + f.table("media_time_embs", media + f.pick([0, 1]), 1, width)[:media]
    elif f.chance(4):
        media, x = 1, f.reals("x", batch, tokens, width)[:, None]
        x = x + f.table("media_pos_emb", f.pick([1, 3]), 1, width)[:1]
    else:
        x = f.reals("x", batch, media, tokens, width)
        x = x + f.table("media_pos_emb", media + f.pick([0, 2]), 1, width)[:media]
    layers = [resampler_layer(f, f"layers.{i}.", width, heads, d, ff_mult) for i in range(depth)]
    norm = f.ln("norm", width)
    x = x.reshape(batch * media, -1, width)
    state = np.broadcast_to(learned, (batch * media, latents, width))
    for layer in layers:
        state = layer(x, state)
    f.out("out", norm(state).reshape(batch, media, latents, width))


def gated(f, p, dim, visual, heads, d, ff_mult, immediate):
    """flamingo-pytorch and OpenFlamingo; `index` is the medium's number of each row, from 1, or None for no mask."""
    inner = heads * d
    norm, to_q = f.ln(f"{p}attn.norm", dim), f.product(f"{p}attn.to_q", inner, dim)
    to_kv, to_out = f.product(f"{p}attn.to_kv", 2 * inner, visual), f.product(f"{p}attn.to_out", dim, inner)
    ff_norm = f.ln(f"{p}ff.0", dim)
    up, down = f.product(f"{p}ff.1", ff_mult * dim, dim), f.product(f"{p}ff.3", dim, ff_mult * dim)
    attn_gate, ff_gate = np.tanh(f.table(f"{p}attn_gate", 1)), np.tanh(f.table(f"{p}ff_gate", 1))

    def block(x, media, index):
        batch, count, tokens, _ = media.shape
        k, v = np.split(to_kv(media.reshape(batch, count * tokens, visual)), 2, -1)
        allowed, empty = None, "zero"
        if index is not None:
            number = np.repeat(np.arange(1, count + 1), tokens)
            allowed = index[..., None] == number if immediate else index[..., None] >= number
            # Rows that precede every medium are zeroed; others without a key have all scores equal.
            empty = index != 0 if immediate else "uniform"
        branch = to_out(attention(split(to_q(norm(x)), heads), split(k, heads), split(v, heads), allowed, empty))
        x = x + attn_gate * branch
        return x + ff_gate * down(gelu(up(ff_norm(x))))

    return block


def gated_sizes(f, with_visual):
    heads, _, d = f.heads()
    dim, ff_mult, immediate = f.pick(WIDTHS), f.pick([1, 2, 3, 4]), bool(f.chance())
    visual = f.pick(WIDTHS) if with_visual else dim
    f.config["ctor"] = {"dim": dim, "dim_head": d, "heads": heads, "ff_mult": ff_mult, "only_attend_immediate_media": immediate}
    if with_visual:
        f.config["ctor"]["dim_visual"] = visual
    return dim, visual, heads, d, ff_mult, immediate


def locations(f, batch, rows):
    share = f.rng.choice([0.0, 0.05, 0.2, 0.6], size=(batch, 1))
    return f.flags("media_locations", f.rng.random((batch, rows)) < share)


def gated_block(f, with_visual):
    sizes = gated_sizes(f, with_visual)
    batch, rows, media, tokens = f.pick([1, 2, 4]), f.pick(ROWS), f.pick([1, 2, 3, 5]), f.pick(ROWS)
    block = gated(f, "", *sizes)
    x, m = f.reals("x", batch, rows, sizes[0]), f.reals("media", batch, media, tokens, sizes[1])
    index = None
    if with_visual and f.chance(4):
        f.config["use_cached_media"] = True
        index = np.repeat(locations(f, batch, f.pick(ROWS)).sum(1, keepdims=True), rows, 1)
    elif not f.chance(6):
        index = locations(f, batch, rows).cumsum(1)
    f.out("out", block(x, m, index))


def flamingo_layer(f):
    sizes = gated_sizes(f, True)
    batch, rows, later = f.pick([1, 2, 4]), f.pick(ROWS), f.pick([1, 1, 2, 5])
    media, tokens = f.pick([1, 2, 3]), f.pick(ROWS)
    block = gated(f, "gated_cross_attn_layer.", *sizes)
    x, m = f.reals("x", batch, rows, sizes[0]), f.reals("media", batch, media, tokens, sizes[1])
    next_rows = f.reals("x_decode", batch, later, sizes[0])
    where = locations(f, batch, rows)
    f.out("out_prefill", block(x, m, where.cumsum(1)))
    f.out("out_decode", block(next_rows, m, np.repeat(where.sum(1, keepdims=True), later, 1)))


def paper_resampler(f):
    batch, frames, tokens, width, latents = f.pick([1, 2, 3]), f.pick([1, 3, 7]), f.pick([r for r in ROWS if r <= 33]), f.pick(WIDTHS), f.pick(ROWS)
    heads, _, d = f.heads()
    depth, ff_mult = f.pick([1, 2, 3]), f.pick([1, 2, 4])
    f.config["ctor"] = {"dim": width, "depth": depth, "heads": heads, "head_dim": d, "num_latents": latents, "ff_mult": ff_mult}
    x = f.reals("x_f", batch, frames, tokens, width) + f.table("time_embeddings", frames + f.pick([0, 2]), width)[:frames, None]
    x, state = x.reshape(batch, -1, width), np.broadcast_to(f.table("latents", latents, width), (batch, latents, width))
    for i in range(depth):
        p = f"layers.{i}."
        normed = f.ln(f"{p}latents_norm", width)(state)
        kv = np.concatenate([f.ln(f"{p}media_norm", width)(x), normed], 1)
        part = lambda name, of: split(of @ f.matrix(f"{p}attn.w{name}", heads * d, width).T, heads)
        branch = attention(part("q", normed), part("k", kv), part("v", kv))
        state = state + branch @ f.matrix(f"{p}attn.wo", width, heads * d).T
        inner = squared_relu(f.ln(f"{p}ffw_norm", width)(state) @ f.matrix(f"{p}ffw.w1", ff_mult * width, width).T)
        state = state + inner @ f.matrix(f"{p}ffw.w2", width, ff_mult * width).T
    f.out("out", f.ln("final_norm", width)(state))


def paper_block(f):
    heads, _, d = f.heads()
    dim, visual, ff_mult, immediate = f.pick(WIDTHS), f.pick(WIDTHS), f.pick([1, 2, 4]), bool(f.chance())
    batch, rows, media, tokens = f.pick([1, 2, 4]), f.pick(ROWS), f.pick([1, 2, 3, 5]), f.pick(ROWS)
    f.config["ctor"] = {"dim": dim, "dim_visual": visual, "heads": heads, "head_dim": d, "ff_mult": ff_mult, "immediate": immediate}
    y, x = f.reals("y", batch, rows, dim), f.reals("x", batch, media, tokens, visual)
    index, number = locations(f, batch, rows).cumsum(1)[..., None], np.repeat(np.arange(1, media + 1), tokens)
    allowed = index == number if immediate else index >= number
    part = lambda name, of: split(of @ f.matrix(f"attn.w{name}", heads * d, of.shape[-1]).T, heads)
    flat = x.reshape(batch, media * tokens, visual)
    branch = attention(part("q", f.ln("attn_norm", dim)(y)), part("k", flat), part("v", flat), allowed)
    y = y + np.tanh(f.table("alpha_xattn", 1)) * (branch @ f.matrix("attn.wo", dim, heads * d).T)
    inner = squared_relu(f.ln("ffw_norm", dim)(y) @ f.matrix("ffw.w1", ff_mult * dim, dim).T)
    f.out("out", y + np.tanh(f.table("alpha_dense", 1)) * (inner @ f.matrix("ffw.w2", dim, ff_mult * dim).T))
