"""The strength of a delta: the factor of what it changes.

    y = f(x) + strength * (delta(f(x)) - f(x))        at each module of the delta

A LoRA multiplies its own scale, which costs nothing; other methods compute the formula.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from torch import nn

from deltahub.engine.guards import refuse_merged
from deltahub.engine.ledger import Entry, ledger_holding
from deltahub.errors import ConfigError, MergeError

_LARGEST: Final = 1e6  # more only overflows
_LOCK: Final = threading.Lock()


def set_strength(backbone: nn.Module, entry: Entry, strength: float) -> None:
    """Set the strength of a delta for good: see `DeltaBase.scale`.

    Raises:
        ConfigError: it is not a finite number, the method has no strength, or a `scaled` block is open.
        MergeError: deltas are merged.
        TargetError: the delta was removed.
    """
    value = _checked(backbone, entry, strength)
    if entry.lent is not None:
        raise _open_block(entry)
    _apply(entry, value)
    entry.config = replace(entry.config, strength=value)


@contextmanager
def scaled(backbone: nn.Module, entry: Entry, strength: float) -> Iterator[None]:
    """Give a delta another strength for the duration of a block: see `DeltaBase.scaled`.

    Raises:
        ConfigError, MergeError, TargetError: as for `set_strength`.
    """
    value = _checked(backbone, entry, strength)
    with _LOCK:
        if entry.lent is not None:
            raise _open_block(entry)
        entry.lent = value
    try:
        _apply(entry, value)
        yield
    finally:
        _apply(entry, entry.config.strength)
        entry.lent = None


def refuse_block(entry: Entry) -> None:
    """Refuse a merge inside a `scaled` block, whose strength would stay in the weights.

    Raises:
        MergeError: a block of the delta is open.
    """
    if entry.lent is not None:
        msg = f"A scaled block of {entry.name!r} is open, and its strength would stay in the weights. Leave it, or set the strength with scale()."
        raise MergeError(msg)


def _checked(backbone: nn.Module, entry: Entry, strength: float) -> float:
    ledger_holding(backbone, entry)
    refuse_merged(backbone)
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not abs(strength) <= _LARGEST:
        msg = f"The strength of a delta is a number of at most {_LARGEST:g}, such as 0.7, got {strength!r}."
        raise ConfigError(msg)
    return float(strength)


def _apply(entry: Entry, strength: float) -> None:
    for insertion in entry.insertions.values():
        insertion.check_strength(strength)
    for insertion in entry.insertions.values():
        insertion.set_strength(strength)


def _open_block(entry: Entry) -> ConfigError:
    return ConfigError(
        f"A scaled block of {entry.name!r} is open, and it holds for all threads. Leave it first, or use a copy of the backbone."
    )
