"""Worker process that renders cards, one JSON object per line in and out, isolating the hub from their cost.

Exceeding the limit of CPU time or memory, or a period without cards, ends the process.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Final

from deltahub.server.pages.card import render_card

_MEMORY: Final = 1 << 30  # bytes of address space
_IDLE: Final = 300  # seconds without a card


def main() -> None:
    """Render cards until the input ends."""
    _limit_memory()
    while True:
        _set_alarm(_IDLE)
        line = sys.stdin.buffer.readline()
        if not line:
            return
        _set_alarm(0)
        job = json.loads(line)
        _set_timer(job["seconds"])
        card = render_card(job["text"], job["links"], job["pictures"], frozenset(job["files"]))
        answer = json.dumps({"html": str(card.html), "facts": card.facts, "wrong": card.wrong})
        _set_timer(0)
        sys.stdout.buffer.write(answer.encode("utf-8", "replace") + b"\n")
        sys.stdout.buffer.flush()


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _set_alarm(seconds: int) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)  # the signal is not handled, so it ends the process


def _set_timer(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
