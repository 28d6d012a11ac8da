#!/usr/bin/env python3
"""The model of src/flamingo.rs in PyTorch, around open_flamingo's own PerceiverResampler and GatedCrossAttentionBlock.

Computes the whole prompt and the reply without caches or chunks, in float64 (the truth) and float32 (the yardstick), and writes
flamingo.json. Needs torch, einops, einops-exts and open-flamingo:

    pip install torch einops einops-exts && pip install --no-deps open-flamingo==2.0.1
    python flamingo.py flamingo.json
"""

import datetime
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import math
import pathlib
import sys

import numpy as np
import torch
from torch.nn import functional as F

MEDIA_WIDTH, FEATURES, LATENTS, RESAMPLER_LAYERS = 1024, 256, 64, 6
WIDTH, HEADS, LAYERS, BRIDGE_HEADS, VOCABULARY = 2048, 16, 2, 8, 258
IMAGE, END_OF_CHUNK, IMAGES = 256, 257, 3
PROMPT = (
    "Captions: <image>A cat sleeps on a red sofa.<|endofchunk|><image>Two dogs run along the beach.<|endofchunk|><image>A bowl of"
)
SPLIT, REPLY = 50, 8


def helpers():
    """open_flamingo/src/helpers.py, without the rest of the package (and what that imports)."""
    spec = importlib.util.find_spec("open_flamingo")
    path = pathlib.Path(spec.submodule_search_locations[0]) / "src" / "helpers.py"
    module_spec = importlib.util.spec_from_file_location("open_flamingo_helpers", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def tokens(text):
    ids = []
    while text:
        for word, number in (("<image>", IMAGE), ("<|endofchunk|>", END_OF_CHUNK)):
            if text.startswith(word):
                ids.append(number)
                text = text[len(word) :]
                break
        else:
            ids.append(ord(text[0]))
            text = text[1:]
    return ids


def values(name, shape):
    """See src/weights.rs."""
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = ((key ^ byte) * 0x100000001B3) % 2**64
    n = math.prod(shape)
    with np.errstate(over="ignore"):
        z = np.uint64(key) + (np.arange(n, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    u = (z >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1.0
    if len(shape) == 2 and name.endswith(".weight") and "embedding" not in name:
        offset, scale = 0.0, math.sqrt(3.0 / shape[1])
    elif len(shape) == 1 and name.endswith(".weight"):
        offset, scale = 1.0, 0.1
    elif len(shape) == 1 and name.endswith("bias"):
        offset, scale = 0.0, 0.1
    elif list(shape) == [1] and name.endswith("gate"):
        offset, scale = 0.5, 0.25
    else:
        offset, scale = 0.0, 1.0
    return torch.from_numpy((offset + u * scale).astype(np.float32)).reshape(shape)


def fill(module, prefix):
    module.load_state_dict({name: values(prefix + name, t.shape) for name, t in module.state_dict().items()})
    return module.eval()


class Model:
    def __init__(self, dtype):
        public, inner = helpers(), 64
        self.dtype = dtype
        self.resampler = fill(
            public.PerceiverResampler(
                dim=MEDIA_WIDTH, depth=RESAMPLER_LAYERS, dim_head=inner, heads=BRIDGE_HEADS, num_latents=LATENTS
            ),
            "perceiver.",
        ).to(dtype)
        self.blocks = [
            fill(
                public.GatedCrossAttentionBlock(dim=WIDTH, dim_visual=MEDIA_WIDTH, dim_head=inner, heads=BRIDGE_HEADS),
                f"gated.{i}.",
            ).to(dtype)
            for i in range(LAYERS)
        ]
        self.t = lambda name, *shape: values(name + ".weight", shape).to(dtype)
        self.embedding = self.t("embedding", VOCABULARY, WIDTH)
        self.norm = self.t("norm", WIDTH)
        self.head = self.t("head", VOCABULARY, WIDTH)
        self.layers = [
            {
                "norm_1": self.t(f"layers.{i}.norm_1", WIDTH),
                "norm_2": self.t(f"layers.{i}.norm_2", WIDTH),
                "qkv": self.t(f"layers.{i}.qkv", 3 * WIDTH, WIDTH),
                "out": self.t(f"layers.{i}.out", WIDTH, WIDTH),
                "up": self.t(f"layers.{i}.up", 4 * WIDTH, WIDTH),
                "down": self.t(f"layers.{i}.down", WIDTH, 4 * WIDTH),
            }
            for i in range(LAYERS)
        ]
        features = values("features", (1, IMAGES, FEATURES, MEDIA_WIDTH)).to(dtype)
        with torch.no_grad():
            self.media = self.resampler(features.unsqueeze(2))

    @torch.no_grad()
    def logits(self, ids):
        ids = torch.tensor([ids])
        x, locations = self.embedding[ids], ids == IMAGE
        rows = ids.shape[1]
        slopes = torch.tensor([2.0 ** (-8.0 * (h + 1) / HEADS) for h in range(HEADS)], dtype=self.dtype)
        distance = torch.arange(rows)[:, None] - torch.arange(rows)[None, :]
        bias = -slopes[:, None, None] * distance.to(self.dtype)
        bias = bias.masked_fill(distance < 0, float("-inf"))
        for block, layer in zip(self.blocks, self.layers):
            x = block(x, self.media, media_locations=locations)
            q, k, v = F.linear(F.layer_norm(x, (WIDTH,), layer["norm_1"]), layer["qkv"]).chunk(3, dim=-1)
            q, k, v = (t.reshape(1, rows, HEADS, -1).transpose(1, 2) for t in (q, k, v))
            scores = q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS) + bias
            out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(1, rows, WIDTH)
            x = x + F.linear(out, layer["out"])
            hidden = F.gelu(F.linear(F.layer_norm(x, (WIDTH,), layer["norm_2"]), layer["up"]))
            x = x + F.linear(hidden, layer["down"])
        return F.linear(F.layer_norm(x, (WIDTH,), self.norm), self.head)[0]


def main():
    prompt = tokens(PROMPT)
    truth = Model(torch.float64)
    ids, reply = list(prompt), []
    for _ in range(REPLY):
        best = int(truth.logits(ids)[-1].argmax())
        reply.append(best)
        ids.append(best)
    # Rows whose successor the model is asked for: the end of each chunk, and each token of the
    # reply.
    rows = [SPLIT - 1, len(prompt) - 1] + [len(prompt) + i for i in range(REPLY)]
    exact = truth.logits(ids)[rows]
    single = Model(torch.float32).logits(ids)[rows].double()
    best_two = exact[1:-1].topk(2, dim=-1).values
    print("reply", reply, "smallest lead", float((best_two[:, 0] - best_two[:, 1]).min()))
    result = {
        "provenance": {
            "script": "examples/candle/flamingo.py",
            "date": datetime.date.today().isoformat(),
            "torch": torch.__version__,
            "open_flamingo": importlib.metadata.version("open_flamingo"),
            "classes": "open_flamingo.src.helpers.PerceiverResampler, GatedCrossAttentionBlock",
        },
        "prompt": prompt,
        "split": SPLIT,
        "reply": reply,
        "torch_f32_error": float((exact - single).abs().max()),
        "logits": [[float(f"{x:.10g}") for x in row] for row in exact.tolist()],
    }
    text = json.dumps(result, indent=1)
    pathlib.Path(sys.argv[1]).write_text(text + "\n")
    print("torch f32 error", result["torch_f32_error"], "largest", float(exact.abs().max()))


if __name__ == "__main__":
    main()
