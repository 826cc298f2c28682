"""A delta's tensors held against its config before they are written for PEFT: no backbone need be there to refuse what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from deltahub.checkpoint.address import value_for
from deltahub.engine.filling import not_finite
from deltahub.errors import CheckpointError
from deltahub.formats.peft.adapter import by_part

_VECTOR: Final[tuple[int | None, ...]] = (None,)
_FLAGS: Final = frozenset({"lora_kept"})

Shapes = Mapping[str, tuple[int | None, ...]]  # by parameter; None for a width that only the backbone tells


def check_shapes(document: Mapping[str, Any], shares: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse a delta whose tensors are not those that its config announces.

    Args:
        document: the delta's config.
        shares: its tensors by module.

    Raises:
        CheckpointError: the message names the first tensor that does not fit.
    """
    wrong = [clause for module, leaves in shares.items() for clause in _faults(document, module, leaves)]
    if not shares:
        wrong = ["there is none of the delta itself"]
    if wrong:
        msg = f"The tensors do not fit the delta's config: {wrong[0]}. Save the delta again."
        raise CheckpointError(msg)


def _faults(document: Mapping[str, Any], module: str, leaves: Mapping[str, Tensor]) -> list[str]:
    """Return a clause for each tensor of a module that is missing, unexpected, not finite, or of another shape or dtype."""
    shapes = _shapes(document, module)
    # Norms may have no bias, embeddings no bias of B; one module holds the matrices that all share.
    required = (
        shapes.keys() - {"lora_bias", "vera_A", "vera_B"} if document["delta_type"] != "layer_norm" else {"weight"}
    )
    wrong = []
    for label, share in (by_part(leaves) if all("." in leaf for leaf in leaves) else {"": leaves}).items():
        place = f"{module}.{label}".strip(".")
        wrong += [f"{place} has no {key}" for key in sorted(required - share.keys())]
        wrong += [f"{place} has {key!r}, which is not part of it" for key in share.keys() - shapes.keys()]
        for key in share.keys() & shapes.keys():
            # A stack of matrices has one more dimension in front, as long as that of all its tensors.
            shape = tuple(share[key].shape)[-2 if share[key].dim() == 3 else 0 :]
            if len(shape) != len(shapes[key]) or any(
                size not in (None, have) for size, have in zip(shapes[key], shape, strict=True)
            ):
                expected_shape = ", ".join("..." if size is None else str(size) for size in shapes[key])
                wrong.append(f"{key} of {place} is {list(shape)}, expected [{expected_shape}]")
            elif share[key].is_floating_point() == (key in _FLAGS):
                wrong.append(
                    f"{key} of {place} is {share[key].dtype}, expected {'flags' if key in _FLAGS else 'floats'}"
                )
    return wrong or not_finite({f"{module}.{key}": tensor for key, tensor in leaves.items()})


def _shapes(document: Mapping[str, Any], module: str) -> Shapes:
    """Return the shapes of a method's tensors on a module, or on each part of a fused one."""
    kind = document["delta_type"]
    if kind == "lora":
        rank = value_for(document.get("rank_pattern") or {}, module, int(document.get("lora_r", 8)))
        pair: Shapes = {"lora_A": (rank, None), "lora_B": (None, rank)}
        vectors = {"use_dora": "lora_magnitude_vector", "use_bias": "lora_bias"}
        return {**pair, **{leaf: _VECTOR for option, leaf in vectors.items() if document.get(option)}}
    if kind == "adalora":
        rank = value_for(document.get("rank_pattern") or {}, module, int(document.get("init_r", 12)))
        return {"lora_A": (rank, None), "lora_B": (None, rank), "lora_E": (rank,), "lora_kept": (rank,)}
    if kind == "vera":
        rank = int(document.get("r", 256))
        return {"vera_lambda_d": (rank,), "vera_lambda_b": _VECTOR, "vera_A": (rank, None), "vera_B": (None, rank)}
    if kind == "token_rows":
        return {"token_rows": (len(document["token_indices"]), None)}
    if kind == "soft_prompt":
        return {"soft_embeds": (document.get("soft_token_num"), None)}
    return {"ia3_l": _VECTOR} if kind == "ia3" else {"weight": _VECTOR, "bias": _VECTOR}
