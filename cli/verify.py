"""Command `verify`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import DAMAGED
from .options import JsonOpt, QuietOpt, SourceOpt
from .output import Output, print_json, say
from .sign import signatures_of

if TYPE_CHECKING:
    from deltahub.reference import DeltaPath
    from deltahub.registry.verify import Repaired
    from deltahub.sources.base import Source


TargetArg = Annotated[
    str | None, typer.Argument(metavar="REF|FOLDER", help="A delta or a folder; everything if left out.")
]
AllOpt = Annotated[bool, typer.Option("--all", help="Every configured registry.")]
RepairOpt = Annotated[bool, typer.Option("--repair", help="Fetch what is damaged from another registry or the cache.")]
LineageOpt = Annotated[
    bool, typer.Option("--lineage", help="Compute a combined, resized or scaled delta again from its parents.")
]
ParentOpt = Annotated[
    list[str] | None,
    typer.Option("--parent", metavar="FOLDER", help="With --lineage: a parent that is not in a registry or the cache."),
]
ProbeOpt = Annotated[
    bool,
    typer.Option(
        "--probe", help="Also run the delta on the inputs saved with it, and compare the outputs; needs --backbone."
    ),
]
BackboneOpt = Annotated[
    str | None,
    typer.Option("--backbone", metavar="BACKBONE", help="For --probe: a folder, or a model in Hugging Face's cache."),
]
RecordOpt = Annotated[
    bool,
    typer.Option("--record", help="With --probe: record in the log that the version gives the outputs saved with it."),
]

DequantisedOpt = Annotated[
    bool,
    typer.Option(
        "--dequantised",
        help="With --probe: accept the backbone in another precision or quantisation, after comparing the weights.",
    ),
]


def verify(
    target: TargetArg = None,
    every: AllOpt = False,
    repair: RepairOpt = False,
    source: SourceOpt = None,
    lineage: LineageOpt = False,
    parent: ParentOpt = None,
    probe: ProbeOpt = False,
    backbone: BackboneOpt = None,
    dequantised: DequantisedOpt = False,
    record: RecordOpt = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Verify every byte against what was published or saved.

    Objects are read in chunks, so they may be larger than the memory.

    [dim]deltahub verify[/dim]

    [dim]deltahub verify DeltaHub/sst2-t5-base@v2[/dim]

    [dim]deltahub verify ./ckpt[/dim]

    [dim]deltahub verify --all --repair[/dim]

    [dim]deltahub verify ./both --lineage --parent ./a --parent ./b[/dim]

    [dim]deltahub verify DeltaHub/sst2-t5-base --probe --backbone ./t5-base[/dim]
    """
    if probe != (backbone is not None) or (probe and target is None):
        raise typer.BadParameter("--probe runs one delta on its backbone: verify REF --probe --backbone BACKBONE.")
    if dequantised and not probe:
        raise typer.BadParameter("--dequantised is for the backbone of --probe; without it use: deltahub check.")
    if record and (target is None or not probe or dequantised or Path(target).is_dir()):
        msg = (
            "--record needs a delta and its probe on its own backbone: verify REF --probe --backbone BACKBONE --record."
        )
        raise typer.BadParameter(msg)
    out = Output(as_json=json, quiet=quiet)
    if lineage or parent:
        if not lineage or target is None or every or repair or source or probe:
            raise typer.BadParameter("--lineage takes one delta, with --parent or none, and no other option.")
        _lineage(out, target, parent or [])
        return
    if target and (every or Path(target).is_dir()):
        if every or repair:
            clause = "--all is every registry" if every else f"{target} is a folder: save it again, or pull it"
            raise typer.BadParameter(f"{clause}; leave out one of the two.")
        results = _folder(Path(target))
        signed = {}
    else:
        results = _registries(target, source, every=every, repair=repair)
        signed = _signatures(results, target, source, every=every)
    if target and backbone:
        exact = _exactly(_at(target, source)) if record else _at(target, source)
        results = _with_probe(exact, backbone, results, dequantised=dequantised)
    damaged = _damaged(results, signed)
    if record and not damaged:
        _record(exact)
    _print(out, results, signed, damaged, target)
    if damaged:
        if not json and not quiet:
            others = "push them again from intact copies."
            remedy = others.capitalize() if repair else f"Try --repair, or {others}"
            say(f"{len(damaged)} of {len(results)} are damaged. {remedy}", err=True)
        raise typer.Exit(DAMAGED)


def _print(
    out: Output,
    results: list[Repaired],
    signed: Mapping[str, list[dict[str, str]]],
    damaged: list[tuple[str, str]],
    target: str | None,
) -> None:
    if out.as_json:
        print_json([{**asdict(result), "signatures": signed.get(result.reference, [])} for result in results])
    elif damaged:
        out.rows(("damaged", "what"), damaged, wrap=True)
    else:
        say(f"{len(results)} checked, all intact.{_without_digests(target)}")
    if not out.as_json and not out.quiet:
        _print_repairs(results, signed)


def _damaged(results: list[Repaired], signed: Mapping[str, list[dict[str, str]]]) -> list[tuple[str, str]]:
    """Return what is damaged, files and signatures, each with a description."""
    files = [(result.reference, result.damage) for result in results if result.damage]
    signatures = [
        (reference, f"its signature by the key {signature['key'][:16]} does not match it")
        for reference, states in signed.items()
        for signature in states
        if signature["state"] == "bad"
    ]
    return [*files, *signatures]


def _without_digests(target: str | None) -> str:
    """Return the caveat for the folder of another library's delta, whose bytes nothing vouches for."""
    from deltahub.checkpoint.checkpoint import is_checkpoint

    if target is None or not Path(target).is_dir() or is_checkpoint(Path(target)):
        return ""
    return " Its library saves no digests, so only the form of the files was checked; once pushed, every byte is."


def _print_repairs(results: list[Repaired], signed: Mapping[str, list[dict[str, str]]]) -> None:
    """Print on stderr what was repaired from where, and the keys of the signatures."""
    for result in results:
        for file, place in sorted(result.repaired.items()):
            say(f"{result.reference}: {file} was repaired from {place}.", err=True)
    for signed_reference, states in signed.items():
        keys_text = ", ".join(f"{signature['key'][:16]} ({signature['state']})" for signature in states)
        say(f"{signed_reference}: signed by the key {keys_text}.", err=True)


def _lineage(out: Output, target: str, parents: list[str]) -> None:
    """Compute a delta again from its parents, and print whether it is the same."""
    from deltahub.algebra.lineage import OTHER, verify_lineage

    check = verify_lineage(target, parents)
    data = {**asdict(check), "parents": [{"digest": digest, "found": place} for digest, place in check.parents]}
    detail = f" ({check.detail})" if check.detail else ""
    verdict = "is not" if check.status == OTHER else "is"
    line = f"{target} {verdict} the {check.operation} of its {len(check.parents)} parents: {check.status}{detail}."
    out.result(data, line, *(f"{digest} from {place}" for digest, place in check.parents))
    if check.status == OTHER:
        raise typer.Exit(DAMAGED)


def _signatures(
    results: list[Repaired], target: str | None, source: str | None, *, every: bool
) -> dict[str, list[dict[str, str]]]:
    """Return the signatures of the intact results, by reference."""
    from deltahub.reference import Reference

    source_name = source or (Reference.parse(target).source if target else None)
    places: dict[tuple[str | None, str], str] = {}
    for result in results:
        if result.damage is None:
            at, _, name = result.reference.partition(":") if every else (source_name, "", result.reference)
            places[at, name] = result.reference
    return {places[place]: states for place, states in signatures_of(list(places)).items()}


def _folder(folder: Path) -> list[Repaired]:
    from deltahub.checkpoint.from_files import describe
    from deltahub.errors import IntegrityError
    from deltahub.registry.verify import Repaired

    try:
        describe(folder, allow_pickle=True)
    except IntegrityError as error:  # the result of the command, not a failure
        return [Repaired(str(folder), {}, str(error))]
    return [Repaired(str(folder), {}, None)]


def _at(target: str, source: str | None) -> str:
    """Return a reference in the source whose bytes were verified; a folder as it is."""
    from deltahub.reference import Reference

    return target if source is None or Path(target).is_dir() else str(replace(Reference.parse(target), source=source))


def _with_probe(target: str, backbone: str, results: list[Repaired], *, dequantised: bool) -> list[Repaired]:
    """Run a delta on its probe; outputs that differ count as damage."""
    from deltahub.auto import AutoDeltaModel
    from deltahub.errors import ProbeError
    from deltahub.handle.recording import load_backbone
    from deltahub.registry.verify import Repaired

    try:
        AutoDeltaModel.from_finetuned(
            target,
            backbone_model=load_backbone(backbone),
            check_probe=True,
            check_hash="dequantised" if dequantised else True,
        )
    except ProbeError as error:
        return [*results, Repaired(target, {}, str(error))]
    return results


def _exactly(target: str) -> str:
    """Return a reference with its version, so that the verified version is the recorded one."""
    from deltahub.hub.edits import resolve
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference

    reference = Reference.parse(target)
    source, document = Hub.open().document(reference)
    return str(Reference(document.name, source=source.name, version=resolve(document, reference.version)))


def _record(target: str) -> None:
    from deltahub.hub.edits import record_probe
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference

    record_probe(Hub.open(), Reference.parse(target))


def _registries(target: str | None, source: str | None, *, every: bool, repair: bool) -> list[Repaired]:
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference
    from deltahub.registry.verify import Repaired
    from deltahub.registry.verify import repair as mend
    from deltahub.registry.verify import verify as check
    from deltahub.sources.registry import RegistrySource

    hub = Hub.open()
    reference = Reference.parse(target) if target else None
    paths, version = ([reference.path], reference.version) if reference else (None, None)
    source_name = source or (reference.source if reference else None)
    results = []
    if not every and not isinstance(outside := hub.source(source_name), RegistrySource):
        return _outside(outside, paths, version, repair=repair)
    for registry in hub.registries.values() if every else [hub.registry(source_name)]:
        prefix = f"{registry.name}:" if every else ""
        repairs = (
            mend(registry, hub.supplies(registry), paths, version)
            if repair
            else (Repaired(name, {}, damage) for name, damage in check(registry, paths, version))
        )
        results += [replace(result, reference=f"{prefix}{result.reference}") for result in repairs]
    return results


def _outside(source: Source, paths: list[DeltaPath] | None, version: str | None, *, repair: bool) -> list[Repaired]:
    """Verify deltas of a hub by what it sends."""
    from deltahub.errors import ConfigError
    from deltahub.registry.verify import Repaired
    from deltahub.sources.huggingface import HuggingFace
    from deltahub.sources.huggingface.verify import verify as check

    if not isinstance(source, HuggingFace):
        msg = f"{source.place} cannot be verified: it is neither a registry nor a hub. Pull the delta, which checks every byte."
        raise ConfigError(msg)
    if repair:
        msg = f"Only the registry of {source.place} can be repaired, by its administrator. Leave out --repair."
        raise ConfigError(msg)
    return [Repaired(name, {}, damage) for name, damage in check(source, paths, version)]
