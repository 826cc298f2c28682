"""Commands `show` and `log`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltahub.reference import Digest, is_path

from .inspect import fixed_count, inspect_delta, method_text, quantisation_of
from .list import metrics_text
from .options import JsonOpt, QuietOpt, RefArg
from .output import Output, print_json, size_text

if TYPE_CHECKING:
    from deltahub.checkpoint.manifest import Manifest
    from deltahub.registry.document import ReferenceDocument
    from deltahub.registry.entries import Move, Version
    from deltahub.sources.base import Resolved


def show(ref: RefArg, json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Show all facts about a delta; for a folder, the same as `deltahub inspect`.

    [dim]deltahub show DeltaHub/sst2-t5-base@champion[/dim]
    """
    if is_path(ref):
        inspect_delta(Path(ref), Output(as_json=json, quiet=quiet))
        return
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference

    hub = Hub.open()
    resolved = hub.resolve(Reference.parse(ref))
    manifest, exact = resolved.manifest, resolved.reference
    assert isinstance(exact, Reference)  # as a reference never resolves to a link
    document = hub.source(exact.source).document(exact.path)
    version = str(exact.version)
    number, entry = _version_entry(document, version, resolved.digest)
    data = _facts(resolved, document, version, entry)
    if json:
        print_json(data)
        return
    out = Output(as_json=json, quiet=quiet)
    pointing = sorted(alias for alias, target in document.aliases.items() if target == number)
    facts = [
        ("delta", str(exact)),
        ("digest", resolved.digest),
        ("pushed", f"{entry.time} by {entry.author}{f': {entry.message}' if entry.message else ''}"),
        ("aliases", " ".join(pointing) or "none"),
        ("tags", " ".join(entry.tags) or "none"),
        ("versions", " ".join(_pointed(document, name) for name in document.versions)),
        *_content(manifest),
        *([("quantisation", text)] if (text := _quantisation(resolved)) else []),
        ("metrics", metrics_text({m["metric_type"]: m["metric_value"] for m in data["metrics"]}) or "none"),
        *([("description", data["description"])] if data["description"] else []),
    ]
    out.rows(("", ""), facts, key=None)
    out.rows(("file", "size", "sha256"), [(f.path, size_text(f.size), f.sha256) for f in manifest.files], key=None)


def _facts(resolved: Resolved, document: ReferenceDocument, version: str, entry: Version) -> dict[str, Any]:
    """Return all facts about a version, for `--json`."""
    from deltahub.checkpoint.foreign import has_unread
    from deltahub.registry.entries import metrics_of

    counts, count = resolved.manifest.parameters, fixed_count(resolved.manifest)
    fixed = {"fixed": count} if count else {}
    return {
        "reference": str(resolved.reference),
        "name": document.name,
        "source": resolved.reference.source,
        "version": version,
        "digest": resolved.digest,
        "size": resolved.manifest.size,
        "time": entry.time,
        "author": entry.author,
        "message": entry.message,
        "tags": entry.tags,
        "aliases": dict(document.aliases),
        "versions": {name: version_entry.digest for name, version_entry in document.versions.items()},
        "removed": {name: asdict(removal) for name, removal in document.removed.items()},
        "kind": resolved.manifest.kind,
        "config": dict(resolved.manifest.config),
        "parameters": dict.fromkeys(counts) if has_unread(resolved.manifest) else {**counts, **fixed},
        **({"quantisation": text} if (text := _quantisation(resolved)) else {}),
        "metrics": metrics_of(resolved.manifest, entry.summary),
        "description": entry.summary.get("description", ""),
        "card": entry.card,
        "files": [asdict(file) for file in resolved.manifest.files],
        "tensors": [asdict(tensor) for tensor in resolved.manifest.tensors],
    }


def _pointed(document: ReferenceDocument, version: str) -> str:
    """Format a version with the aliases that point to it."""
    aliases = sorted(alias for alias, target in document.aliases.items() if target == version)
    return f"{version} ({', '.join(aliases)})" if aliases else version


def _version_entry(document: ReferenceDocument, version: str, digest: Digest) -> tuple[str, Version]:
    """Find a source's entry for a version: by its number, or on a hub by its content or commit."""
    from deltahub.registry.commit_message import CommitDigest
    from deltahub.registry.entries import Version

    versions = document.versions
    if version in versions:
        return version, versions[version]
    same_names = [name for name, entry in versions.items() if entry.digest in (digest, CommitDigest(version))]
    return (same_names[-1], versions[same_names[-1]]) if same_names else ("", Version(digest, "", "unknown"))


def _content(manifest: Manifest) -> list[tuple[str, str]]:
    """Describe the content of a version."""
    from deltahub.checkpoint.default_name import backbone_name
    from deltahub.checkpoint.description import module_addresses
    from deltahub.checkpoint.foreign import has_unread
    from deltahub.checkpoint.manifest import FILES
    from deltahub.registry.entries import option_words, summary_of

    config = manifest.config
    if manifest.kind == FILES:
        summary, total = summary_of(manifest), manifest.parameters["total"]
        revision, fingerprint = config.get("base_revision"), config.get("backbone_hash")
        return [
            ("files", str(summary["delta_type"])),
            *([("options", " ".join(words))] if (words := option_words(summary)) else []),
            ("base model", backbone_name(config) or "unknown"),
            *([("revision", str(revision))] if revision else []),
            *([("fingerprint", str(fingerprint))] if fingerprint else []),
            *([("license", str(license_name))] if (license_name := config.get("metadata", {}).get("license")) else []),
            (
                "parameters",
                f"{total:,}" if not has_unread(manifest) else "unknown: its weights are a pickle, which is not opened",
            ),
        ]
    delta, total, fixed = manifest.parameters["delta"], manifest.parameters["total"], fixed_count(manifest)
    addresses = module_addresses(config)
    return [
        ("method", method_text(config)),
        ("modules", ("; " if config.get("parts") else " ").join(addresses) or "chosen by the method"),
        ("backbone", f"{backbone_name(config) or '?'} ({config.get('backbone_class') or '?'})"),
        ("revision", str(config.get("backbone_revision", "unknown"))),
        ("fingerprint", str(config.get("backbone_hash"))),
        ("made from", "; ".join(_parent(parent) for parent in config.get("parents", ())) or "nothing else"),
        ("license", str(config.get("metadata", {}).get("license", "unknown"))),
        ("saved with", " ".join(_tools(config))),
        ("parameters", f"{delta - fixed:,} of the delta, {f'{fixed:,} fixed, ' if fixed else ''}{total:,} in all"),
    ]


def _quantisation(resolved: Resolved) -> str:
    """Describe the quantisation of a delta's backbone by its record, which is fetched; empty for a dense one or without a record."""
    from deltahub.checkpoint.checkpoint import BACKBONE
    from deltahub.errors import DeltaHubError
    from deltahub.files.atomic import scratch

    entry = next((file for file in resolved.manifest.files if file.path == BACKBONE), None)
    if entry is None:
        return ""
    with scratch() as folder:
        try:
            resolved.fetch(entry, folder / BACKBONE, None)
            return quantisation_of(folder / BACKBONE)
        except DeltaHubError as error:  # all other facts are shown
            return f"unknown: {error}"


def _parent(parent: Mapping[str, str]) -> str:
    """Describe a parent of a delta."""
    origin = " ".join(parent[key] for key in ("format", "name", "digest") if key in parent)
    return f"{parent['relation']} from {origin}"


def _tools(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the releases that saved a delta, as far as recorded."""
    for tool in ("deltahub", "transformers", "torch"):
        if version := config.get(f"{tool}_version"):
            yield f"{tool} {version}"


def log(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A delta: [source:]namespace/name.")],
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Show the history of a delta, oldest first: pushes, and every move of an alias or tag.

    [dim]deltahub log DeltaHub/sst2-t5-base[/dim]
    """
    from deltahub.errors import RemovedError
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference

    reference = Reference.parse(name)
    _, document = Hub.open().document(reference)
    if reference.version:  # the log covers all versions, but a requested one must have existed
        with contextlib.suppress(RemovedError):
            document.resolve(reference.version)
    if json:
        print_json([{**asdict(move), "message": _why(document, move)} for move in document.log])
        return
    rows = [
        (m.time, m.author, m.action, m.what, f"{_brief(m.before)} -> {_brief(m.after)}", _why(document, m))
        for m in document.log
    ]
    Output(as_json=json, quiet=quiet).rows(("time", "author", "action", "what", "change", "why"), rows, key=None)


def _brief(target: str | None) -> str:
    """Shorten a digest to its first digits; return any other target unchanged."""
    return target[:19] if target and target.startswith("sha256:") else target or "-"


def _why(document: ReferenceDocument, move: Move) -> str:
    """Return the message of a push or of a removal, or the reason and the approvals of a move."""
    if move.reason or move.approved:
        approved = f"approved by {', '.join(move.approved)}" if move.approved else ""
        return "; ".join(filter(None, (move.reason, approved)))
    version, removal = document.versions.get(move.what), document.removed.get(move.what)
    if move.action == "push":
        return version.message if version else removal.pushed_message if removal else ""
    return removal.message if move.action == "remove" and removal else ""
