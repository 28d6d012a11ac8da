"""Times public PyTorch modules and xattn's cases of the same work, turn by turn (see scripts/vs-torch).

Each turn is one call in PyTorch and one here; the figures are medians over the turns, the ratio is PyTorch's time over ours.
Weights and inputs are random on both sides: only the work is the same, `xattn verify` and the fixtures compare the values.
"""

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import time

from whole_file import write_text


def open_flamingo_helpers():
    """The file with OpenFlamingo's modules, without its package, whose imports want much more."""
    package = importlib.util.find_spec("open_flamingo")
    path = f"{package.submodule_search_locations[0]}/src/helpers.py"
    spec = importlib.util.spec_from_file_location("open_flamingo_helpers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def resampler(torch, shape):
    own = shape["config"]
    sizes = dict(dim=own["width"], depth=own["layers"], dim_head=own["head_dim"], heads=own["heads"], num_latents=own["latents"])
    module = open_flamingo_helpers().PerceiverResampler(**sizes)
    x = torch.randn(shape["batch"], 1, 1, shape["tokens"], own["width"])
    return lambda: module(x)


def gated_block(torch, shape):
    own, length, images = shape["config"], shape["rows"], shape["media"]
    sizes = dict(dim=own["width"], dim_visual=own["media_width"], dim_head=own["head_dim"], heads=own["heads"])
    module = open_flamingo_helpers().GatedCrossAttentionBlock(**sizes)
    torch.nn.init.constant_(module.attn_gate, 0.5)
    torch.nn.init.constant_(module.ff_gate, 0.5)
    x = torch.randn(shape["batch"], length, own["width"])
    media = torch.randn(shape["batch"], images, shape["keys_per_media"], own["media_width"])
    # A decode step: where media stood in the text before it.
    cached = length == 1
    located = images if cached else length
    locations = torch.zeros(shape["batch"], located, dtype=torch.bool)
    locations[:, :: max(located // images, 1)] = True
    locations[:, located // images * images:] = False
    return lambda: module(x, media, media_locations=locations, use_cached_media=cached)


def q_former(torch, shape):
    from transformers import Blip2QFormerConfig
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

    own = shape["config"]
    module = Blip2QFormerModel(Blip2QFormerConfig(
        hidden_size=own["width"], num_hidden_layers=own["layers"], num_attention_heads=own["heads"], intermediate_size=own["ffn_hidden"],
        encoder_hidden_size=own["encoder_width"], cross_attention_frequency=own["cross_every"],
    )).eval()
    queries = torch.randn(shape["batch"], own["queries"], own["width"])
    image = torch.randn(shape["batch"], shape["tokens"], own["encoder_width"])
    return lambda: module(query_embeds=queries, encoder_hidden_states=image)


def mllama_layer(torch, shape):
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig
    from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer

    own, rows, keys = shape["config"], shape["rows"], shape["media"] * shape["keys_per_media"]
    config = MllamaTextConfig(hidden_size=own["width"], num_attention_heads=own["heads"], num_key_value_heads=own["kv_heads"],
                              intermediate_size=own["ffn_hidden"])
    config._attn_implementation = "sdpa"
    module = MllamaCrossAttentionDecoderLayer(config, layer_idx=3).eval()
    x, vision = torch.randn(1, rows, own["width"]), torch.randn(1, keys, own["media_width"])
    mask = torch.zeros(1, 1, rows, keys)
    text_rows = torch.ones(1, 1, rows, 1)

    def run():
        return module(
            hidden_states=x,
            cross_attention_states=vision,
            cross_attention_mask=mask,
            attention_mask=None,
            full_text_row_masked_out_mask=text_rows,
        )

    return run


# Our case, and what makes PyTorch's form of the same work. A prefill counts φ, projects the media
# and runs the block, as the modules do.
CASES = {
    "resampler/openflamingo/b1": resampler,
    "resampler/openflamingo/b8": resampler,
    "qformer/blip2/b1": q_former,
    "prefill/llama-3.2-11b/l256-k1601": mllama_layer,
}
# The curves over the number of images. At a decode step PyTorch's module projects all media again;
# ours reads the filled cache.
IMAGES = [1, 4, 16, 64]
CURVES = ["prefill/openflamingo-3b/l512-n", "gated_block/openflamingo-3b-decode/n"]


def groups():
    """Cases that take turns with each other, so that the machine's clock is the same for all points of a curve."""
    for case, make in CASES.items():
        yield {case: make}
    for stem in CURVES:
        yield {f"{stem}{images}": gated_block for images in IMAGES}


def shapes(command):
    """The sizes of each case of the xattn command."""
    told = subprocess.run([command, "bench", "--list", "--json"], capture_output=True, text=True, check=True).stdout
    return {case["case"]: case["shape"] for case in json.loads(told)["cases"]}


class Ours:
    """The xattn command, which runs a case once for each line of its input."""

    def __init__(self, command, case, dtype, threads):
        arguments = [command, "bench", "--turns", "--filter", case, "--dtype", dtype, "--threads", str(threads)]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.memory = json.loads(self.process.stdout.readline())

    def turn(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Pair:
    """A case on both sides, and the times so far in milliseconds."""

    def __init__(self, case, run, ours):
        self.case, self.run, self.ours = case, run, ours
        self.mine, self.theirs = [], []

    def turn(self):
        start = time.perf_counter()
        self.run()
        self.theirs.append(1e3 * (time.perf_counter() - start))
        self.mine.append(self.ours.turn())

    def row(self):
        row = {"case": self.case, "ours_ms": statistics.median(self.mine), "torch_ms": statistics.median(self.theirs)}
        row["ratio"] = row["torch_ms"] / row["ours_ms"]
        # Beside each other in time, so the spread of the ratios shows the machine's noise.
        ratios = sorted(t / o for t, o in zip(self.theirs, self.mine))
        row["ours_best_ms"], row["torch_best_ms"] = min(self.mine), min(self.theirs)
        row["ratio_quartiles"] = [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]]
        return row | self.ours.memory


def compare(torch, command, cases, sizes, dtype, threads, seconds):
    """A row for each of some cases, which take turns. `sizes`: of all cases of the command."""
    pairs = [Pair(case, make(torch, sizes[case]), Ours(command, case, dtype, threads)) for case, make in cases.items()]
    with torch.inference_mode():
        for pair in pairs:
            pair.turn()
            pair.turn()
            pair.mine.clear()
            pair.theirs.clear()
        began, turns = time.perf_counter(), 0
        while turns < 5 or (time.perf_counter() - began < seconds * len(pairs) and turns < 200):
            for pair in pairs:
                pair.turn()
            turns += 1
    for pair in pairs:
        pair.ours.close()
    return [pair.row() for pair in pairs]


def plot(rows, path):
    """The curves as SVG: time over that of our own for one image."""
    panels = [("prefill, 512 rows", "prefill/openflamingo-3b/l512-n"), ("decode step", "gated_block/openflamingo-3b-decode/n")]
    width, height, left, top = 300, 190, 60, 40
    points = {row["case"]: row for row in rows}
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * (width + left) + 70} {height + top + 50}" '
           'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#ffffff"/>']
    for panel, (title, stem) in enumerate(panels):
        x0, y0 = left + panel * (width + left + 40), top + height
        unit = points[f"{stem}1"]["ours_ms"]
        curves = {key: [points[f"{stem}{n}"][key] / unit for n in IMAGES] for key in ("torch_ms", "ours_ms")}
        # Powers of two on both axes.
        steps = math.ceil(math.log2(max(curves["torch_ms"])))
        place = lambda n, v: (x0 + width * math.log2(n) / 6, y0 - height * math.log2(v) / steps)
        svg.append(f'<text x="{x0}" y="{top - 18}" font-weight="bold">gated block, {title}</text>')
        for step in range(steps + 1):
            y = y0 - height * step / steps
            svg.append(f'<path d="M{x0} {y:.0f}h{width}" stroke="#dddddd"/>')
            svg.append(f'<text x="{x0 - 8}" y="{y + 4:.0f}" text-anchor="end">{2 ** step}x</text>')
        for n in IMAGES:
            svg.append(f'<text x="{place(n, 1)[0]:.0f}" y="{y0 + 18}" text-anchor="middle">{n}</text>')
        svg.append(f'<text x="{x0 + width / 2:.0f}" y="{y0 + 36}" text-anchor="middle">images</text>')
        for key, name, colour in (("torch_ms", "PyTorch", "#b45309"), ("ours_ms", "xattn", "#1d4ed8")):
            line = [place(n, max(v, 1)) for n, v in zip(IMAGES, curves[key])]
            path_data = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
            svg.append(f'<polyline points="{path_data}" fill="none" stroke="{colour}" stroke-width="2"/>')
            svg += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in line]
            svg.append(f'<text x="{line[0][0] + 8:.0f}" y="{line[0][1] - 8:.0f}" fill="{colour}">{name}</text>')
    write_text(path, "\n".join(svg) + "\n</svg>\n")


def machine(command, threads):
    """What the numbers were made on."""
    first = subprocess.run([command, "devices"], capture_output=True, text=True, check=True).stdout
    cpu = next(line for line in first.splitlines() if line.startswith("cpu"))
    # Of this checkout, from which scripts/vs-torch builds the command; not of the folder that it is
    # called in.
    here = os.path.dirname(os.path.abspath(__file__))
    commit = subprocess.run(["git", "-C", here, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {"device": " ".join(cpu.split()[2:]), "threads": threads, "date": time.strftime("%Y-%m-%d"), "commit": commit}


def main():
    parser = argparse.ArgumentParser(prog="scripts/vs-torch", description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="also write the rows here")
    parser.add_argument("--plot", metavar="FILE", help="also draw the curves over the number of images here, as SVG")
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides (2)")
    parser.add_argument("--dtype", choices=["f32", "f16", "bf16"], default="f32", help="weights and activations of both sides (f32)")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only cases whose name contains it")
    parser.add_argument("--seconds", type=float, default=15, help="time per case (15)")
    parser.add_argument("--xattn", default="xattn", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plot and arguments.filter:
        parser.error("--plot needs all cases; leave --filter out")
    import torch

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    # Of modules and inputs that are made from here on.
    torch.set_default_dtype({"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[arguments.dtype])
    print(f"PyTorch {torch.__version__}, {arguments.threads} threads, {arguments.dtype}, medians of turns taken alternately")
    print(f"{'case':<40} {'ours ms':>10} {'torch ms':>10} {'ratio':>7} {'quartiles':>13} {'of bests':>9} {'scratch / largest activation':>30}")
    rows, sizes = [], shapes(arguments.xattn)
    for group in groups():
        chosen = {case: make for case, make in group.items() if arguments.filter in case}
        for row in compare(torch, arguments.xattn, chosen, sizes, arguments.dtype, arguments.threads, arguments.seconds):
            rows.append(row)
            low, high = row["ratio_quartiles"]
            scratch, largest = row["scratch_bytes"] / 2**20, row["largest_activation_bytes"] / 2**20
            print(
                f"{row['case']:<40} {row['ours_ms']:>10.2f} {row['torch_ms']:>10.2f} {row['ratio']:>7.2f} "
                f"{low:>6.2f}-{high:<6.2f} {row['torch_best_ms'] / row['ours_best_ms']:>9.2f} {scratch:>10.1f} / {largest:.1f} MiB = {scratch / largest:.2f}",
                flush=True,
            )
    if not rows:
        sys.exit("no case has that in its name")
    if arguments.json:
        header = {"torch": torch.__version__, "dtype": arguments.dtype} | machine(arguments.xattn, arguments.threads)
        write_text(arguments.json, json.dumps(header | {"cases": rows}, indent=1) + "\n")
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
