"""Amending the metadata of a version on a DeltaHub hub, through an endpoint that other hubs do not have."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from deltahub.errors import ConfigError
from deltahub.reference import LATEST
from deltahub.registry.amend import Amendment
from deltahub.registry.entries import Version
from deltahub.sources.huggingface.calls import Calls
from deltahub.sources.huggingface.history import Names
from deltahub.stores.retry import HUB_TIMEOUT


def amend(calls: Calls, path: str, refs: Names, version: str | None, amendment: Amendment) -> tuple[str, Version]:
    """See `Source.amend`.

    Args:
        refs: the repo's names, just read from the hub.
    """
    from huggingface_hub.utils import get_session, hf_raise_for_status

    if refs.document is None:
        msg = (
            f"{calls.place} is not a hub of DeltaHub, so versions cannot be amended there. "
            "Edit the card on its page, or push again with a message."
        )
        raise ConfigError(msg)
    texts = {"message": amendment.message, "description": amendment.description, "card": amendment.card}
    body = {**{key: text for key, text in texts.items() if text is not None}, "metrics": dict(amendment.metrics)}

    def ask() -> Any:
        url = f"{calls.endpoint}/api/deltahub/{path}/amend/{quote(version or LATEST, safe='')}"
        answer = get_session().post(url, json=body, headers=calls.headers(), timeout=HUB_TIMEOUT)
        hf_raise_for_status(answer)
        return answer.json()

    answer = calls.make(ask, f"Amending {path}", f"{calls.name}:{path}@{version or LATEST}")
    try:
        entry = Version.from_dict(answer["entry"])
        return str(answer["version"]), entry
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{calls.place} did not return the changed version. Look at it with deltahub show."
        raise ConfigError(msg) from error
