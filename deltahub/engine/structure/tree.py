"""The modules of a backbone, indexed for inference: which are linear, and which are inside which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

Shape = tuple[int, int]


def linear_width(module: nn.Module) -> Shape | None:
    """Return the input and output width of a layer that multiplies by one matrix, else None."""
    attributes = module.__dict__
    n_in, n_out = attributes.get("in_features"), attributes.get("out_features")
    if isinstance(n_in, int) and isinstance(n_out, int) and "weight" in module._parameters:
        return n_in, n_out
    weight = module._parameters.get("weight")
    if type(module).__name__ == "Conv1D" and weight is not None:
        n_in, n_out = weight.shape
        return n_in, n_out
    return None


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a layer norm of any kind with trainable parameters."""
    kind = type(module).__name__
    excluded_kinds = ("Batch", "Group", "Instance", "NoNorm")  # MobileBERT's NoNorm only scales
    return (
        (kind.endswith("Norm") or "LayerNorm" in kind)
        and not any(word in kind for word in excluded_kinds)
        and bool(module._parameters)
    )


def calls_attention_interface(module: nn.Module) -> bool:
    """Return whether a module's forward goes through transformers' attention interface."""
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def reads_weights_itself(module: nn.Module) -> bool:
    """Return whether an attention passes the weights of its layers to PyTorch's, so that the layers are never called."""
    codes = (getattr(member, "__code__", None) for member in vars(type(module)).values())
    return any(code is not None and "multi_head_attention_forward" in code.co_names for code in codes)


def ancestors(name: str) -> Iterator[str]:
    """Yield the names around a name, nearest first, without the root."""
    while name := name.rpartition(".")[0]:
        yield name


@dataclass(frozen=True)
class Tree:
    """An index of the modules to recognise.

    Attributes:
        modules: real name to module, parents before children.
        linears: name of each linear layer to its widths.
        inside: name of a module to the names of the linear layers inside it.
    """

    modules: Mapping[str, nn.Module]
    linears: Mapping[str, Shape]
    inside: Mapping[str, list[str]]

    @classmethod
    def of(cls, modules: Mapping[str, nn.Module]) -> Tree:
        """Build the index in one pass over the modules."""
        linears: dict[str, Shape] = {}
        inside: dict[str, list[str]] = {}
        for name, module in modules.items():
            if (shape := linear_width(module)) is not None:
                linears[name] = shape
                for above in ancestors(name):
                    inside.setdefault(above, []).append(name)
        return cls(modules, linears, inside)

    def children(self, name: str) -> Iterator[tuple[str, str]]:
        """Yield the key and the full name of each child."""
        for key in self.modules[name]._modules:
            full = f"{name}.{key}" if name else key
            if full in self.modules:
                yield key, full

    def under(self, name: str) -> Iterator[str]:
        """Yield the names of all modules inside a module, parents first."""
        for _, child in self.children(name):
            yield child
            yield from self.under(child)

    def sole_linear(self, name: str) -> str | None:
        """Return the module itself if it is linear, or the only linear layer inside it, else None."""
        if name in self.linears:
            return name
        inner = self.inside.get(name, ())
        return inner[0] if len(inner) == 1 else None

    def has_matrix(self, name: str) -> bool:
        """Return whether a module itself has a tensor with two dimensions or more."""
        return any(p is not None and p.dim() > 1 for p in self.modules[name]._parameters.values())
