"""The fit of a delta to a backbone, judged by the names, dtypes and shapes in its files' headers, without weights.

A delta fits if the backbone has every tensor that the delta does not change, in the same shape. The values are compared only on
loading. A model with a head and the model without it differ in one part at the start of every name, e.g. `bert.`; of tied tensors,
the files may contain only one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from deltahub.checkpoint.backbone_record import (
    EXACT,
    INCOMPATIBLE,
    OTHER_PRECISION,
    OTHER_QUANTISATION,
    Difference,
    Fingerprint,
    Leaf,
)
from deltahub.checkpoint.manifest import TensorEntry
from deltahub.checkpoint.quantised_weight import methods, split
from deltahub.checkpoint.safetensors_header import tensor_table
from deltahub.errors import CheckpointError

Tensors = Mapping[str, TensorEntry]

SAME_STRUCTURE: Final = "same structure"
FITS: Final = (SAME_STRUCTURE, OTHER_PRECISION, OTHER_QUANTISATION)  # the levels that allow loading
_PARTS: Final = ("weight.absmax", "SCB", "qweight", "W_q")  # tensors that only a quantised layer has
_DTYPES: Final = {
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "BF16": "bfloat16",
    "BOOL": "bool",
    **{f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
}


def backbone_folder(backbone: str) -> Path:
    """Return the folder of a backbone, given the folder or a model id in huggingface_hub's cache; nothing is downloaded.

    Raises:
        CheckpointError: there is neither.
    """
    folder = Path(backbone).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download  # late import: 100 ms, not needed for a folder
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(backbone, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        msg = (
            f"{backbone} is neither the folder of a backbone nor a model in the cache of Hugging Face. Point to a folder that "
            "save_pretrained wrote, or fetch the model first: hf download MODEL"
        )
        raise CheckpointError(msg) from error


def backbone_tensors(folder: Path) -> Tensors:
    """Read the tensors in all safetensors files of a backbone's folder, by name.

    Raises:
        CheckpointError: there are none, or one cannot be read.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        msg = f"{folder} holds no *.safetensors file; expected the folder of a backbone, as save_pretrained writes it."
        raise CheckpointError(msg)
    return {entry.name: entry for path in files for entry in tensor_table(path)}


def fit(expected: Fingerprint, tensors: Tensors) -> Difference:
    """Compare a delta with a backbone, as far as headers allow.

    Args:
        expected: the delta's record of its backbone.
        tensors: the tensors of the backbone's files.

    Returns:
        ``"same structure"``, ``"other precision"``, ``"other quantisation"``, ``"resized embeddings"`` or ``"incompatible"``, with a
        description.
    """
    if not expected.leaves:
        return Difference(INCOMPATIBLE, "the delta has no record of its backbone")
    if expected.is_quantised != any(name.endswith(_PARTS) for name in tensors):
        return _fit_dequantised(expected, tensors)
    rename, prefix = min(_renamings(expected, tensors), key=lambda renaming: _missing(expected, tensors, renaming[0]))
    entries = {leaf: tensors[rename(leaf.name)] for leaf in expected.leaves if rename(leaf.name) in tensors}
    expected_leaves = (leaf for leaf in expected.leaves if leaf in entries or not _is_tied(leaf, entries, tensors))
    expected_fingerprint = replace(expected, leaves=tuple(expected_leaves))
    actual_leaves = tuple(_actual_leaf(leaf, entry) for leaf, entry in entries.items())
    actual_fingerprint = replace(expected_fingerprint, leaves=actual_leaves)
    difference = expected_fingerprint.compare(actual_fingerprint)
    if difference.level == EXACT:
        difference = Difference(SAME_STRUCTURE, "the values are compared when it is loaded")
    return replace(difference, detail=f"{difference.detail}{prefix}")


def _fit_dequantised(expected: Fingerprint, tensors: Tensors) -> Difference:
    """Compare a delta of a quantised backbone with a dense one, or the other way round; headers tell no values."""
    weights, names = split(expected.quantised, (leaf.name for leaf in expected.leaves))
    leaves = [leaf for leaf in expected.leaves if leaf.name in names]
    leaves += [Leaf(weight.name, weight.quantisation.dtype, weight.shape, "") for weight in weights.values()]
    difference = fit(Fingerprint(tuple(leaves)), _dense(tensors))
    if difference.level not in FITS or (expected.is_quantised and not weights):
        return difference
    forms = f"it is recorded on {methods(expected.quantised) or 'dense weights'}, and this one is {'dense' if weights else 'quantised'}"
    return Difference(
        OTHER_QUANTISATION, f'{forms}; the values are compared when it is loaded with check_hash="dequantised"'
    )


def _dense(tensors: Tensors) -> Tensors:
    """Return tensors with one weight of unknown shape in place of the parts of each quantised one."""
    layers = {name.removesuffix(part) for name in tensors for part in _PARTS if name.endswith(part)}
    others = {n: t for n, t in tensors.items() if n.endswith(".bias") or not _prefixes(n) & layers}
    return others | {f"{layer}weight": TensorEntry(f"{layer}weight", "", ()) for layer in layers}


def _prefixes(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join([*parts[:count], ""]) for count in range(1, len(parts))}


def _missing(expected: Fingerprint, tensors: Tensors, rename: Callable[[str], str]) -> int:
    return sum(rename(leaf.name) not in tensors for leaf in expected.leaves)


def _is_tied(leaf: Leaf, entries: Mapping[Leaf, TensorEntry], tensors: Tensors) -> bool:
    """Return whether a missing matrix has the bytes of another one; vectors of zeros would be equal by chance."""
    is_copy = any((candidate.shape, candidate.hash) == (leaf.shape, leaf.hash) for candidate in entries)
    return len(leaf.shape) > 1 and leaf.name not in tensors and is_copy


def _actual_leaf(leaf: Leaf, entry: TensorEntry) -> Leaf:
    """Convert a tensor of the files to a leaf; its values are assumed equal, and its shape if it is unknown."""
    return leaf if not entry.dtype else replace(leaf, shape=entry.shape, dtype=_DTYPES.get(entry.dtype, entry.dtype))


def _renamings(expected: Fingerprint, tensors: Tensors) -> Iterator[tuple[Callable[[str], str], str]]:
    """Yield possible renamings from the delta's names to the files' names, each with a description."""
    yield partial(_without, ""), ""
    for first in sorted({name.partition(".")[0] for name in tensors}):
        yield f"{first}.".__add__, f"; in the files under {first}."
    for first in sorted({leaf.name.partition(".")[0] for leaf in expected.leaves}):
        yield partial(_without, f"{first}."), f"; in the files not under {first}."


def _without(prefix: str, name: str) -> str:
    return name.removeprefix(prefix)
