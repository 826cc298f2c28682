"""The resolver of LoRAs for vLLM, with classes of vLLM's names and signatures in its place."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import deltahub
from deltahub.errors import ConfigError
from deltahub.serving.vllm import ALLOWED, register


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LoRAResolver(ABC):
    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None: ...


class Resolvers:
    def __init__(self) -> None:
        self.resolvers: dict[str, LoRAResolver] = {}

    def register_resolver(self, resolver_name: str, resolver: LoRAResolver) -> None:
        self.resolvers[resolver_name] = resolver


@pytest.fixture
def vllm(monkeypatch) -> Resolvers:
    """vLLM's modules as far as a resolver uses them."""
    names = {"vllm": {}, "vllm.lora": {}, "vllm.lora.request": {"LoRARequest": LoRARequest}}
    names["vllm.lora.resolver"] = {"LoRAResolver": LoRAResolver, "LoRAResolverRegistry": Resolvers()}
    for name, content in names.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return names["vllm.lora.resolver"]["LoRAResolverRegistry"]  # type: ignore[return-value]


@pytest.fixture
def resolve(vllm, monkeypatch) -> Any:
    """Resolve a name as vLLM does, with what may be served."""

    def resolved(name: str, allowed: str = "local:*", backbone: str = "google/bert_uncased") -> LoRARequest | None:
        monkeypatch.setenv(ALLOWED, allowed)
        register()
        return asyncio.run(vllm.resolvers["deltahub"].resolve_lora(backbone, name))

    return resolved


def adapter(folder: Path, **options: Any) -> Path:
    """Write a LoRA of PEFT."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["query"], "bias": "none"}
    config |= {"base_model_name_or_path": "google/bert_uncased", "task_type": None, **options}
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    prefix = "base_model.model.encoder.layer.0.attention.self.query"
    tensors = {
        f"{prefix}.lora_A.weight": np.ones((1, 4), np.float32),
        f"{prefix}.lora_B.weight": np.ones((4, 1), np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def pushed(tmp_path) -> None:
    deltahub.push(adapter(tmp_path / "one"), "acme/ner", to="local", aliases=["champion"])


def test_vllm_finds_the_plugin_by_its_entry_point():
    (entry,) = (entry for entry in entry_points(group="vllm.general_plugins") if entry.name == "deltahub")
    assert entry.load() is register


def test_a_request_names_a_delta_by_version_or_alias(resolve, pushed):
    found = resolve("acme/ner@champion")
    assert (found.lora_name, found.lora_int_id) == ("acme/ner@champion", resolve("local:acme/ner@v1").lora_int_id)
    assert (Path(found.lora_path) / "adapter_model.safetensors").exists()


def test_another_content_has_another_number(resolve, pushed, tmp_path):
    deltahub.push(adapter(tmp_path / "two", lora_alpha=2), "acme/ner", to="local")
    assert resolve("acme/ner@v1").lora_int_id != resolve("acme/ner@v2").lora_int_id


def test_a_delta_saved_by_deltahub_is_written_for_peft_once(resolve, tmp_path):
    from deltahub import LoraModel  # late: the other tests need no torch
    from tests.backbones import bert, stir

    backbone = bert()
    delta = LoraModel(backbone, modified_modules=["query"], lora_r=2)
    delta.freeze_module()
    stir(delta)
    delta.save_finetuned(tmp_path / "delta")
    deltahub.push(tmp_path / "delta", "acme/ner", to="local")
    found = resolve("acme/ner", backbone="")
    assert json.loads((Path(found.lora_path) / "adapter_config.json").read_text("utf-8"))["peft_type"] == "LORA"
    assert resolve("acme/ner", backbone="") == found


@pytest.mark.parametrize("name", ["acme/none", "other", "acme/ner@v9", "../../etc", "https://example.org/x", "/tmp"])
def test_a_name_of_no_delta_is_left_to_other_resolvers(resolve, pushed, name):
    assert resolve(name) is None


@pytest.mark.parametrize("allowed", ["local:other", "team:acme", "hf:*"])
def test_only_what_the_operator_lists_is_served(resolve, pushed, allowed):
    assert resolve("local:acme/ner", allowed) is None


def test_without_a_list_nothing_is_registered(vllm, monkeypatch):
    monkeypatch.delenv(ALLOWED, raising=False)
    register()
    assert vllm.resolvers == {}


@pytest.mark.parametrize("allowed", ["local", "local:", "*:acme", "local:../x"])
def test_a_list_that_is_not_well_formed_is_refused(resolve, allowed):
    with pytest.raises(ConfigError, match="expected source:namespace or source:"):
        resolve("acme/ner", allowed)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"base_model_name_or_path": "other/gpt"}, "it was made for other/gpt, and the served model is"),
        ({"use_dora": True}, "vLLM refuses it"),
        ({"modules_to_save": ["classifier"]}, "replaces classifier"),
        ({"peft_type": "IA3"}, "serve LoRA only"),
    ],
)
def test_what_vllm_would_serve_wrongly_is_refused_with_a_line_in_the_log(resolve, tmp_path, caplog, options, reason):
    deltahub.push(adapter(tmp_path / "bad", **options), "acme/bad", to="local")
    with caplog.at_level(logging.ERROR):
        assert resolve("acme/bad") is None
    assert reason in caplog.text
