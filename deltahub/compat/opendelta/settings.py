"""OpenDelta's global setting: the order of the axes of hidden states, of which only (batch, tokens, hidden) works here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from deltahub.errors import ConfigError

_ORDER: Final = (0, 1, 2)


class GlobalSetting:
    """The settings of a process: `axis_order` is batch, tokens, hidden."""

    axis_order: Sequence[int] = list(_ORDER)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "axis_order" or tuple(value) != _ORDER:
            msg = (
                f"axis_order must be {list(_ORDER)}, (batch, tokens, hidden), got {name}={value}: deltas would act on the wrong "
                "axis. Transpose the hidden states around the modules, or put the delta on modules that return this order."
            )
            raise ConfigError(msg)


global_setting: Final = GlobalSetting()


def set_axis_order(axis_order: Sequence[int] = _ORDER) -> None:
    """Set the order of the axes of hidden states.

    Raises:
        ConfigError: it is another order than (batch, tokens, hidden).
    """
    global_setting.axis_order = axis_order
