"""Public PyTorch modules, by the names of cases.

OpenFlamingo's modules are written out here after its `src/helpers.py`, with the same names of parameters, since the package wants much that a
machine for measurements lacks; where it is installed, a check compares both. The others come from the package transformers.

A gated block has two forms: the public one, which projects its media at every call, and one that reads projected K and V, as ours does.
"""

import importlib.util
import inspect

import torch
from torch import nn


def feed_forward(dim):
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim, bias=False), nn.GELU(), nn.Linear(4 * dim, dim, bias=False))


def split(t, heads):
    return t.unflatten(-1, (heads, -1)).transpose(-3, -2)


def attend(q, k, v, mask=None, nothing=None):
    """As the package does it: products, and a softmax that subtracts the maximum first."""
    sim = q @ k.transpose(-1, -2)
    if mask is not None:
        sim = sim.masked_fill(~mask, -torch.finfo(sim.dtype).max)
    weights = (sim - sim.amax(dim=-1, keepdim=True).detach()).softmax(dim=-1)
    if nothing is not None:
        weights = weights.masked_fill(nothing, 0.0)
    return (weights @ v).transpose(-3, -2).flatten(-2)


class PerceiverAttention(nn.Module):
    def __init__(self, dim, dim_head, heads):
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.norm_media, self.norm_latents = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim_head * heads, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim_head * heads, bias=False)
        self.to_out = nn.Linear(dim_head * heads, dim, bias=False)

    def forward(self, x, latents):
        x, latents = self.norm_media(x), self.norm_latents(latents)
        k, v = self.to_kv(torch.cat((x, latents), dim=-2)).chunk(2, dim=-1)
        q, k, v = (split(t, self.heads) for t in (self.to_q(latents), k, v))
        return self.to_out(attend(q * self.scale, k, v))


class PerceiverResampler(nn.Module):
    def __init__(self, dim, depth, dim_head, heads, num_latents):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_latents, dim))
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(dim, dim_head, heads), feed_forward(dim)]) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        x = x.flatten(2, 3)
        latents = self.latents.expand(*x.shape[:2], -1, -1)
        for attention, ff in self.layers:
            latents = attention(x, latents) + latents
            latents = ff(latents) + latents
        return self.norm(latents)


class MaskedCrossAttention(nn.Module):
    def __init__(self, dim, dim_visual, dim_head, heads):
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim_head * heads, bias=False)
        self.to_kv = nn.Linear(dim_visual, 2 * dim_head * heads, bias=False)
        self.to_out = nn.Linear(dim_head * heads, dim, bias=False)

    def forward(self, x, media, media_locations, use_cached_media, kv=None):
        images, latents = media.shape[1:3]
        k, v = (self.to_kv(media.flatten(1, 2)) if kv is None else kv).chunk(2, dim=-1)
        q, k, v = (split(t, self.heads) for t in (self.to_q(self.norm(x)), k, v))
        if use_cached_media:
            text_time = media_locations.count_nonzero(dim=1)[:, None].expand(-1, x.shape[1])
        else:
            text_time = media_locations.cumsum(dim=-1)
        text_time = text_time[:, None, :, None]
        media_time = (torch.arange(images, device=x.device) + 1).repeat_interleave(latents)
        return self.to_out(attend(q * self.scale, k, v, text_time == media_time, text_time == 0))


class GatedCrossAttentionBlock(nn.Module):
    def __init__(self, dim, dim_visual, dim_head, heads):
        super().__init__()
        self.attn = MaskedCrossAttention(dim, dim_visual, dim_head, heads)
        self.attn_gate = nn.Parameter(torch.tensor([0.5]))
        self.ff = feed_forward(dim)
        self.ff_gate = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x, media, media_locations, use_cached_media=False, kv=None):
        x = self.attn(x, media, media_locations, use_cached_media, kv) * self.attn_gate.tanh() + x
        return self.ff(x) * self.ff_gate.tanh() + x


class Told(nn.Module):
    """A block that is told whether it runs a decode step."""

    def __init__(self, block, decode):
        super().__init__()
        self.block, self.decode = block, decode

    def forward(self, x, media, media_locations, kv=None):
        return self.block(x, media, media_locations, self.decode, kv)


def theirs(name, ours, *arguments, **options):
    """The package's module with our weights, where the package is installed; else None."""
    package = importlib.util.find_spec("open_flamingo")
    if package is None or importlib.util.find_spec("einops_exts") is None:
        return None
    path = f"{package.submodule_search_locations[0]}/src/helpers.py"
    spec = importlib.util.spec_from_file_location("open_flamingo_helpers", path)
    helpers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(helpers)
    module = getattr(helpers, name)(*arguments, **options)
    module.load_state_dict(ours.state_dict())
    return module


def compared(ours, package, inputs):
    if package is not None:
        torch.testing.assert_close(ours(**inputs), package(**inputs), rtol=1e-5, atol=1e-5)


def resampler(shape, check):
    own = shape["config"]
    names = dict(dim="width", depth="layers", dim_head="head_dim", heads="heads", num_latents="latents")
    size = dict(dim=64, depth=2, dim_head=16, heads=2, num_latents=8) if check else {name: own[ours] for name, ours in names.items()}
    module = PerceiverResampler(**size)
    inputs = {"x": torch.randn(2 if check else shape["batch"], 1, 1, 16 if check else shape["tokens"], size["dim"])}
    if check:
        compared(module, theirs("PerceiverResampler", module, **size), inputs)
    return module, inputs


def gated_block(shape, check):
    own, decode = shape["config"], shape["rows"] == 1
    names = dict(dim="width", dim_visual="media_width", dim_head="head_dim", heads="heads")
    size = dict(dim=64, dim_visual=32, dim_head=16, heads=2) if check else {name: own[ours] for name, ours in names.items()}
    sizes = [shape[name] for name in ("rows", "batch", "media", "keys_per_media")]
    length, problems, images, latents = [min(sizes[0], 12), 2, min(sizes[2], 3), 5] if check else sizes
    located = images if decode else length
    locations = torch.zeros(problems, located, dtype=torch.bool)
    count = min(images, located)
    locations[:, : located // count * count : located // count] = True
    inputs = {
        "x": torch.randn(problems, length, size["dim"]),
        "media": torch.randn(problems, images, latents, size["dim_visual"]),
        "media_locations": locations,
    }
    module = GatedCrossAttentionBlock(**size)
    if check:
        package = theirs("GatedCrossAttentionBlock", module, **size)
        compared(module, package, {**inputs, "use_cached_media": decode})
    return Told(module, decode), inputs


def with_kv(module, inputs):
    """The operands of the form that reads projected K and V; None where a module has no such form."""
    with torch.no_grad():
        if isinstance(module, Told):
            return {**inputs, "kv": module.block.attn.to_kv(inputs["media"].flatten(1, 2))}
        if isinstance(module, MllamaLayer):
            return {**inputs, "kv": module.projected(inputs["cross_attention_states"])}
    return None


def q_former(shape, check):
    from transformers import Blip2QFormerConfig
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

    own = shape["config"]
    names = dict(hidden_size="width", num_hidden_layers="layers", num_attention_heads="heads", intermediate_size="ffn_hidden",
                 encoder_hidden_size="encoder_width", cross_attention_frequency="cross_every")
    less = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, encoder_hidden_size=40) if check else {}
    config = Blip2QFormerConfig(**{name: own[ours] for name, ours in names.items()} | less)
    batch, tokens = (2, 9) if check else (shape["batch"], shape["tokens"])
    inputs = {
        "query_embeds": torch.randn(batch, own["queries"], config.hidden_size),
        "encoder_hidden_states": torch.randn(batch, tokens, config.encoder_hidden_size),
    }
    return Blip2QFormerModel(config), inputs


class Filled:
    """What a cross-attention layer asks of a cache that holds its keys and values."""

    class Entry:
        def __init__(self, keys, values):
            self.keys, self.values = keys, values

    def __init__(self, layer, kv):
        self.layers = {layer: self.Entry(kv[0], kv[1])}
        self.keys = kv[0].shape[2]

    def get_seq_length(self):
        """Older versions of transformers ask for it."""
        return self.keys


class MllamaLayer(nn.Module):
    """With the operand that a cross-attention layer ignores."""

    INDEX = 3

    def __init__(self, config):
        super().__init__()
        from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer

        self.layer = MllamaCrossAttentionDecoderLayer(config, layer_idx=self.INDEX)
        # transformers renamed it.
        self.cache = "cache" if "cache" in inspect.signature(self.layer.forward).parameters else "past_key_values"

    def projected(self, states):
        attention = self.layer.cross_attn

        def heads(t):
            return t.unflatten(-1, (attention.num_key_value_heads, -1)).transpose(1, 2)

        return torch.stack([attention.k_norm(heads(attention.k_proj(states))), heads(attention.v_proj(states))])

    def forward(self, cross_attention_states, kv=None, **given):
        if kv is not None:
            cross_attention_states, given[self.cache] = None, Filled(self.INDEX, kv)
        return self.layer(attention_mask=None, cross_attention_states=cross_attention_states, **given)


def mllama_layer(shape, check):
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig

    own = shape["config"]
    names = dict(hidden_size="width", num_attention_heads="heads", num_key_value_heads="kv_heads", intermediate_size="ffn_hidden")
    less = dict(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96)
    config = MllamaTextConfig(**(less if check else {name: own[ours] for name, ours in names.items()}))
    config._attn_implementation = "sdpa"
    batch, length, seen = shape["batch"], shape["rows"], shape["media"] * shape["keys_per_media"]
    length, seen = (min(length, 6), 10) if check else (length, seen)
    inputs = {
        "hidden_states": torch.randn(batch, length, config.hidden_size),
        "cross_attention_states": torch.randn(batch, seen, config.hidden_size),
        "cross_attention_mask": torch.zeros(batch, 1, length, seen),
        "full_text_row_masked_out_mask": torch.ones(batch, 1, length, 1),
    }
    module = MllamaLayer(config)
    # As they are made, both gates are closed and the layer would do nothing.
    nn.init.constant_(module.layer.cross_attn_attn_gate, 0.5)
    nn.init.constant_(module.layer.cross_attn_mlp_gate, 0.5)
    return module, inputs


# The module of each family of cases, by the beginning of its names.
MODULES = {
    "resampler/openflamingo/": resampler,
    "gated_block/openflamingo-": gated_block,
    "qformer/blip2/": q_former,
    "gated_block/llama-3.2-11b": mllama_layer,
}


def build(name, shape, check):
    """The module of a case of this shape and its operands by name; small ones for a check."""
    torch.manual_seed(2)
    for family, make in MODULES.items():
        if name.startswith(family):
            return make(shape, check)
    raise ValueError(f"no public module for {name}")
