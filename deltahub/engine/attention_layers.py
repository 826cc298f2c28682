"""Attention modules that a prefix can extend, and the widths of their keys and values."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import nn

from deltahub.engine.attention import AttentionCall, check_implementation, goes_through_interface, install
from deltahub.engine.dummy_inputs import possible_inputs
from deltahub.engine.insertion import Insertion
from deltahub.engine.modules import modules_by_name, own_modules
from deltahub.engine.shapes import meta_copy
from deltahub.engine.site import insert
from deltahub.engine.structure.tree import linear_width
from deltahub.errors import TargetError

Widths = tuple[int, int]  # of all key heads and all value heads together

_PAIRS: Final = (("k_proj", "v_proj"), ("key", "value"), ("k", "v"), ("k_lin", "v_lin"))
_FUSED: Final = ("qkv", "qkv_proj", "query_key_value", "c_attn", "Wqkv")
_HEADS: Final = ("num_key_value_heads", "num_attention_heads", "num_heads", "n_heads")
_HEAD_WIDTHS: Final = ("head_dim", "attention_head_size", "key_value_proj_dim")
_SHOWN: Final = ("bart", "bert", "clip", "gemma3", "gpt2", "llama", "mistral", "opt", "qwen3", "roberta", "t5", "vit")


class _ProbeFinished(Exception):
    """The signal that every requested width is known, so that the rest of the forward pass can be skipped."""


def attentions(backbone: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that use transformers' attention interface, by name, in backbone order.

    Raises:
        TargetError: the backbone has no such module.
    """
    modules = {name: module for name, module in own_modules(backbone) if goes_through_interface(module)}
    if not modules:
        msg = (
            f"No attention of this {type(backbone).__name__} goes through transformers' attention interface, which a prefix "
            f"needs. {_families()}"
        )
        raise TargetError(msg)
    return modules


def _families() -> str:
    """List model types of the installed transformers with such attentions: a few by name, and the number of others."""
    import transformers

    folder = Path(transformers.__file__).parent / "models"
    files = folder.glob("*/modeling_*.py")
    types = {file.parent.name for file in files if "ALL_ATTENTION_FUNCTIONS.get_interface" in file.read_text("utf-8")}
    shown = [name for name in _SHOWN if name in types]
    return f"Those of {', '.join(shown)} and {len(types) - len(shown)} more model types do."


def key_value_widths(backbone: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, Widths]:
    """Return the widths of the keys and values of attentions, all heads together.

    Args:
        modules: attentions of the backbone by name.

    Raises:
        TargetError: the backbone's attention cannot be extended, or neither a module's attributes nor a pseudo forward pass
            reveals its widths.
    """
    install()
    for name, module in modules.items():
        check_implementation(getattr(getattr(module, "config", None), "_attn_implementation", None), name)
    declared_widths = {name: _declared_widths(module) for name, module in modules.items()}
    unknown = [name for name, widths in declared_widths.items() if widths is None]
    probed_widths = _probe(backbone, unknown) if unknown else {}
    return {name: widths or probed_widths[name] for name, widths in declared_widths.items()}


def _declared_widths(module: nn.Module) -> Widths | None:
    """Return the widths of an attention whose layers, head count and head width agree, else None."""
    code = inspect.unwrap(type(module).forward).__code__
    width = _number(module, _HEADS) * _number(module, _HEAD_WIDTHS)
    if not width or {"repeat_kv", "repeat_interleave"} & {*code.co_names}:
        return None  # it repeats heads itself, so the interface receives more heads
    layers = {key: shape[1] for key, layer in module._modules.items() if layer and (shape := linear_width(layer))}
    apart = any(layers.get(key) == layers.get(value) == width for key, value in _PAIRS)
    fused = any(layers.get(key) == 3 * width for key in _FUSED)
    return (width, width) if apart or fused else None


def _number(module: nn.Module, names: tuple[str, ...]) -> int:
    """Return the first of these attributes that is an integer on the module or its config, else 0."""
    for name in names:
        for place in (module, getattr(module, "config", None)):
            try:
                number = getattr(place, name, None)
            except Exception:  # noqa: BLE001, S112  # some configs raise for values that differ between layers
                continue
            if isinstance(number, int):
                return number
    return 0


class _Recorder(Insertion):
    """Insertion that records the widths an attention is called with."""

    def __init__(self, name: str, widths: dict[str, Widths], expected_count: int) -> None:
        super().__init__()
        self.name, self.widths, self.expected_count = name, widths, expected_count

    def attend(self, target: nn.Module, call: AttentionCall) -> AttentionCall:
        """Record the widths and change nothing; end the forward pass once all are known."""
        width, value_width = (states.shape[1] * states.shape[-1] for states in (call.key, call.value))
        self.widths.setdefault(self.name, (width, value_width))
        if len(self.widths) == self.expected_count:
            raise _ProbeFinished
        return call


def _probe(backbone: nn.Module, names: list[str]) -> dict[str, Widths]:
    clone = meta_copy(backbone).eval()
    widths: dict[str, Widths] = {}
    modules = modules_by_name(clone)
    for name in names:
        insert(modules[name], "widths", _Recorder(name, widths, len(names)))
    failures = list(_failures(backbone, clone))
    if missing := [name for name in names if name not in widths]:
        why = f"failed: {failures[0]}" if failures else "never called it"
        msg = (
            f"The widths of keys and values in {missing[0]} ({type(modules[missing[0]]).__name__}) are not known: the module "
            f"does not tell them, and a pseudo forward {why}. Leave it out with exclude_modules."
        )
        raise TargetError(msg) from next(iter(failures), None)
    return widths


def _failures(backbone: nn.Module, clone: nn.Module) -> Iterator[Exception]:
    """Run the copy on one set of inputs after another until every width is known, and yield the errors."""
    for inputs in possible_inputs(backbone):
        try:
            with torch.no_grad():
                clone(**inputs)
        except _ProbeFinished:
            return
        except Exception as error:  # noqa: BLE001  # a model can raise anything on dummy inputs
            yield error
