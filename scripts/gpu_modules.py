"""Public PyTorch modules for scripts/gpu_peers.py, by the names of cases.

OpenFlamingo's modules are written out here after its `src/helpers.py`, with the same names of parameters, since the package wants much that a
machine for measurements lacks; where it is installed, `--check` compares both. The others come from the package transformers.
"""

import importlib.util

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

    def forward(self, x, media, media_locations, use_cached_media):
        images, latents = media.shape[1:3]
        k, v = self.to_kv(media.flatten(1, 2)).chunk(2, dim=-1)
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

    def forward(self, x, media, media_locations, use_cached_media=False):
        x = self.attn(x, media, media_locations, use_cached_media) * self.attn_gate.tanh() + x
        return self.ff(x) * self.ff_gate.tanh() + x


class Cached(nn.Module):
    """A decode step: the module projects all media again, where ours reads the filled cache."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, media, media_locations):
        return self.block(x, media, media_locations, use_cached_media=True)


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


def resampler(batch):
    def build(check):
        size = dict(dim=64, depth=2, dim_head=16, heads=2, num_latents=8) if check else dict(dim=1024, depth=6, dim_head=64, heads=8, num_latents=64)
        module = PerceiverResampler(**size)
        inputs = {"x": torch.randn(2 if check else batch, 1, 1, 16 if check else 256, size["dim"])}
        if check:
            compared(module, theirs("PerceiverResampler", module, **size), inputs)
        return module, inputs

    return build


def gated_block(dim, batch, rows, images, cached=False):
    def build(check):
        size = dict(dim=64, dim_visual=32, dim_head=16, heads=2) if check else dict(dim=dim, dim_visual=1024, dim_head=64, heads=8)
        length, problems, latents = (min(rows, 12), 2, 5) if check else (rows, batch, 64)
        located = images if cached else length
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
            compared(module, package, {**inputs, "use_cached_media": cached})
        return (Cached(module) if cached else module), inputs

    return build


def q_former(batch):
    def build(check):
        from transformers import Blip2QFormerConfig
        from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

        less = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96) if check else {}
        config = Blip2QFormerConfig(encoder_hidden_size=40 if check else 1408, **less)
        inputs = {
            "query_embeds": torch.randn(2 if check else batch, 32, config.hidden_size),
            "encoder_hidden_states": torch.randn(2 if check else batch, 9 if check else 257, config.encoder_hidden_size),
        }
        return Blip2QFormerModel(config), inputs

    return build


def mllama_layer(check):
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig
    from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer

    less = dict(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96)
    size = less if check else dict(hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336)
    config = MllamaTextConfig(**size)
    config._attn_implementation = "sdpa"
    rows, keys = (6, 10) if check else (512, 4 * 1601)
    inputs = {
        "hidden_states": torch.randn(1, rows, config.hidden_size),
        "cross_attention_states": torch.randn(1, keys, config.hidden_size),
        "cross_attention_mask": torch.zeros(1, 1, rows, keys),
        "full_text_row_masked_out_mask": torch.ones(1, 1, rows, 1),
    }

    class Layer(nn.Module):
        """With the operand that a cross-attention layer ignores."""

        def __init__(self):
            super().__init__()
            self.layer = MllamaCrossAttentionDecoderLayer(config, layer_idx=3)

        def forward(self, **given):
            return self.layer(attention_mask=None, **given)

    return Layer(), inputs


# By the names of src/profile/cases.rs.
NAMES = {
    "resampler/openflamingo/b32": resampler(32),
    "resampler/openflamingo/b1": resampler(1),
    "gated_block/openflamingo-9b/b8-l2048-n8": gated_block(4096, 8, 2048, 8),
    "gated_block/openflamingo-9b-decode/n8": gated_block(4096, 1, 1, 8, cached=True),
    "gated_block/openflamingo-3b-decode/n4": gated_block(2048, 1, 1, 4, cached=True),
    "qformer/blip2/b32": q_former(32),
    "qformer/blip2/b1": q_former(1),
    "gated_block/llama-3.2-11b/l512-k6404": mllama_layer,
}


def build(name, check):
    """The module of a case and its operands by name; small ones for a check."""
    torch.manual_seed(2)
    return NAMES[name](check)
