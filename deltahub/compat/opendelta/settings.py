"""OpenDelta's global settings: the order of the axes of hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from deltahub.errors import ConfigError

_ORDER: Final = (0, 1, 2)


class GlobalSetting:
    """The settings of a process. Only (batch, tokens, hidden) is supported as the order of axes."""

    @property
    def axis_order(self) -> list[int]:
        """The axes of hidden states: batch, tokens, hidden."""
        return list(_ORDER)

    @axis_order.setter
    def axis_order(self, order: Sequence[int]) -> None:
        if tuple(order) != _ORDER:
            msg = (
                f"axis_order must be {list(_ORDER)}, (batch, tokens, hidden), got {list(order)}: deltas would act on the wrong "
                "axis. Transpose the hidden states around the modules, or put the delta on modules that return this order."
            )
            raise ConfigError(msg)


global_setting: Final = GlobalSetting()


def set_axis_order(axis_order: Sequence[int] = _ORDER) -> None:
    """Set the order of the axes of hidden states.

    Raises:
        ConfigError: it is another order than (batch, tokens, hidden).
    """
    global_setting.axis_order = list(axis_order)
