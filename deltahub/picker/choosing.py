"""Opening the picker page and waiting for the user's choice of modules."""

from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from torch import nn

from deltahub.checkpoint.config import DeltaConfig
from deltahub.engine.building import Method
from deltahub.errors import ConfigError
from deltahub.picker.preview import Choice
from deltahub.picker.server import HOST, PickerServer
from deltahub.picker.session import Session

USUAL_PORT: Final = 8888  # OpenDelta's port
_PORTS: Final = range(1, 1 << 16)


def config_chosen(
    method: type[Method], backbone: nn.Module, config: DeltaConfig, interactive_modify: bool | int
) -> DeltaConfig:
    """Complete a config with modules chosen on a page.

    Args:
        interactive_modify: a local port; True for 8888, or any free port if that is taken.

    Raises:
        ConfigError: `modified_modules` is given too, or the port is not available.
        NothingChosenError: the page was closed or cancelled.
    """
    if config.modified_modules is not None:
        msg = f"modified_modules={list(config.modified_modules)} and interactive_modify exclude each other: pass one."
        raise ConfigError(msg)
    choice = choose(backbone, {config.delta_type: (method, config)}, interactive_modify)
    print(choice.line, flush=True)  # noqa: T201  (OpenDelta prints it too, to be copied into a script)
    return replace(config, modified_modules=choice.exact, common_structure=False)


def choose(
    backbone: nn.Module,
    deltas: Mapping[str, tuple[type[Method], DeltaConfig]],
    port: bool | int = True,
    say: Callable[[str], None] | None = None,
) -> Choice:
    """Open a page, announce its address, and wait until the user has chosen.

    Args:
        deltas: the delta types to choose for, each with its options; the first is the default.
        port: a local port; True for 8888, or any free port if that is taken.
        say: called with a line that has the page's address; by default it is printed on stderr.

    Raises:
        ConfigError: the port is not available.
        NothingChosenError: the page was closed or cancelled.
    """
    session = Session(backbone, deltas)
    with _server(session, port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            (say or _on_stderr)(f"Choose modules on {server.url} (Ctrl-C to cancel)")
            return session.wait()
        finally:
            session.over.set()  # releases pages that are still open
            server.shutdown()
            thread.join()


def _on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def _server(session: Session, port: bool | int) -> PickerServer:
    if port is not True and port not in _PORTS:
        msg = f"interactive_modify must be True or a port from {_PORTS.start} to {_PORTS.stop - 1}, got {port!r}."
        raise ConfigError(msg)
    try:
        return PickerServer(session, USUAL_PORT if port is True else port)
    except OSError as error:
        if port is True:
            return PickerServer(session)
        taken = error.errno == errno.EADDRINUSE
        why = "is taken by another program" if taken else f"is not available ({error.strerror})"
        msg = f"Port {port} of {HOST} {why}. Pass another port, or True for any that is free."
        raise ConfigError(msg) from error
