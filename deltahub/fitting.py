"""Which deltas fit a backbone: the names and shapes of its tensors, read from the headers of its files, no weights.

A delta fits if every backbone tensor that it leaves alone is there in the same shape. Whether the values are the same is only
known when it is loaded. A model with a head and the model without it differ in one part at the start of every name, e.g. `bert.`;
of tied tensors, only one may be in the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from deltahub.backbone import Fingerprint
from deltahub.checkpoint import BACKBONE, tensor_table
from deltahub.errors import CheckpointError, IntegrityError, NotFoundError
from deltahub.registry.index import Listed
from deltahub.registry.registry import Registry
from deltahub.stores.base import object_key

Shapes = Mapping[str, tuple[int, ...]]


def backbone_shapes(folder: Path) -> Shapes:
    """The tensors in all safetensors files of a backbone's folder.

    Raises:
        CheckpointError: there are none, or one cannot be read.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        msg = f"{folder} holds no *.safetensors file; expected the folder of a backbone, as save_pretrained writes it."
        raise CheckpointError(msg)
    return {entry.name: entry.shape for path in files for entry in tensor_table(path)}


def fits(expected: Fingerprint, found: Shapes) -> bool:
    """Whether a backbone has the tensors that a delta leaves alone.

    Args:
        expected: the delta's record of its backbone.
        found: name to shape.
    """
    return bool(expected.leaves) and any(_fits(expected, found, rename) for rename in _renamings(expected, found))


def fitting(registry: Registry, listed: Iterable[Listed], found: Shapes) -> list[Listed]:
    """Those of the deltas of a registry whose listed version fits a backbone; one that cannot be read never does."""
    known: dict[str, bool] = {}  # by the record, which many deltas share
    kept = []
    for line in listed:
        try:
            entry = next((file for file in registry.manifest(line.digest).files if file.path == BACKBONE), None)
            if entry and entry.sha256 not in known:
                expected = Fingerprint.from_bytes(registry.store.read(object_key(entry.sha256)))
                known[entry.sha256] = fits(expected, found)
        except (IntegrityError, CheckpointError, NotFoundError):
            continue
        if entry and known[entry.sha256]:
            kept.append(line)
    return kept


def _fits(expected: Fingerprint, found: Shapes, rename: Callable[[str], str]) -> bool:
    missing = [leaf for leaf in expected.leaves if found.get(rename(leaf.name)) != leaf.shape]
    there = {(leaf.shape, leaf.hash) for leaf in set(expected.leaves) - set(missing)}
    return all(  # a tied matrix has the bytes of another one; vectors of zeros are equal by chance
        len(leaf.shape) > 1 and not {leaf.name, rename(leaf.name)} & found.keys() and (leaf.shape, leaf.hash) in there
        for leaf in missing
    )


def _renamings(expected: Fingerprint, found: Shapes) -> Iterator[Callable[[str], str]]:
    yield partial(_without, "")
    for first in sorted({name.partition(".")[0] for name in found}):
        yield f"{first}.".__add__
    for first in sorted({leaf.name.partition(".")[0] for leaf in expected.leaves}):
        yield partial(_without, f"{first}.")


def _without(prefix: str, name: str) -> str:
    return name.removeprefix(prefix)
