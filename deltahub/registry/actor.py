"""The person or program that changes a registry.

A hub changes its registry in the name of the caller whose token came with the request. Within a process of its user, a registry is
changed in the name that DELTAHUB_AUTHOR gives, which nobody checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from deltahub.registry import stamps

IN_PROCESS: Final = "process"  # the scope of users that have the store itself, without a hub before it
Scope = Literal["none", "read", "write", "admin", "process"]


@dataclass(frozen=True)
class Actor:
    """Who makes a change.

    Attributes:
        name: of a token, or of the user of this machine; the author in the log.
        scope: of the token; ``"process"`` for who has the store itself.
        request: the id that a client gave the request, 32 hex digits, so that a change sent twice is made once; empty for none.
    """

    name: str
    scope: Scope = IN_PROCESS
    request: str = ""

    @classmethod
    def in_process(cls) -> Actor:
        """Return the user of this process."""
        return cls(stamps.author())


NOBODY: Final = Actor("nobody", "none")  # may move no protected alias
