"""The linear layers of a backbone by their kind, for the address ``"all-linear"``: quantised ones and Conv1D too, the output head not.

The rule is PEFT's, with a head of several layers and the classifiers of timm left out as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from deltahub.engine.site import CHILD
from deltahub.engine.structure.tree import linear_width

_HEADS = ("score", "classifier")  # of models of transformers without output embeddings
_WIDTHS = (("in_features", "out_features"), ("infeatures", "outfeatures"))  # quantised layers of GPTQ have the second


def linear_layers(backbone: nn.Module, modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the real names of the linear layers outside the output head.

    Args:
        modules: the backbone's modules by name.
    """
    heads = [id(head) for head in _heads(backbone)]
    left_out = tuple(f"{name}." for name, module in modules.items() if id(module) in heads)
    names: list[str] = []
    for name, module in modules.items():
        if not _is_linear(module) or f"{name}.".startswith(left_out):
            continue
        if not names or not name.startswith(f"{names[-1]}."):  # PEFT's own layers have linear layers inside
            names.append(name)
    return names


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, (nn.Bilinear, NonDynamicallyQuantizableLinear)):
        return False  # the second is inside nn.MultiheadAttention, which reads its weight itself
    if linear_width(module) is not None:
        return True
    widths = [[getattr(module, name, None) for name in pair] for pair in _WIDTHS]
    has_tensor = bool(module._parameters or module._buffers)
    is_leaf = has_tensor and not module._modules.keys() - {CHILD}
    return (is_leaf or hasattr(module, "base_layer")) and any(all(type(w) is int for w in pair) for pair in widths)


def _heads(backbone: nn.Module) -> Iterator[nn.Module]:
    for getter in ("get_output_embeddings", "get_classifier"):
        try:
            head = getattr(backbone, getter)()
        except Exception:  # noqa: BLE001, S112  # a model without a head can raise anything
            continue
        if isinstance(head, nn.Module):
            yield head
            return
    yield from (head for name in _HEADS if isinstance(head := getattr(backbone, name, None), nn.Module))
