"""One picker session: a page asks for previews, and submits or cancels; the waiting thread gets the choice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from torch import nn

from deltahub.checkpoint.config import DeltaConfig
from deltahub.engine.building import Method
from deltahub.errors import NothingChosenError
from deltahub.picker.preview import Choice, Preview
from deltahub.picker.tree import tree_json

GRACE: Final = 5.0  # seconds for a closed page to return, as on reload
_LOOK: Final = 0.2  # polling interval in seconds for closed pages
Reply = Callable[[dict[str, Any]], None]


def _nobody(answer: dict[str, Any]) -> None:
    """Discard a reply when no page is left to receive it."""


class Session:
    """The state of a choice; its methods are thread-safe.

    Args:
        backbone: the model to choose from.
        deltas: the delta types to choose for, each with its options; the first is the default.
        grace: seconds without an open page before the session counts as abandoned.
    """

    def __init__(
        self, backbone: nn.Module, deltas: Mapping[str, tuple[type[Method], DeltaConfig]], grace: float = GRACE
    ) -> None:
        self.over = threading.Event()
        self.tree = {**tree_json(backbone), "types": list(deltas)}
        self._preview = Preview(backbone, deltas)
        self._grace = grace
        self._planning = threading.Lock()  # one preview at a time: each uses the whole model
        self._state = threading.Lock()  # guards all attributes below
        self._pages = 0
        self._gone_at: float | None = None  # when the last page closed
        self._decided = False  # the first submit or cancel wins
        self._choice: Choice | None = None
        self._why = ""

    def preview(self, names: Sequence[str], delta_type: str) -> dict[str, Any]:
        """Return the preview of a choice, as `Preview.answer` does.

        Raises:
            ConfigError: the names or the type are not in the page's tree.
        """
        with self._planning:
            return self._preview.answer(self._preview.choice(names, delta_type))

    def submit(self, names: Sequence[str], delta_type: str, reply: Reply) -> None:
        """End the session with a choice, unless it is refused.

        Args:
            reply: called with the answer, as returned by `preview`.

        Raises:
            ConfigError: the names or the type are not in the page's tree.
        """
        with self._planning:
            choice = self._preview.choice(names, delta_type)
            answer = self._preview.answer(choice)
        if "refusal" in answer:
            reply(answer)
        else:
            self._end(choice, "", answer, reply)

    def cancel(self, reply: Reply = _nobody) -> None:
        """End the session without a choice.

        Args:
            reply: called with an empty answer, or with a refusal if the session has ended already.
        """
        self._end(None, "the choice was cancelled on the page", {}, reply)

    @contextmanager
    def page(self) -> Iterator[None]:
        """Count one open page while the context is open."""
        with self._state:
            self._pages += 1
        try:
            yield
        finally:
            with self._state:
                self._pages -= 1
                self._gone_at = time.monotonic()

    def wait(self) -> Choice:
        """Wait for the end of the session and return the choice.

        Raises:
            NothingChosenError: the page was cancelled, or all pages were closed.
        """
        while not self.over.wait(_LOOK):
            if self._is_left():
                self._end(None, "its page was closed", {}, _nobody)
        if self._choice is None:
            raise NothingChosenError(self._why)
        return self._choice

    def _is_left(self) -> bool:
        with self._state:
            left_at = self._gone_at if not self._pages else None
            return left_at is not None and time.monotonic() - left_at >= self._grace

    def _end(self, choice: Choice | None, why: str, answer: dict[str, Any], reply: Reply) -> None:
        with self._state:
            first, self._decided = not self._decided, True
            if first:
                self._choice, self._why = choice, why
        try:  # reply before the end: the program may exit right after it
            reply(answer if first else {"refusal": "This choice has already ended."})
        finally:
            if first:
                self.over.set()
