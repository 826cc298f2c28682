"""One choice from beginning to end: a page asks, previews, and submits or cancels; whoever waits for it gets the answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from torch import nn

from deltahub.config import DeltaConfig
from deltahub.engine.building import Method
from deltahub.errors import NothingChosenError
from deltahub.web.preview import Choice, Preview
from deltahub.web.tree import tree_json

GRACE: Final = 5.0  # seconds in which a page may come back after it is gone, as when it is reloaded
_LOOK: Final = 0.2  # seconds between two looks at whether all pages are gone
Reply = Callable[[dict[str, Any]], None]


def _nobody(answer: dict[str, Any]) -> None:
    """Where no page is left to be answered."""


class Session:
    """Holds what is chosen; its methods may be called from several threads.

    Args:
        backbone: the model to choose from.
        deltas: the delta types to choose for, each with its options; the first is proposed.
        grace: seconds that a page may be away before the session counts as left.
    """

    def __init__(
        self, backbone: nn.Module, deltas: Mapping[str, tuple[Method, DeltaConfig]], grace: float = GRACE
    ) -> None:
        self.over = threading.Event()
        self.tree = {**tree_json(backbone), "types": list(deltas)}
        self._preview = Preview(backbone, deltas)
        self._grace = grace
        self._planning = threading.Lock()  # one preview at a time: each works on the whole model
        self._state = threading.Lock()  # guards all that follows
        self._pages = 0
        self._gone_at: float | None = None  # when the last page went away
        self._decided = False  # the first word counts
        self._choice: Choice | None = None
        self._why = ""

    def preview(self, names: Sequence[str], delta_type: str) -> dict[str, Any]:
        """What a choice would come to, as `Preview.answer` gives it.

        Raises:
            ConfigError: the names or the type are none that the page can know.
        """
        with self._planning:
            return self._preview.answer(self._preview.choice(names, delta_type))

    def submit(self, names: Sequence[str], delta_type: str, reply: Reply) -> None:
        """End the session with a choice, unless it is refused.

        Args:
            reply: told the answer, as `preview` gives it.

        Raises:
            ConfigError: the names or the type are none that the page can know.
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
            reply: told an empty answer, or a refusal if the session has ended already.
        """
        self._end(None, "the choice was cancelled on its page", {}, reply)

    @contextmanager
    def page(self) -> Iterator[None]:
        """Counts as one open page."""
        with self._state:
            self._pages += 1
        try:
            yield
        finally:
            with self._state:
                self._pages -= 1
                self._gone_at = time.monotonic()

    def wait(self) -> Choice:
        """Wait for the end.

        Raises:
            NothingChosenError: it was cancelled, or all its pages were closed.
        """
        while not self.over.wait(_LOOK):
            if self._is_left():
                self._end(None, "its page was closed", {}, _nobody)
        if self._choice is None:
            raise NothingChosenError(self._why)
        return self._choice

    def _is_left(self) -> bool:
        with self._state:
            gone = self._gone_at if not self._pages else None
            return gone is not None and time.monotonic() - gone >= self._grace

    def _end(self, choice: Choice | None, why: str, answer: dict[str, Any], reply: Reply) -> None:
        with self._state:
            first, self._decided = not self._decided, True
            if first:
                self._choice, self._why = choice, why
        try:  # the answer goes out before the end: the program may be over right after it
            reply(answer if first else {"refusal": "This choice has ended already."})
        finally:
            if first:
                self.over.set()
