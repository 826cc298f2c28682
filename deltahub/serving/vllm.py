"""A resolver of LoRAs for vLLM: ``model="acme/sst2@v3"`` in a request is pulled, verified and served.

vLLM finds it by its entry point, `vllm.general_plugins`, and asks it for every model name that it does not know. Clients choose these names,
so nothing is resolved unless the operator lists what may be: see `register`. vLLM keeps the answer under the name of the
request; an alias that moves is seen once the adapter was unloaded there.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deltahub.errors import ConfigError, DeltaHubError, NotFoundError, ReferenceSyntaxError
from deltahub.log import LOGGER
from deltahub.reference import Reference, check_name, check_source

if TYPE_CHECKING:
    from deltahub.hub.hub import Hub
    from deltahub.sources.base import Pulled

ALLOWED: Final = "DELTAHUB_VLLM_ALLOW"
_ADAPTERS: Final = "adapters"  # folder of converted adapters in the cache
_CONFIG: Final = "adapter_config.json"


def register() -> None:
    """Add the resolver to vLLM, if the environment variable DELTAHUB_VLLM_ALLOW lists what clients may name.

    Its value is a list with commas of ``source:namespace`` or ``source:*``, for example ``"team:acme,local:*"``. vLLM also needs
    ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``.

    Raises:
        ConfigError: the list is not well formed.
    """
    allowed = _allowed(os.environ.get(ALLOWED, ""))
    if not allowed:
        return
    from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]  # only there when vLLM calls this
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry  # type: ignore[import-not-found]

    from deltahub.hub.hub import Hub

    adapters = Adapters(Hub.open(), allowed)

    class DeltaHubResolver(LoRAResolver):  # type: ignore[misc]
        """The adapters of this machine's sources."""

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
            """Return the request for an adapter; None if the name is of no delta that may be served."""
            found = await asyncio.to_thread(adapters.find, base_model_name, lora_name)
            if found is None:
                return None
            folder, number = found
            return LoRARequest(lora_name=lora_name, lora_int_id=number, lora_path=str(folder))

    LoRAResolverRegistry.register_resolver("deltahub", DeltaHubResolver())


class Adapters:
    """Deltas as folders that vLLM loads.

    Args:
        hub: whose sources and cache are used.
        allowed: the sources with their namespaces, ``"*"`` for all of them.
    """

    def __init__(self, hub: Hub, allowed: Collection[tuple[str, str]]) -> None:
        self._hub, self._allowed = hub, allowed

    def find(self, backbone: str, name: str) -> tuple[Path, int] | None:
        """Return the folder of an adapter and a number for it, different for each content.

        Why a delta that exists is not served is written to the log.

        Args:
            backbone: the name or path of the served model.
            name: the model of the request.
        """
        try:
            reference = Reference.parse(name)
        except ReferenceSyntaxError:
            return None
        for place in self._places(reference):
            try:
                pulled = self._hub.pull(place)
                folder = self._adapter(pulled)
                _require_served(folder, backbone)
            except NotFoundError:
                continue
            except DeltaHubError as error:
                LOGGER.error("%s is not served: %s", place, error)
                return None
            return folder, int(pulled.digest.hex[:7], 16) + 1
        return None

    def _places(self, reference: Reference) -> list[Reference]:
        """Return the reference at each source where it may be looked up, in the order of the list."""
        sources = dict.fromkeys(
            source
            for source, namespace in self._allowed
            if reference.source in (None, source) and namespace in ("*", reference.path.namespace)
        )
        return [Reference(reference.path, source=source, version=reference.version) for source in sources]

    def _adapter(self, pulled: Pulled) -> Path:
        """Return the pulled folder if it is an adapter of PEFT, else one that is made of it, once for each content."""
        if (pulled.folder / _CONFIG).exists():
            return pulled.folder
        folder = self._hub.cache.root / _ADAPTERS / pulled.digest.hex
        if not (folder / _CONFIG).exists():  # written last
            from deltahub.formats.peft.export import export_peft  # late: it needs torch

            folder.parent.mkdir(parents=True, exist_ok=True)
            export_peft(pulled.folder, folder)
        return folder


def _require_served(folder: Path, backbone: str) -> None:
    """Check that vLLM can serve an adapter exactly, on this backbone.

    Raises:
        ConfigError: it cannot, or the adapter is for another model; the message says why.
    """
    from deltahub.formats.peft.export import refusals_of_vllm

    recorded = str(json.loads((folder / _CONFIG).read_bytes()).get("base_model_name_or_path") or "")
    if recorded and _last(recorded) != _last(backbone):
        msg = (
            f"it was made for {recorded}, and the served model is {backbone}. Serve that model, or name another delta."
        )
        raise ConfigError(msg)
    if notes := refusals_of_vllm(folder):
        raise ConfigError(" ".join(notes))


def _last(name: str) -> str:
    """Return the name of a model without its owner or folder."""
    return name.rstrip("/").rpartition("/")[2].lower()


def _allowed(text: str) -> list[tuple[str, str]]:
    pairs = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        source, _, namespace = item.partition(":")
        try:
            check_source(source)
            if namespace != "*":
                check_name(namespace, "namespace")
        except ReferenceSyntaxError as error:
            msg = f"{ALLOWED} has {item!r}: expected source:namespace or source:*, for example team:acme."
            raise ConfigError(msg) from error
        pairs.append((source, namespace))
    return pairs
