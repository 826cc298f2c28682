"""How many connections a hub takes, from whom, and that it is asked about its health however many there are."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator

import pytest

from deltahub.server import admission
from deltahub.server.admission import Connections
from deltahub.server.connections import GuardedProtocol
from deltahub.server.descriptors import connections_for
from deltahub.stores.memory import MemoryStore
from tests.server.guarded import guarded
from tests.server.running import listening


class Line:
    """The other side of a connection."""

    def __init__(self) -> None:
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


def test_one_address_has_a_share_of_the_connections():
    connections = Connections(8)
    assert [connections.enter("a", Line()) for _ in range(3)] == [True, True, False]
    assert [connections.enter(address, Line()) for address in "bbccdde"] == [True] * 6 + [False]
    connections.leave("b", served=True, transport=Line())
    assert connections.enter("e", Line())


@pytest.mark.parametrize("proxies", ["*", "10.0.0.1", "127.0.0.1, 10.0.0.0/8"])
def test_a_proxy_may_have_all_connections_for_it_speaks_for_many(proxies):
    connections = Connections(8, proxies)
    assert [connections.enter("10.0.0.1", Line()) for _ in range(9)] == [True] * 8 + [False]


def test_of_connections_beyond_the_limit_the_oldest_are_closed(monkeypatch, caplog):
    monkeypatch.setattr(admission, "_RESERVE", 2)
    connections, lines = Connections(4), [Line() for _ in range(6)]
    assert [connections.enter("a", line) for line in lines] == [True] + [False] * 5
    assert [line.aborted for line in lines] == [False, True, True, True, False, False]
    assert len([record for record in caplog.records if "More are turned away" in record.message]) == 1
    for line in lines[4:]:
        connections.leave("a", served=False, transport=line)
    assert len(connections._reserve) == 0


@contextlib.contextmanager
def limited(most: int, monkeypatch) -> Iterator[tuple[str, int]]:
    """A hub that takes few connections."""
    monkeypatch.setattr(GuardedProtocol, "admission", Connections(most))
    with listening(guarded(MemoryStore())) as address:
        yield address


def ask(address: tuple[str, int], path: str) -> bytes:
    with socket.create_connection(address, timeout=30) as line:
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: line.recv(65536), b""))


def test_health_checks_are_answered_while_all_connections_are_taken(monkeypatch):
    with limited(8, monkeypatch) as address, contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(address, timeout=30)) for _ in range(60)]
        assert len(held) == 60
        assert ask(address, "/healthz").endswith(b"alive\n")
        assert ask(address, "/readyz").endswith(b"ready\n")
        refused = ask(address, "/caller")
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 5" in refused.lower()


def test_the_limit_of_open_files_is_known(monkeypatch, caplog):
    set_to = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1000))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    assert connections_for(1024) == 500
    assert set_to == [(1000, 1000)]
    assert "may have 1000 files open, so it takes 500 connections instead of 1024" in caplog.text
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    assert connections_for(1024) == 1024
    assert set_to[1:] == [(1536, resource.RLIM_INFINITY)]
