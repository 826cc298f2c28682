"""What is pushed, with all that can be checked before a source is asked to store anything."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from deltahub.errors import ReferenceSyntaxError
from deltahub.manifest import Manifest
from deltahub.naming import default_name
from deltahub.reference import Reference, check_alias, check_tag


@dataclass(frozen=True)
class Ready:
    """A checkpoint folder that may be pushed.

    Attributes:
        folder: where its files lie.
        manifest: of its files, each checked.
        reference: its name, without a version; its source is where it goes, None for the default one.
        tags: those saved in it, and those given.
        aliases: movable names to point to it.
    """

    folder: Path
    manifest: Manifest
    reference: Reference
    tags: tuple[str, ...]
    aliases: tuple[str, ...]


def ready(
    folder: Path,
    name: str | None = None,
    *,
    tags: Collection[str] = (),
    aliases: Collection[str] = (),
    to: str | None = None,
) -> Ready:
    """Check a folder, every file of it, and what it shall be called.

    Args:
        name: ``"[source:]namespace/name"``; by default made from its task and backbone.
        tags: labels and key=value pairs, beside those saved in the checkpoint.
        to: the source to publish to.

    Raises:
        CheckpointError: the folder holds no whole delta.
        IntegrityError: a file is not the one that was saved.
        ReferenceSyntaxError: the name, a tag or an alias is not well formed.
    """
    checked = [check_tag(tag) for tag in tags]
    for alias in aliases:
        check_alias(alias)
    from deltahub.checkpoint import describe  # late: a list or a pull reads no checkpoint

    manifest = describe(folder)
    saved = [check_tag(tag) for tag in manifest.config.get("metadata", {}).get("tags", [])]
    reference = Reference.parse(name or default_name(manifest.config, checked))
    if reference.version:
        msg = f"A push numbers its version itself. Leave out '@{reference.version}', or give it as an alias."
        raise ReferenceSyntaxError(msg)
    if to and reference.source and to != reference.source:
        msg = f"{str(reference)!r} names another source than {to!r}. Name one of them."
        raise ReferenceSyntaxError(msg)
    named = replace(reference, source=to or reference.source)
    return Ready(folder, manifest, named, (*saved, *checked), tuple(aliases))
