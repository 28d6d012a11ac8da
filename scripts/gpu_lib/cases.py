"""Which cases are measured, in order of value. Shapes, floors and goals come from the binary: `xattn bench --list --json`."""

import json
import pathlib
import subprocess

# The rows of attention that have a goal.
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
# Of which PyTorch's forms of attention are timed, those with goals first.
ATTENTION = [*BAR_ATTENTION, *(name for name in [*GROWTH, *OTHERS] if name.startswith("attention/"))]
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


# Where a binary lies: packed by scripts/gpu-pack, or built here.
BINARIES = [pathlib.Path("target/device/xattn"), pathlib.Path("target/release/xattn")]
# What the binary says of each case, by name.
CASES = {}


def binary():
    """The one that is used where none is named."""
    return next((path for path in BINARIES if path.exists()), BINARIES[-1])


def load(xattn):
    """Reads what the binary says of its cases: shapes, floors, goals. Needs no device."""
    CASES.clear()
    CASES.update(listed(xattn))


def listed(xattn):
    """The cases of a binary by name, or none where it tells none."""
    try:
        told = subprocess.run([str(xattn), "bench", "--list", "--json"], capture_output=True, text=True, timeout=60, check=True)
        return {case["case"]: case for case in json.loads(told.stdout)["cases"]}
    except (OSError, ValueError, KeyError, subprocess.SubprocessError):
        return {}


def shape_of(name):
    """The sizes of a case, or none of one that the binary has not."""
    return CASES.get(name, {}).get("shape") or {}


def attention(shape):
    """An attention as PyTorch's forms take it: `keys` of both segments; with `media`, each row of text sees the 64 keys of its medium."""
    sizes = {name: shape[name] for name in ("batch", "rows", "heads", "kv_heads", "head_dim")}
    seen = shape["visibility"]
    return sizes | {"keys": sum(shape["keys"]), "media": seen["media"] if seen["rule"] == "same_media" else 0}


def is_phi(record):
    """Whether a case is attention under φ."""
    seen = (record.get("shape") or {}).get("visibility") or {}
    return record["case"].startswith("attention/") and seen.get("rule") == "same_media"


def shares_keys(record):
    """Whether several query heads share a K/V head."""
    shape = record.get("shape") or {}
    return shape.get("kv_heads", 0) < shape.get("heads", 0)


def is_block(name):
    return name.startswith(("gated_block/", "resampler/", "qformer/"))


def is_small(name):
    """A block at batch 1 or a decode step."""
    return is_block(name) and name not in BLOCKS


# Kernels that a variable can name: those that may serve a case. A kernel that is named and cannot
# serve a case is refused by name.
def attention_variants(name):
    case = CASES[name]
    few_rows = ["decode", "decode-split"] if case["shape"]["rows"] == 1 else []
    if is_phi(case):
        return ["general", "media", *few_rows]
    return ["general", "resampler", "resampler-split", "resampler-hopper", *few_rows]
