"""Make full-size checkpoints with random weights through transformers, and compare `xattn run` with PyTorch on them.

For each family: build the public class (bridge at full size; towers and language model as small as the class allows), draw
seeded weights, write it with save_pretrained in shards, compute the bridge's outputs with the public modules, run `xattn run` on
the same files, compare, delete the files. `xattn inspect` must count as many parameters as the public modules have.

Truth is the public module in float64 on the weights and inputs of the dtype. The error of an output is its largest absolute
difference from the truth, over the truth's largest absolute value. Bound, for every output: twice the error of the same public
module run by PyTorch in the dtype. That is the rule of docs/numerics.md with PyTorch as the yardstick, without its allowance of two ulp.

Exit status 1 when a bound is exceeded or a count differs.
"""

import argparse
import datetime
import gc
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time

from whole_file import write_text


def fill(module, seed):
    """Weights of such sizes that activations stay of order one; gates open, norms near one."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if "alpha" in name or "gate" in leaf and p.numel() <= 1:
            p.data.normal_(0.7, 0.1, generator=generator)
        elif leaf == "bias":
            p.data.normal_(0, 0.1, generator=generator)
        elif "norm" in name.lower() or (p.dim() == 1):
            p.data.normal_(1, 0.1, generator=generator)
        elif leaf in ("latents", "query_tokens"):
            p.data.normal_(0, 1, generator=generator)
        else:
            p.data.normal_(0, p.shape[-1] ** -0.5, generator=generator)


def build(cls, config, prune=None):
    """The class with memory only for what is left after pruning."""
    import torch

    with torch.device("meta"):
        model = cls(config)
    if prune:
        prune(model)
    model = model.to_empty(device="cpu").eval()
    for name, buffer in model.named_buffers():
        # Not saved, so that nothing else fills them.
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return model


SMALL_VISION = dict(intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14)


def blip2(instruct):
    import torch
    import transformers as t

    text = dict(model_type="opt", hidden_size=2560, ffn_dim=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8,
                word_embed_proj_dim=2560, max_position_embeddings=8)
    vision = dict(SMALL_VISION, hidden_size=1408)
    name, config_class = ("InstructBlip", t.InstructBlipConfig) if instruct else ("Blip2", t.Blip2Config)
    config = config_class(vision_config=vision, qformer_config=dict(encoder_hidden_size=1408), text_config=text,
                          num_query_tokens=32)
    config._attn_implementation = "eager"
    model = build(getattr(t, f"{name}ForConditionalGeneration"), config)
    g = torch.Generator().manual_seed(1)
    inputs = {"features": torch.randn(2, 257, 1408, generator=g)}
    if instruct:
        inputs["text_ids"] = torch.randint(0, 30522, (2, 16), generator=g)
        inputs["text_mask"] = torch.ones(2, 16, dtype=torch.uint8)
        inputs["text_mask"][1, 10:] = 0

    def truth(model, inputs):
        features = inputs["features"]
        queries = model.query_tokens.expand(features.shape[0], -1, -1).to(features.dtype)
        image_mask = torch.ones(features.shape[:2], dtype=torch.long)
        if instruct:
            mask = torch.cat([torch.ones(queries.shape[:2], dtype=torch.long), inputs["text_mask"].long()], 1)
            hidden = model.qformer(input_ids=inputs["text_ids"], attention_mask=mask, query_embeds=queries,
                                   encoder_hidden_states=features, encoder_attention_mask=image_mask)
        else:
            hidden = model.qformer(query_embeds=queries, encoder_hidden_states=features, encoder_attention_mask=image_mask)
        hidden = hidden.last_hidden_state[:, :32]
        return {"queries": hidden, "projected": model.language_projection(hidden)}

    parts = lambda m: [m.qformer, m.language_projection]
    return model, inputs, truth, parts, []


def idefics():
    import torch
    import transformers as t

    config = t.IdeficsConfig(
        vocab_size=8, additional_vocab_size=1, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, cross_layer_interval=4, use_resampler=True, qk_layer_norms=True,
        vision_config=dict(SMALL_VISION, embed_dim=1280),
        perceiver_config=dict(use_resampler=True, resampler_n_latents=64, resampler_depth=6, resampler_n_heads=16,
                              resampler_head_dim=96, qk_layer_norms_perceiver=True))
    config._attn_implementation = "eager"
    model = build(t.IdeficsForVisionText2Text, config, lambda m: setattr(m.model, "layers", torch.nn.ModuleList()))
    g = torch.Generator().manual_seed(2)
    rows, media = 48, 2
    mask = torch.zeros(1, rows, media, dtype=torch.uint8)
    mask[:, 4:20, 0] = 1
    mask[:, 20:40, 1] = 1  # rows 0..4 and 40..48 see no image
    inputs = {"features": torch.randn(1, media, 257, 1280, generator=g), "text": torch.randn(1, rows, 4096, generator=g),
              "image_attention_mask": mask}

    def truth(model, inputs):
        features = inputs["features"]
        media = model.model.perceiver_resampler(features.flatten(0, 1)).reshape(1, 2, 64, 1280)
        allowed = inputs["image_attention_mask"].repeat_interleave(64, -1).bool()
        bias = torch.zeros(allowed.shape, dtype=features.dtype).masked_fill(~allowed, torch.finfo(features.dtype).min)
        gate = inputs["image_attention_mask"].bool().any(-1).to(features.dtype)
        out = {"media": media}
        for i, block in enumerate(model.model.gated_cross_attn_layers):
            result = block(inputs["text"], image_hidden_states=media.reshape(1, 128, 1280),
                           image_attention_mask=bias[:, None], cross_attention_gate=gate)
            out[f"text.{i}"] = result[0] if isinstance(result, tuple) else result
        return out

    parts = lambda m: [m.model.perceiver_resampler, *m.model.gated_cross_attn_layers]
    return model, inputs, truth, parts, []


def mllama():
    import torch
    import transformers as t

    text = dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=40, num_attention_heads=32,
                num_key_value_heads=8, vocab_size=8, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    vision = dict(hidden_size=1280, intermediate_size=8, num_hidden_layers=1, num_global_layers=1, attention_heads=1,
                  image_size=28, patch_size=14, vision_output_dim=7680, intermediate_layers_indices=[0],
                  supported_aspect_ratios=[[1, 1], [1, 2], [2, 1], [2, 2], [1, 3], [3, 1], [1, 4], [4, 1]])
    config = t.MllamaConfig(text_config=text, vision_config=vision)
    config._attn_implementation = config.text_config._attn_implementation = "eager"

    def prune(m):
        layers = m.model.language_model.layers
        for i in range(len(layers)):
            if i not in config.text_config.cross_attention_layers:
                layers[i] = torch.nn.Identity()

    model = build(t.MllamaForConditionalGeneration, config, prune)
    g = torch.Generator().manual_seed(3)
    rows, tiles, patches = 24, 4, 101  # the number of keys does not change the weights: 404 instead of 6404
    mask = torch.zeros(1, rows, 1, tiles, dtype=torch.uint8)
    mask[:, 3:, :, :3] = 1  # rows 0..3 see nothing, the last tile is padding
    inputs = {"features": torch.randn(1, 1, tiles, patches, 7680, generator=g),
              "text": torch.randn(1, rows, 4096, generator=g), "cross_attention_mask": mask}

    def truth(model, inputs):
        media = model.model.multi_modal_projector(inputs["features"])
        keys = media.reshape(1, tiles * patches, 4096)
        seen = inputs["cross_attention_mask"].reshape(1, rows, tiles).repeat_interleave(patches, -1).bool()[:, None]
        dtype = keys.dtype
        full = seen.any(-1)[..., None].to(dtype)
        bias = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min) * full
        out = {"media": media}
        for i in config.text_config.cross_attention_layers:
            result = model.model.language_model.layers[i](
                inputs["text"], cross_attention_states=keys, cross_attention_mask=bias, attention_mask=None,
                full_text_row_masked_out_mask=full, position_embeddings=None)
            out[f"text.{i}"] = result[0] if isinstance(result, tuple) else result
        return out

    parts = lambda m: [m.model.multi_modal_projector,
                       *(m.model.language_model.layers[i] for i in config.text_config.cross_attention_layers)]
    return model, inputs, truth, parts, ["--transformers-empty-rows"]


def idefics2():
    import torch
    import transformers as t

    config = t.Idefics2Config(
        vision_config=dict(SMALL_VISION, hidden_size=1152),
        perceiver_config=dict(hidden_size=4096, resampler_n_latents=64, resampler_depth=3, resampler_n_heads=16,
                              resampler_head_dim=96, num_key_value_heads=4, rms_norm_eps=1e-5),
        text_config=dict(model_type="mistral", hidden_size=4096, intermediate_size=14336, num_hidden_layers=1,
                         num_attention_heads=32, num_key_value_heads=8, vocab_size=8, pad_token_id=0))
    config._attn_implementation = config.perceiver_config._attn_implementation = "eager"
    model = build(t.Idefics2ForConditionalGeneration, config,
                  lambda m: setattr(m.model.text_model, "layers", torch.nn.ModuleList()))
    g = torch.Generator().manual_seed(4)
    mask = torch.ones(2, 196, dtype=torch.uint8)
    mask[1, 150:] = 0
    inputs = {"features": torch.randn(2, 196, 1152, generator=g), "feature_mask": mask}
    truth = lambda model, i: {"media": model.model.connector(i["features"], i["feature_mask"].bool())[:, None]}
    return model, inputs, truth, lambda m: [m.model.connector], []


FAMILIES = {"blip-2": lambda: blip2(False), "instructblip": lambda: blip2(True), "idefics-9b": idefics,
            "llama-3.2-11b": mllama, "idefics2": idefics2}


def run_in(dtype, model, parts, inputs, truth):
    """The public modules in a dtype, one part at a time in float64: only that part's weights are widened."""
    import torch

    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    hooks = []
    stored = next(parts[0].parameters()).dtype

    def widen(module, *_):
        module.to(dtype)

    def narrow(module, *_):
        module.to(stored)

    for part in parts:
        hooks.append(part.register_forward_pre_hook(widen))
        hooks.append(part.register_forward_hook(narrow))
    # Only the parts compute, except for the query tokens' cast.
    with torch.no_grad():
        out = {k: v.double() for k, v in truth(model, cast).items()}
    for hook in hooks:
        hook.remove()
    return out


def relative(found, expected):
    return {k: ((found[k].double().reshape(expected[k].shape) - expected[k]).abs().max() / expected[k].abs().max()).item()
            for k in expected}


def compare(name, arguments):
    import torch
    from safetensors.torch import load_file, save_file

    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        for dtype_name in arguments.dtypes:
            dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype_name]
            torch.set_default_dtype(dtype)
            model, inputs, truth, parts, flags = FAMILIES[name]()
            model = model.to(dtype)
            fill(model, 5)
            torch.set_default_dtype(torch.float32)
            inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
            checkpoint, outputs = os.path.join(folder, "checkpoint"), os.path.join(folder, "out.safetensors")
            model.save_pretrained(checkpoint, max_shard_size=arguments.shard)
            shards = len([f for f in os.listdir(checkpoint) if f.endswith(".safetensors")])
            save_file({k: v.contiguous() for k, v in inputs.items()}, os.path.join(folder, "in.safetensors"))
            expected = run_in(torch.float64, model, parts(model), inputs, truth)
            torchs = relative(run_in(dtype, model, parts(model), inputs, truth), expected)
            parameters = sum(p.numel() for part in parts(model) for p in part.parameters())
            parameters += model.query_tokens.numel() if hasattr(model, "query_tokens") else 0
            del model
            gc.collect()
            start = time.time()
            subprocess.run([arguments.xattn, "run", "--checkpoint", checkpoint, "--inputs",
                            os.path.join(folder, "in.safetensors"), "--output", outputs, "--dtype", dtype_name,
                            "--device", arguments.device, *flags],
                           check=True)
            seconds = time.time() - start
            inspected = subprocess.run([arguments.xattn, "inspect", "--brief", checkpoint], check=True,
                                       capture_output=True, text=True).stdout
            counted = int(next(line.split()[1] for line in inspected.splitlines() if line.startswith("parameters")))
            found = load_file(outputs)
            if set(found) != set(expected):
                raise SystemExit(f"{name}: outputs {sorted(found)}, expected {sorted(expected)}")
            ours = relative(found, expected)
            # Nearest to its bound.
            worst = max(ours, key=lambda k: ours[k] / torchs[k])
            ok = all(ours[k] <= 2 * torchs[k] for k in ours) and counted == parameters
            rows.append(dict(family=name, dtype=dtype_name, shards=shards, parameters=counted, outputs=len(ours), worst=worst,
                             error=ours[worst], pytorch=torchs[worst], bound=2 * torchs[worst], ok=ok))
            print("{family:14} {dtype:5} {shards:3} shards {parameters:>11} parameters, {outputs} outputs: xattn {error:.2e} "
                  "({worst}), PyTorch {pytorch:.2e}, bound {bound:.2e}, run {seconds:.1f} s  {verdict}".format(
                      verdict="ok" if ok else "FAILED", seconds=seconds, **rows[-1]), flush=True)
            if counted != parameters:
                print(f"    parameters: PyTorch has {parameters}", flush=True)
            print("    " + inspected.replace("\n", "\n    ").rstrip(), flush=True)
            shutil.rmtree(checkpoint)
            del expected, found, inputs
            gc.collect()
    return rows


def about():
    """When, where and with what: the head of the table."""
    import torch
    import transformers

    def said(*command):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    model = [line.split(":")[1].strip() for line in said("lscpu").splitlines() if line.startswith("Model name")]
    dirty = " and changes" if said("git", "status", "--porcelain", "--untracked-files=no") else ""
    return {"date": datetime.date.today().isoformat(), "machine": f"{(model or [platform.machine()])[0]}, {os.cpu_count()} cores",
            "commit": said("git", "rev-parse", "HEAD") + dirty, "command": "scripts/compare-with-pytorch",
            "versions": {"python": platform.python_version(), "torch": torch.__version__,
                         "transformers": transformers.__version__}}


def main():
    parser = argparse.ArgumentParser(prog="scripts/compare-with-pytorch", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)} (default: all)")
    parser.add_argument("--dtypes", nargs="+", default=["f32", "bf16"], choices=["f32", "bf16"])
    parser.add_argument("--device", default="cpu", help="device of `xattn run` (cpu); wgpu needs a build with that feature")
    parser.add_argument("--shard", default="256MB", help="largest shard that save_pretrained writes")
    parser.add_argument("--scratch", help="folder for checkpoints (up to 8 GB at a time), deleted afterwards")
    parser.add_argument("--json", metavar="FILE", help="also write the table here")
    parser.add_argument("--xattn", default="xattn", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = [f for f in arguments.families if f not in FAMILIES]
    if unknown:
        parser.error(f"unknown family {', '.join(unknown)}; known: {', '.join(FAMILIES)}")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    rows = []
    for name in arguments.families or FAMILIES:
        rows += compare(name, arguments)
    if arguments.json:
        write_text(arguments.json, json.dumps(about() | {"rows": rows}, indent=1) + "\n")
    sys.exit(0 if all(row["ok"] for row in rows) else 1)


if __name__ == "__main__":
    main()
