"""Writer of DeltaHub's own format: the files of a saved delta as they are."""

from __future__ import annotations

from deltahub.checkpoint.checkpoint import CARD, CONFIG, Checkpoint, verified_bytes
from deltahub.files.atomic import WHOLE, read_limited
from deltahub.formats.backbone import Backbone


def files(saved: Checkpoint, backbone: Backbone) -> dict[str, bytes]:
    """Return the files of a delta, by name.

    Args:
        backbone: not used.

    Raises:
        CheckpointError, IntegrityError: a file is missing, or was changed since the delta was read.
    """
    names = [name for name in saved.document["files"] if "/" not in name]
    content = {name: verified_bytes(saved.folder, name, saved.document) for name in names}
    if (card := saved.folder / CARD).is_file():
        content[CARD] = read_limited(card, WHOLE)
    return {**content, CONFIG: read_limited(saved.folder / CONFIG, WHOLE)}
