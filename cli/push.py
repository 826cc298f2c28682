"""Command `push`, for one delta or many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import exit_code
from .options import ExpectOpt, JsonOpt, PublishPickleOpt, QuietOpt, TagsOpt, UntrainedOpt, expected, split_tags
from .output import Output, print_json, say, size_text
from .sign import SignOpt, still_to_sign

if TYPE_CHECKING:
    from deltahub.errors import Outcome
    from deltahub.registry.publish import Publication
    from deltahub.signing import PrivateKey
    from deltahub.sources.base import Pushed


FoldersArg = Annotated[
    list[str],
    typer.Argument(
        metavar="FOLDER... | FOLDER NAME",
        help="Folders that save_finetuned, PEFT, AdapterHub, OpenDelta or diffusers wrote. NAME: "
        "[source:]namespace/name, made from task and backbone if left out. The registry numbers versions itself: v1, v2, ...; name one with --alias.",
    ),
]
AliasOpt = Annotated[list[str] | None, typer.Option("--alias", "-a", help="A movable name to point here.")]
MessageOpt = Annotated[str, typer.Option("--message", "-m", help="Why this version.")]
ToOpt = Annotated[
    str | None,
    typer.Option("--to", metavar="SOURCE", help="The source to push to, or a registry's folder or s3://bucket/prefix."),
]
NamespaceOpt = Annotated[
    str | None, typer.Option("--namespace", metavar="NAMESPACE", help="Name each delta after its folder, in here.")
]
PrivateOpt = Annotated[
    bool, typer.Option("--private", help="On a hub: let only its owners see it, if it is new there.")
]
BackboneOpt = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        metavar="BACKBONE",
        help="Record this backbone beside a delta of another library, which is then refused on any other: a folder, or a "
        "model in Hugging Face's cache. The record, backbone.json, is written into FOLDER.",
    ),
]


def push(
    folders: FoldersArg,
    tags: TagsOpt = None,
    alias: AliasOpt = None,
    expect: ExpectOpt = None,
    message: MessageOpt = "",
    to: ToOpt = None,
    namespace: NamespaceOpt = None,
    sign: SignOpt = None,
    private: PrivateOpt = False,
    backbone: BackboneOpt = None,
    allow_pickle: PublishPickleOpt = False,
    allow_untrained: UntrainedOpt = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Publish saved deltas as new versions; unchanged content makes no new version.

    Every file is checked against the digests saved with it. A delta of another library is published as it is. Pushing many at once
    is far faster than one by one; if one cannot be published, the others are. With --expect nothing is published if the alias
    points elsewhere, and the exit code is 4.

    [dim]deltahub push ./ckpt --tags sst2[/dim]

    [dim]deltahub push ./ckpt acme/sst2-bert --tags task=sst2,lang=en --alias champion -m "2 epochs"[/dim]

    [dim]deltahub push ./ckpt acme/sst2-bert --alias prod --expect v3[/dim]

    [dim]deltahub push ./ckpt team:acme/sst2-bert[/dim]

    [dim]deltahub push ./ckpt hf:acme/sst2-bert --private[/dim]

    [dim]deltahub push ./runs/* --namespace acme[/dim]

    [dim]deltahub push ./peft-adapter acme/summaries --backbone ./llama[/dim]
    """
    if expect is not None and not alias:
        msg = "--expect says where an alias must point now. Name it with --alias, or leave --expect out."
        raise typer.BadParameter(msg)
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference
    from deltahub.registry.publish import Publication

    name, paths, labels = _name(folders, namespace), [Path(folder) for folder in folders], split_tags(tags)
    key, out, hub = _key(sign), Output(as_json=json, quiet=quiet), Hub.open()
    if name is None and (len(folders) > 1 or namespace is not None):
        _check_many(paths, alias, private)
        push_many = partial(hub.push_many, paths, namespace, tags=labels, message=message, to=to, sign=key)
        record = _recorder(backbone, allow_pickle=allow_pickle)
        push_many = partial(push_many, allow_pickle=allow_pickle, allow_untrained=allow_untrained, record=record)
        with out.transfer("Pushing") as (grow, progress):
            results = push_many(progress=progress, expected=grow)
        report_many(list(zip(map(str, paths), results, strict=True)), key, out)
        return
    hub.source(to or (Reference.parse(name).source if name else None))  # before a record is written
    publication = Publication.of(
        paths[0],
        name,
        to=to,
        tags=labels,
        aliases=alias or (),
        message=message,
        expect=None if expect is None else dict.fromkeys(alias or (), expected(expect)),
        private=private or None,
        signer=key,
        allow_pickle=allow_pickle,
        allow_untrained=allow_untrained,
        record=_recorder(backbone, allow_pickle=allow_pickle),
    )
    with out.progress("Pushing", publication.manifest.size) as progress:
        pushed = hub.publish(publication, progress)
    _report(publication, pushed, out)


def _name(folders: Sequence[str], namespace: str | None) -> str | None:
    """Return the second of two arguments if it is a name; None if all arguments are folders."""
    from deltahub.checkpoint.from_files import holds_delta
    from deltahub.reference import is_placed

    if len(folders) != 2 or namespace is not None:
        return None
    second = folders[1]
    if is_placed(second):
        return second
    if second.startswith((".", "/", "~")) or second.endswith("/"):
        return None
    parent = Path(second).parent
    if holds_delta(Path(second)):
        problem = "can be a name and is a folder with a delta"
    elif parent != Path() and parent.is_dir():
        problem = f"can be a name, and there is a folder {parent} in which no {Path(second).name} holds a delta"
    else:
        return second
    msg = (
        f"{second} {problem}. To push both folders write ./{second}, or name "
        f"them after their folders with --namespace; to give the first that name write SOURCE:{second}."
    )
    raise typer.BadParameter(msg)


def _report(publication: Publication, pushed: Pushed, out: Output) -> None:
    from deltahub.checkpoint.from_files import left_out
    from deltahub.settings.source_entry import LOCAL

    key, others = publication.signer, left_out(publication.folder, publication.manifest)
    data = {
        "reference": str(pushed.reference),
        "version": pushed.reference.version,
        "digest": pushed.digest,
        "new": pushed.new,
        "size": pushed.size,
        "tags": pushed.tags,
        "signed_by": key.public.id if key else None,
        "left_out": others,
    }
    named = pushed.reference.at(None)
    unchanged = "Already there, its message unchanged" if publication.message else "Already there"
    kind = "New version" if pushed.new else unchanged
    out.result(
        data,
        str(pushed.reference),
        f"{kind}, {size_text(pushed.size)}, {pushed.digest.short}, tags: {', '.join(pushed.tags) or 'none'}",
        still_to_sign(pushed.reference.source, str(pushed.reference), key)
        or f"Fetch it with: deltahub pull {named.path if named.source == LOCAL else named}",
        *([f"Left out, as not part of the delta: {', '.join(others)}"] if others else []),
    )


def _key(path: Path | None) -> PrivateKey | None:
    """Read the signing key before anything is published."""
    if path is None:
        return None
    from deltahub.signing import PrivateKey

    return PrivateKey(path)


def _check_many(folders: Sequence[Path], alias: Sequence[str] | None, private: bool) -> None:
    """Refuse options for one delta, and a mistyped path, which stop all pushes; a file, or a folder without an intact delta, stops only its own."""
    from deltahub.checkpoint.config_file import read_document

    if alias or private:
        option = "--alias" if alias else "--private"
        raise typer.BadParameter(f"{option} is for one delta. Push them one by one, or leave it out.")
    for folder in folders:
        if not folder.exists():
            read_document(folder)  # raises


def _recorder(backbone: str | None, *, allow_pickle: bool) -> Callable[[Path], object] | None:
    """Return a function that records a backbone beside a delta of another library; None without a backbone."""
    if backbone is None:
        return None
    from deltahub.handle.recording import load_backbone, record_backbone  # seconds: it imports torch

    model = load_backbone(backbone)
    return lambda folder: record_backbone(folder, model, allow_pickle=allow_pickle)


def report_many(
    results: Sequence[tuple[str, Outcome[Pushed]]], key: PrivateKey | None, out: Output, place: str = "folder"
) -> None:
    """Print the result of each; the first failure determines the exit code.

    Args:
        results: where each came from, and its result.
        place: the word for where each came from.
    """
    from deltahub.errors import DeltaHubError

    failed = [(origin, result) for origin, result in results if isinstance(result, DeltaHubError)]
    if out.as_json:
        print_json([_data(place, origin, result, key) for origin, result in results])
    else:
        pushed = [(origin, result) for origin, result in results if not isinstance(result, DeltaHubError)]
        rows = [
            (
                str(version.reference),
                "new" if version.new else "there",
                size_text(version.size),
                version.digest.short,
                origin,
            )
            for origin, version in pushed
        ]
        if rows:
            out.rows(("reference", "version", "size", "digest", place), rows)
            if not out.quiet and (hint := still_to_sign(pushed[0][1].reference.source, "REF", key)):
                say(hint, err=True)
    for origin, error in failed:
        say(f"Error: {origin}: {error}", err=True)
    if failed:
        say(f"{len(results) - len(failed)} of {len(results)} pushed.", err=True)
        raise typer.Exit(exit_code(failed[0][1]))


def _data(place: str, origin: str, result: Outcome[Pushed], key: PrivateKey | None) -> dict[str, Any]:
    if isinstance(result, Exception):
        return {place: origin, "error": str(result)}
    return {
        place: origin,
        "reference": str(result.reference),
        "version": result.reference.version,
        "digest": result.digest,
        "new": result.new,
        "size": result.size,
        "tags": result.tags,
        "signed_by": key.public.id if key else None,
    }
