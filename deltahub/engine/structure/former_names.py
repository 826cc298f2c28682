"""The names that modules had in transformers 4, for addresses that were written then."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def former_names(backbone: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return the former names of modules by today's, where they differ: from transformers' own table of renamed weights."""
    if not hasattr(backbone, "base_model_prefix"):  # not one of transformers' models
        return {}
    # Imported late: only an address without a match needs them.
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange, WeightRenaming

    steps = get_model_conversion_mapping(backbone, add_legacy=False)  # type: ignore[arg-type]  # a backbone may be any module
    renamings = [s for s in steps if isinstance(s, WeightRenaming) and not isinstance(s, PrefixChange)]
    reversed_steps = [step.reverse_transform() for step in reversed(renamings)]
    former = {}
    for name in names:
        key = f"{name}.weight"
        for step in reversed_steps:
            key = step.rename_source_key(key)[0]
        former[name] = key.removesuffix(".weight")
    return {name: old for name, old in former.items() if old != name}
