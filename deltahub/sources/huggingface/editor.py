"""The changes to deltas on a hub of DeltaHub, through an endpoint that other hubs do not have."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any

from deltahub.errors import ConfigError
from deltahub.reference import DeltaPath
from deltahub.registry.amend import Amendment
from deltahub.registry.edit_messages import ANY, edited_from_dict, error_from_dict
from deltahub.registry.editor import Edited
from deltahub.registry.edits import ANYTHING, Anything
from deltahub.sources.huggingface.calls import Calls
from deltahub.stores.retry import HUB_TIMEOUT


class HubEditor:
    """The changes to the deltas of a hub of DeltaHub: see `deltahub.registry.editor.Editor`.

    Args:
        calls: to the hub.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def set_alias(
        self,
        path: DeltaPath,
        alias: str,
        version: str | None,
        *,
        expect: str | Anything | None = ANYTHING,
        reason: str = "",
    ) -> Edited:
        """See `Editor.set_alias`."""
        target = {"remove": True} if version is None else {"version": version}
        expected = ANY if isinstance(expect, Anything) else [expect] if expect else []
        return self._make(path, "alias", alias=alias, **target, expect=expected, reason=reason)

    def undo(self, path: DeltaPath, alias: str | None = None, *, reason: str = "") -> Edited:
        """See `Editor.undo`."""
        return self._make(path, "undo", alias=alias, reason=reason)

    def set_tags(self, path: DeltaPath, version: str | None, add: Collection[str], remove: Collection[str]) -> Edited:
        """See `Editor.set_tags`."""
        return self._make(path, "tag", version=version, add=[*add], remove_tags=[*remove])

    def remove(
        self, path: DeltaPath, version: str | None, *, message: str = "", needed: Collection[str] = ()
    ) -> Edited:
        """See `Editor.remove`."""
        return self._make(path, "remove", version=version, reason=message, needed=[*needed])

    def rename(self, path: DeltaPath, new: DeltaPath) -> Edited:
        """See `Editor.rename`."""
        return self._make(path, "rename", to=new)

    def amend(self, path: DeltaPath, version: str | None, amendment: Amendment) -> Edited:
        """See `Editor.amend`."""
        texts = {"message": amendment.message, "description": amendment.description, "card": amendment.card}
        return self._make(path, "amend", version=version, metrics=dict(amendment.metrics), **texts)

    def ask(self, path: DeltaPath, alias: str, version: str | None, reason: str) -> Edited:
        """See `Editor.ask`."""
        target = {"remove": True} if version is None else {"version": version}
        return self._make(path, "ask", alias=alias, **target, reason=reason)

    def approve(self, path: DeltaPath, request: str) -> Edited:
        """See `Editor.approve`."""
        return self._make(path, "approve", request=request)

    def reject(self, path: DeltaPath, request: str, reason: str = "") -> Edited:
        """See `Editor.reject`."""
        return self._make(path, "reject", request=request, reason=reason)

    def record_probe(self, path: DeltaPath, version: str | None) -> Edited:
        """See `Editor.record_probe`."""
        return self._make(path, "record_probe", version=version)

    def _make(self, path: DeltaPath, edit: str, **fields: Any) -> Edited:
        """Send one change; an id makes sure that it is made once, even if it must be sent again.

        Raises:
            DeltaHubError: what the registry behind the hub raised.
        """
        from huggingface_hub.utils import get_session, hf_raise_for_status

        calls = self._calls
        body = {"id": uuid.uuid4().hex, "edit": edit, **{key: it for key, it in fields.items() if it is not None}}

        def ask() -> Any:
            url = f"{calls.endpoint}/api/deltahub/{path}/edits"
            answer = get_session().post(url, json=body, headers=calls.headers(), timeout=HUB_TIMEOUT)
            raise_refusal(answer)
            hf_raise_for_status(answer)
            return answer.json()

        answer = calls.make(ask, f"Changing {path}", f"{calls.name}:{path}")
        try:
            return edited_from_dict(fields.get("to", path), answer)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            msg = f"{calls.place} did not return the changed delta. Look at it with deltahub log."
            raise ConfigError(msg) from error


def raise_refusal(answer: Any) -> None:
    """Raise the error of the registry behind the hub, if the answer is one.

    Raises:
        DeltaHubError: what the registry raised.
    """
    if answer.status_code < 400:
        return
    try:
        error = error_from_dict(answer.json())
    except ValueError:
        return
    if error:
        raise error
