"""Waiting for calls that do not hear Ctrl-C themselves, and for those that may never end."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")
Item = TypeVar("Item")


class Stopped(BaseException):
    """Raised within a call that nobody waits for any more."""


def interruptible(call: Callable[[], T]) -> T:
    """Make a call on a thread of its own, so that Ctrl-C and signals are heard while it waits for a server.

    The thread is a daemon: a process that was interrupted ends at once, whatever the server does. Signals are heard by the main
    thread alone, so that a call from any other one is made there.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    return _started(call).result()


def within(seconds: float, call: Callable[[], T]) -> T:
    """Make a call on a thread of its own, and give it up after a time: a server that sends a byte now and then is silent to no timeout.

    The thread is a daemon, and is left alone then.

    Raises:
        TimeoutError: it did not end in time.
    """
    from concurrent.futures import wait  # late, as below

    future = _started(call)
    if not wait([future], seconds).done:
        msg = f"not done after {seconds:.0f} s"
        raise TimeoutError(msg)
    return future.result()


def spread(call: Callable[[Item], T], items: Iterable[Item], at_once: int) -> Iterator[T]:
    """What a call gives for every item, in their order, with several calls on their way at the same time.

    Args:
        call: if it raises, so does the iterator when it comes to that item; calls on their way are left alone.
        at_once: how many; with 1 each call is made here, when it is asked for.
    """
    if at_once == 1:
        yield from map(call, items)
        return
    running: deque[Future[T]] = deque()
    waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
    threads = 0

    def work() -> None:
        while made := waiting.get():
            made()

    try:
        for item in items:
            if len(running) == at_once:
                yield running.popleft().result()
            future, made = _promised(partial(call, item))
            running.append(future)
            waiting.put(made)
            if threads < at_once:
                threads += 1
                _start(work)
        while running:
            yield running.popleft().result()
    finally:
        for _ in range(threads):
            waiting.put(None)


def each(call: Callable[[Item, threading.Event], None], items: Iterable[Item], at_once: int) -> None:
    """Make a call for every item, several at once; the first that fails is raised, when the others have ended early.

    Args:
        call: takes an item, and the event that is set when it shall end early.
        at_once: how many run at the same time.
    """
    from concurrent.futures import as_completed, wait

    waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    stop = threading.Event()  # also for those that go on when nobody waits any more

    def work() -> None:
        while not stop.is_set():
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            call(item, stop)

    running = [_started(work) for _ in range(min(at_once, waiting.qsize()))]
    try:
        for future in as_completed(running):
            future.result()
    except Exception:
        stop.set()
        wait(running)
        raise
    finally:
        stop.set()


def _started(call: Callable[[], T]) -> Future[T]:
    future, made = _promised(call)
    _start(made)
    return future


def _promised(call: Callable[[], T]) -> tuple[Future[T], Callable[[], None]]:
    """What a call will give, and what makes it on whichever thread."""
    from concurrent.futures import Future  # late: 15 ms that a folder does not need

    future: Future[T] = Future()

    def make() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001  (whoever waits gets it)
            future.set_exception(error)

    return future, make


def _start(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="deltahub-store", daemon=True).start()
