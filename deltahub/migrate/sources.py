"""Places to migrate from, by their addresses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deltahub.hub.hub import Hub
from deltahub.migrate.candidate import Candidate
from deltahub.migrate.folders import in_folder
from deltahub.migrate.huggingface import of_namespace
from deltahub.migrate.tracking import in_tracking_store

_MLFLOW = "mlflow:"


def candidates_at(hub: Hub, address: str) -> Iterator[Candidate]:
    """Find the deltas at an address: ``hf:NAMESPACE``, ``mlflow:URI``, or a folder with any tree of folders.

    Args:
        hub: the sources; a hub of the Hugging Face protocol with another name than ``hf`` is named in its place.
    """
    if address.startswith(_MLFLOW):
        return in_tracking_store(address.removeprefix(_MLFLOW))
    source, colon, namespace = address.partition(":")
    if colon and "/" not in source and not Path(address).exists():
        return of_namespace(hub, source, namespace)
    return in_folder(Path(address).expanduser())
