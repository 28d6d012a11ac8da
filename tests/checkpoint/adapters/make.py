"""Adapters as peft saves them, and what its merge_and_unload makes of them: the fixtures of tests/checkpoint/adapters.rs.

    python tests/checkpoint/adapters/make.py      (torch, transformers, peft; the files were made with peft 0.21.2 and torch 2.15.0 on a CPU)

Each folder holds model.safetensors (the base; several have the one beside the folders), adapter_config.json and adapter_model.safetensors (as save_pretrained writes them) and
merged.safetensors: what differs from the base in the state dict of PeftModel.from_pretrained(base, folder).merge_and_unload(). Elements of lora_A and lora_B are multiples
of 1/8 below 2, so that the sums of their products are exact in f32 in any order: merged weights are then the same bits everywhere.
"""
import json
import pathlib

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

HERE = pathlib.Path(__file__).parent


class Connector(torch.nn.Module):
    """Idefics2's connector, as far as it has linear layers, and a bit of a language model."""

    def __init__(self, conv1d):
        super().__init__()
        linear = (lambda i, o: Conv1D(o, i)) if conv1d else torch.nn.Linear
        names = {"q_proj": (6, 6), "k_proj": (6, 4), "v_proj": (6, 4), "o_proj": (6, 6)}
        self.model = torch.nn.Module()
        self.model.connector = torch.nn.Module()
        self.model.connector.layers = torch.nn.ModuleList(
            [torch.nn.ModuleDict({name: linear(*size) for name, size in names.items()}) for _ in range(2)]
        )
        self.model.connector.norm = torch.nn.LayerNorm(6)
        self.model.words = torch.nn.Embedding(5, 6)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, x):
        return x


def values(tensor, seed, exact):
    generator = torch.Generator().manual_seed(seed)
    if exact:
        return (torch.randint(-15, 16, tensor.shape, generator=generator) / 8).to(tensor.dtype)
    return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)


def make(name, dtype=torch.float32, conv1d=False, **config):
    folder = HERE / name
    folder.mkdir(exist_ok=True)

    def base():
        model = Connector(conv1d).to(dtype)
        for i, parameter in enumerate(model.parameters()):
            parameter.data = values(parameter, i, False)
        return model

    shared = dtype == torch.float32 and not conv1d
    save_file({k: v.clone() for k, v in base().state_dict().items()}, (HERE if shared else folder) / "model.safetensors")
    trained = get_peft_model(base(), LoraConfig(**config))
    for i, (key, parameter) in enumerate(trained.named_parameters()):
        if "lora_" in key:
            parameter.data = values(parameter, 100 + i, True)
        elif parameter.requires_grad:
            parameter.data = values(parameter, 200 + i, False)
    trained.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    settings["base_model_name_or_path"] = "Org/connector"
    settings["target_modules"] = sorted(settings["target_modules"])
    path.write_text(json.dumps(settings) + "\n")
    merged = PeftModel.from_pretrained(base(), folder).merge_and_unload()
    before = base().state_dict()
    changed = {k: v.clone() for k, v in merged.state_dict().items() if not torch.equal(v, before[k])}
    save_file(changed, folder / "merged.safetensors")


if __name__ == "__main__":
    every = ["q_proj", "k_proj", "v_proj", "o_proj"]
    make(
        "patterns",
        target_modules=every,
        r=3,
        lora_alpha=5,
        rank_pattern={"layers.1.q_proj": 2, r".*\.[kv]_proj": 4, "q_proj": 5},
        alpha_pattern={"^model.connector.layers.0.q_proj": 7, "connector.layers.0.k_proj": 0.75, "layers.1.q_proj": 2},
    )
    make("rank_stabilized", dtype=torch.bfloat16, target_modules=every, r=3, lora_alpha=7, use_rslora=True)
    make("conv1d", conv1d=True, target_modules=every, r=2, lora_alpha=3, fan_in_fan_out=True)
    make("biases", target_modules=["q_proj", "k_proj"], r=2, lora_alpha=3, bias="lora_only")
    make("whole", target_modules=["v_proj", "words"], r=2, lora_alpha=3, bias="all", modules_to_save=["head", "norm"])
