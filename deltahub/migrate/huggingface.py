"""Adapters of an organisation or a user on a hub of the Hugging Face protocol."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deltahub.errors import ConfigError
from deltahub.hub.hub import Hub
from deltahub.migrate.candidate import Candidate
from deltahub.reference import Reference, check_name
from deltahub.sources.huggingface import HuggingFace

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_LABELS: Final = frozenset(
    {"peft", "adapters", "adapter-transformers", "lora", "deltahub"}
)  # libraries and tags of adapters
_FILES: Final = ("adapter_config.json", "delta_config.json")


def of_namespace(hub: Hub, source_name: str, namespace: str) -> Iterator[Candidate]:
    """Find the repos of an organisation or a user with adapters: by their library, their tags or their files.

    Args:
        source_name: the name of the hub as a source, ``"hf"``.

    Raises:
        ConfigError: the source is not a hub of the Hugging Face protocol.
        ReferenceSyntaxError: it is not the name of an organisation or a user.
        UnreachableError: the hub did not answer.
    """
    check_name(namespace, "namespace")
    source = hub.source(source_name)
    if not isinstance(source, HuggingFace):
        msg = f"{source.place} is not a hub of the Hugging Face protocol. To take deltas over from a registry: deltahub copy {source_name} TO"
        raise ConfigError(msg)
    calls = source.calls
    listing = partial(_listed, source, namespace)
    for info in calls.make(listing, f"Listing {namespace}", f"The models of {namespace}"):
        if _is_adapter(info):
            exact = Reference.parse(f"{source_name}:{info.id}@{info.sha}" if info.sha else f"{source_name}:{info.id}")
            yield Candidate(str(exact), info.id.rpartition("/")[2], partial(_pull, hub, exact))


def _listed(source: HuggingFace, namespace: str) -> list[ModelInfo]:
    return list(source.calls.api.list_models(author=namespace, full=True))


def _is_adapter(info: ModelInfo) -> bool:
    labels = {str(label).lower() for label in (info.library_name, *(info.tags or ())) if label}
    names = {file.rfilename.rpartition("/")[2] for file in info.siblings or ()}
    return bool(labels & _LABELS or names.intersection(_FILES))


def _pull(hub: Hub, reference: Reference, _: Path) -> Path:
    return hub.pull(reference).folder
