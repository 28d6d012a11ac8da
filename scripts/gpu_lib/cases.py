"""Which cases are measured, in order of value, and what is known of them by name (src/profile/cases.rs)."""

import re

# The rows of attention that have a goal (src/profile/targets.rs).
BAR_ATTENTION = """
attention/flamingo-9b/b8-l2048-n8 attention/openflamingo/b8-l2048-n8 attention/flamingo-9b/b8-l2048-n8-kv8 attention/flamingo-9b/b8-l8192-n32
attention/openflamingo-resampler/b32 attention/flamingo-resampler/b32-k2304 attention/flamingo-resampler/b32-k2304-kv4
attention/flamingo-resampler/b1-k2304 attention/flamingo-9b-decode/b64-n1 attention/blip2-cross/b32-k257
""".split()
OUT_PROJECTION = "linear/out-gated/16384x512-4096"
FFN = "ffn/openflamingo-9b/16384"
BLOCKS = """
gated_block/openflamingo-9b/b8-l2048-n8 resampler/openflamingo/b32 qformer/blip2/b32 gated_block/llama-3.2-11b/l512-k6404
""".split()
# Bound by launches: batch 1 and decode steps.
SMALL = """
resampler/openflamingo/b1 qformer/blip2/b1 gated_block/openflamingo-9b/b1-l2048-n8 gated_block/openflamingo-9b-decode/n8
gated_block/openflamingo-3b-decode/n4 gated_block/llama-3.2-11b-decode/k6404
""".split()
BARS = [*BAR_ATTENTION, OUT_PROJECTION, FFN, *BLOCKS, *SMALL]
# How time grows with images, text and batch.
GROWTH = """
attention/openflamingo/b8-l2048-n1 attention/openflamingo/b8-l2048-n64 attention/openflamingo/b8-l2048-n4 attention/openflamingo/b8-l2048-n16
attention/openflamingo/b8-l512-n8 attention/openflamingo/b8-l8192-n8 attention/openflamingo/b1-l2048-n8 attention/openflamingo/b32-l2048-n8
""".split()
OTHERS = """
attention/llama-3.2-11b/l256-k6404 attention/llama-3.2-11b-decode/k6404 attention/openflamingo-decode/b16-n4 ffn/openflamingo-9b/64
linear/gelu/16384x4096-16384 linear/down-gated/16384x16384-4096 linear/decode/1x4096-4096
media_index/l2048-n32/b8 norm/layer/512x2048 norm/rms/512x4096 norm/rms-heads/512x32x128 gated_residual/2048x4096
""".split()
# Every case of the stage bench, with its dtype.
BENCHED = [("bf16", name) for name in [*BARS, *GROWTH, *OTHERS]]
BENCHED += [(dtype, name) for dtype in ("f16", "f32") for name in [*BAR_ATTENTION, "linear/gelu/64x1024-4096"]]
# What an emulator does in seconds.
EMULATED = ["attention/openflamingo-decode/b1-n4", "media_index/l2048-n32/b8", "gated_residual/512x2048"]
# Cases of which each kernel that serves them is timed.
VARIED_ATTENTION = [*BAR_ATTENTION, "attention/openflamingo-decode/b16-n4", "attention/llama-3.2-11b-decode/k6404",
                    "attention/llama-3.2-11b/l256-k6404"]
VARIED_PRODUCTS = [OUT_PROJECTION, FFN, "ffn/openflamingo-9b/64", "linear/gelu/16384x4096-16384", "linear/down-gated/16384x16384-4096",
                   "linear/decode/1x4096-4096"]
VARIED_BLOCKS = [*SMALL, *BLOCKS]
# Through Vulkan, beside CUDA.
ON_WGPU = [*BAR_ATTENTION, OUT_PROJECTION, FFN, *BLOCKS, *SMALL]


def attention(batch, rows, heads, head_dim, keys, media=0, kv_heads=None):
    """Shapes of a case: `keys` in all; with `media`, each row of text sees the 64 keys of its medium."""
    return dict(batch=batch, rows=rows, heads=heads, kv_heads=kv_heads or heads, head_dim=head_dim, keys=keys, media=media)


def over_media(batch, rows, media, heads, head_dim, kv_heads=None):
    return attention(batch, rows, heads, head_dim, 64 * media, media, kv_heads)


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
    "attention/openflamingo-decode/b16-n4": over_media(16, 1, 4, 8, 64),
    "attention/blip2-cross/b32-k257": attention(32, 32, 12, 64, 257),
    # All tiles of the one image are visible.
    "attention/llama-3.2-11b/l256-k6404": attention(1, 256, 32, 128, 4 * 1601, kv_heads=8),
    "attention/llama-3.2-11b-decode/k6404": attention(1, 1, 32, 128, 4 * 1601, kv_heads=8),
    "attention/openflamingo/b8-l2048-n1": over_media(8, 2048, 1, 8, 64),
    "attention/openflamingo/b8-l2048-n4": over_media(8, 2048, 4, 8, 64),
    "attention/openflamingo/b8-l2048-n16": over_media(8, 2048, 16, 8, 64),
    "attention/openflamingo/b8-l2048-n64": over_media(8, 2048, 64, 8, 64),
    "attention/openflamingo/b8-l512-n8": over_media(8, 512, 8, 8, 64),
    "attention/openflamingo/b8-l8192-n8": over_media(8, 8192, 8, 8, 64),
    "attention/openflamingo/b1-l2048-n8": over_media(1, 2048, 8, 8, 64),
    "attention/openflamingo/b32-l2048-n8": over_media(32, 2048, 8, 8, 64),
}


def is_phi(name):
    """Whether a case is attention under φ."""
    return ATTENTION.get(name, {}).get("media", 0) > 0


def is_block(name):
    return name.startswith(("gated_block/", "resampler/", "qformer/"))


def is_small(name):
    """A block at batch 1 or a decode step."""
    return is_block(name) and name not in BLOCKS


def product(name):
    """Rows, terms, columns and form of a product with an epilogue, by its name; or None."""
    found = re.fullmatch(r"linear/(out-gated|down-gated|decode|gelu)/(\d+)x(\d+)-(\d+)", name)
    return (*(int(n) for n in found.groups()[1:]), found[1]) if found else None


def ffn(name):
    """Rows, width and hidden width of a gated FFN, by its name; or None."""
    found = re.fullmatch(r"ffn/openflamingo-9b/(\d+)", name)
    return (int(found[1]), 4096, 16384) if found else None


# Kernels that a variable can name: those that may serve a case. A kernel that is named and cannot
# serve a case is refused by name.
def attention_variants(name):
    case = ATTENTION[name]
    few_rows = ["decode", "decode-split"] if case["rows"] == 1 else []
    if case["media"]:
        return ["general", "media", *few_rows]
    return ["general", "resampler", "resampler-split", "resampler-hopper", *few_rows]
