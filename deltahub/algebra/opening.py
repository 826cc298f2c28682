"""Opening deltas to compute with: found by folder, reference or link, and every byte checked before the first tensor is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from deltahub.algebra import peft_operand
from deltahub.algebra.operand import Operand
from deltahub.cache.cache import checked, pulled_reference, read_cached
from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.backbone_record import Fingerprint
from deltahub.hub.locating import locate


def open_operands(paths: Sequence[str | os.PathLike[str]]) -> list[Operand]:
    """Open deltas given by folder, reference or link.

    Raises:
        NotFoundError: no source has one of them.
        CheckpointError: a folder is not a delta, or is damaged.
        ConfigError: an adapter of PEFT has a form that cannot be computed with.
        IntegrityError: a file differs from the one saved.
    """
    return [read_cached(partial(locate, path), partial(_read, label=os.fspath(path))) for path in paths]


def _read(folder: Path, label: str) -> Operand:
    if peft_operand.is_adapter(folder):
        return peft_operand.read(folder, label)
    with checked(folder) as (place, config_sha256):
        document = checkpoint.read_document(place, config_sha256)
        manifest = checkpoint.describe(place)  # hashes every file
        record = None
        if checkpoint.BACKBONE in document["files"]:
            record = Fingerprint.from_bytes(checkpoint.verified_bytes(place, checkpoint.BACKBONE, document))
    name = pulled_reference(folder)
    parent = {"digest": str(manifest.digest), **({"name": name} if name else {})}
    table = {entry.name: entry for entry in manifest.tensors}
    return Operand(label, document, record, parent, folder / checkpoint.WEIGHTS, table, {})
