"""Deltas in a directory tree: outputs of trainers, and runs that Weights & Biases keeps in `wandb/`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from deltahub.checkpoint.damaged import is_named_delta
from deltahub.checkpoint.from_files import holds_delta
from deltahub.errors import CheckpointError, DeltaHubError, MissingFolderError
from deltahub.files.atomic import read_limited
from deltahub.files.documents import parse
from deltahub.migrate.candidate import Candidate, usable_metrics

TRAINER_STATE: Final = "trainer_state.json"  # of transformers' Trainer, beside each checkpoint
WANDB_SUMMARY: Final = "wandb-summary.json"  # of a run of Weights & Biases, in its folder `files`
_WANDB_FILES: Final = "files"
_LARGEST: Final = 16 << 20  # bytes of a file with results


def in_folder(root: Path) -> Iterator[Candidate]:
    """Find the folders with a delta in a directory tree, complete or not; links to folders and hidden folders are left out.

    Raises:
        MissingFolderError: there is no such folder.
    """
    if not root.is_dir():
        msg = f"There is no folder {root}. Name a folder, hf:NAMESPACE or mlflow:URI."
        raise MissingFolderError(msg)
    for place, folders, _ in os.walk(root, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folder = Path(place)
        if _may_hold_delta(folder):
            yield Candidate(str(folder), _name(folder, root), folder, metrics=_metrics(folder, root))


def _may_hold_delta(folder: Path) -> bool:
    """Return whether a folder holds a delta, or files of one that cannot be read: publishing it says why."""
    try:
        return holds_delta(folder) or is_named_delta(folder)
    except DeltaHubError:
        return True


def _name(folder: Path, root: Path) -> str:
    """Name a delta after its path below the root, without the folder `files` of each run."""
    parts = [part for part in folder.relative_to(root).parts if part != _WANDB_FILES]
    return "-".join(parts) or root.resolve().name


def _metrics(folder: Path, root: Path) -> dict[str, float]:
    """Return the results of the run that a delta belongs to, and those at its own checkpoint."""
    above = [folder, *folder.parents][: len(folder.relative_to(root).parts) + 1]
    summary = next((path / WANDB_SUMMARY for path in above if (path / WANDB_SUMMARY).is_file()), None)
    metrics = usable_metrics(_object(summary)) if summary else {}
    history = _object(folder / TRAINER_STATE).get("log_history")
    for step in history if isinstance(history, list) else ():
        if isinstance(step, dict):  # later evaluations replace earlier ones
            metrics |= usable_metrics({key: value for key, value in step.items() if str(key).startswith("eval_")})
    return metrics


def _object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is none that can be read."""
    with contextlib.suppress(CheckpointError, ValueError):
        document = parse(read_limited(path, _LARGEST))
        return document if isinstance(document, dict) else {}
    return {}


def _refuse(error: OSError) -> None:
    """Refuse a folder that cannot be listed, whose deltas would be passed over."""
    msg = f"{error.filename} cannot be read ({error.strerror}). Make it readable, or migrate the folders beside it one by one."
    raise CheckpointError(msg) from error
