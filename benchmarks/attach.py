"""Attaching LoRA (r=8, q and v) to a model of BERT-base size, and loading it from a folder, beside a minimal LoRA and PEFT."""

from __future__ import annotations

import copy
import json
import logging
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from measure import interleaved, report
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from deltahub import AutoDeltaModel, LoraModel

ROUNDS = 15


class MinimalLora(nn.Module):
    """A minimal LoRA: a linear layer with two matrices beside it."""

    def __init__(self, base: nn.Linear, rank: int = 8, alpha: int = 16) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(..., n_in)`` to ``(..., n_out)``."""
        result: Tensor = self.base(x) + self.scale * (x @ self.lora_A.T @ self.lora_B.T)
        return result


def minimal_attach(model: nn.Module) -> None:
    """Replace every query and value layer."""
    for name, module in list(model.named_modules()):
        if name.endswith((".query", ".value")):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], MinimalLora(module))


def minimal_load(model: nn.Module, folder: Path) -> None:
    """Attach, then read the tensors."""
    json.loads((folder / "config.json").read_bytes())
    minimal_attach(model)
    model.load_state_dict(load_file(folder / "lora.safetensors"), strict=False)


def pristine(model: nn.Module) -> nn.Module:
    """Copy a model's modules, sharing its parameters."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def main() -> None:
    """Print both tables."""
    from peft import LoraConfig, PeftModel, get_peft_model

    logging.getLogger("deltahub").setLevel(logging.ERROR)  # that a backbone is not checked is what is measured
    torch.set_num_threads(1)
    model = BertModel(BertConfig()).eval()
    peft_config = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])

    def on_copy(action: Callable[[nn.Module], object]) -> Callable[[], Callable[[], object]]:
        def prepare() -> Callable[[], object]:
            fresh = pristine(model)
            return lambda: action(fresh)

        return prepare

    attach = {
        "minimal": on_copy(minimal_attach),
        "deltahub": on_copy(lambda fresh: LoraModel(fresh, modified_modules=["query", "value"])),
        "peft": on_copy(lambda fresh: get_peft_model(fresh, peft_config)),
    }
    report("Attach LoRA to 24 layers, CPU time", interleaved(attach, ROUNDS), "minimal")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fresh = pristine(model)
        minimal_attach(fresh)
        save_file(
            {key: t.contiguous() for key, t in fresh.state_dict().items() if "lora" in key}, folder / "lora.safetensors"
        )
        (folder / "config.json").write_text(json.dumps({"r": 8, "alpha": 16}))
        delta = LoraModel(pristine(model), modified_modules=["query", "value"])
        delta.freeze_module()
        delta.save_finetuned(folder / "delta")
        get_peft_model(pristine(model), peft_config).save_pretrained(folder / "peft")

        load = {
            "minimal": on_copy(lambda fresh: minimal_load(fresh, folder)),
            "deltahub, backbone not checked": on_copy(
                lambda fresh: AutoDeltaModel.from_finetuned(folder / "delta", fresh, check_hash=False)
            ),
            "deltahub, backbone checked": on_copy(lambda fresh: AutoDeltaModel.from_finetuned(folder / "delta", fresh)),
            "peft": on_copy(lambda fresh: PeftModel.from_pretrained(fresh, folder / "peft")),
            "deltahub, the folder of peft": on_copy(
                lambda fresh: AutoDeltaModel.from_finetuned(folder / "peft", fresh, check_hash=False)
            ),
        }
        report("Load LoRA from a folder, CPU time", interleaved(load, ROUNDS), "minimal")


if __name__ == "__main__":
    main()
