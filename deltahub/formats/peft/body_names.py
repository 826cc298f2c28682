"""Names in an adapter of a model with a head for the model without it, and the other way round.

    an adapter of BertForSequenceClassification on a BertModel    bert.encoder.layer.0 -> encoder.layer.0; the classifier is left out
    an adapter of BertModel on a BertForSequenceClassification    encoder.layer.0 -> bert.encoder.layer.0

transformers calls the model inside by the class attribute `base_model_prefix`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class BodyNames:
    """How the names of a backbone and those in an adapter differ; by default they are the same.

    Attributes:
        outer: the model's name in the adapter, which the backbone has not: the backbone is that model.
        inner: the model's name in the backbone, which the adapter has not: the adapter is of that model.
    """

    outer: str = ""
    inner: str = ""

    @classmethod
    def of(cls, names: Collection[str], backbone: nn.Module, modules: Collection[str]) -> BodyNames:
        """Compare names in an adapter with those of a backbone.

        Args:
            names: names of tensors in the adapter, without PEFT's prefix.
            modules: names of the backbone's modules.
        """
        prefix = str(getattr(backbone, "base_model_prefix", "") or "")
        within = [name.startswith(f"{prefix}.") for name in names]
        if not prefix or (all(within) and prefix in modules):
            return cls()
        if prefix not in modules:
            return cls(outer=prefix) if any(within) else cls()
        known = any(f"{prefix}.{'.'.join(name.split('.')[:2])}" in modules for name in names)
        return cls(inner=prefix) if known and not any(within) else cls()

    def here(self, name: str) -> str | None:
        """Return the name in the backbone for one in the adapter; None if it is outside of the backbone."""
        if self.outer:
            return name.removeprefix(f"{self.outer}.") if name.startswith(f"{self.outer}.") else None
        return f"{self.inner}.{name}" if self.inner else name

    def there(self, name: str) -> str:
        """Return the name in the adapter's model for one in the backbone."""
        return f"{self.outer}.{name}" if self.outer else name.removeprefix(f"{self.inner}.") if self.inner else name
