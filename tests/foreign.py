"""Folders of deltas of other libraries, small and with values that mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

CARD = """---
license: mit
base_model: meta-llama/Llama-2-7b-hf
tags: [sft, "base_model:adapter:meta-llama/Llama-2-7b-hf", lora]
model-index:
- name: mine
  results:
  - task: {type: text-generation}
    dataset: {name: gsm8k}
    metrics: [{type: accuracy, value: 0.5}]
---
# Mine
"""


def tensors(*names: str) -> dict[str, np.ndarray]:
    return {name: np.ones((4, 8), np.float32) for name in names}


def peft(folder: Path) -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": "/home/me/llama", "revision": "abc", "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj"], "bias": None}))
    save_file(tensors("base_model.model.q_proj.lora_A.weight"), folder / "adapter_model.safetensors")


def adapters(folder: Path) -> None:
    config = {"architecture": "lora", "r": 4, "attn_matrices": ["q", "v"]}
    document = {"config": config, "model_name": "bert-base-uncased", "version": "adapters.1.3.0"}
    (folder / "adapter_config.json").write_text(json.dumps(document))
    save_file(tensors("lora_A"), folder / "adapter.safetensors")
    (folder / "head_config.json").write_text("{}")
    save_file(tensors("heads.0.weight"), folder / "model_head.safetensors")


def opendelta(folder: Path) -> None:
    config = {"delta_type": "lora", "backbone_checkpoint_name": "t5-base", "lora_r": 8, "modified_modules": ["q"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}.")


def diffusers(folder: Path) -> None:
    names = ("unet.down.to_q.lora.down.weight", "unet.down.to_q.lora.up.weight", "unet.down.to_q.alpha")
    save_file(tensors(*names), folder / "pytorch_lora_weights.safetensors")


def kohya(folder: Path) -> None:
    names = ("lora_unet_down_to_q.hada_w1_a", "lora_unet_down_to_q.hada_w1_b", "lora_unet_down_to_q.alpha")
    save_file(tensors(*names), folder / "mystyle.safetensors")


def llama_cpp(folder: Path) -> None:
    writer = gguf.GGUFWriter(folder / "lora.gguf", "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 16.0)
    writer.add_array("general.languages", ["en", "de"])
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.ones((4, 8), np.float32))
    writer.add_tensor("blk.0.attn_q.weight.lora_b", np.ones((8, 4), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


FOLDERS = {
    "peft": (peft, {"peft_type": "LORA", "base_revision": "abc", "options": {"r": 4, "target_modules": ["q_proj"]}}),
    "adapters": (adapters, {"method": "lora", "base_model": "bert-base-uncased"}),
    "opendelta": (opendelta, {"method": "lora", "base_model": "t5-base"}),
    "diffusers": (diffusers, {"method": "lora", "options": {"r": 4}}),
    "kohya": (kohya, {"method": "loha"}),
    "gguf": (llama_cpp, {"method": "lora", "model_type": "llama", "options": {"r": 4, "lora_alpha": 16.0}}),
}
