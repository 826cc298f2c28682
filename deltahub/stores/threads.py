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
    """An exception raised in a call whose result is no longer needed."""


def interruptible(call: Callable[[], T]) -> T:
    """Run a call in a thread of its own, so that Ctrl-C and signals are handled while it waits for a server.

    The thread is a daemon: an interrupted process ends at once, whatever the server does. Only the main thread handles signals, so a
    call from any other thread runs there directly.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    return _start_future(call).result()


def with_time_limit(seconds: float, call: Callable[[], T]) -> T:
    """Make a call on a thread of its own, and give it up after a time: a server that sends a byte now and then is silent to no timeout.

    The thread is a daemon, and is left alone then.

    Raises:
        TimeoutError: it did not end in time.
    """
    from concurrent.futures import wait  # late, as below

    future = _start_future(call)
    if not wait([future], seconds).done:
        msg = f"not done after {seconds:.0f} s"
        raise TimeoutError(msg)
    return future.result()


def map_concurrently(call: Callable[[Item], T], items: Iterable[Item], at_once: int) -> Iterator[T]:
    """Yield the results of a call for every item, in their order, with several calls running concurrently.

    Args:
        call: if it raises, so does the iterator when it reaches that item; running calls go on.
        at_once: how many run concurrently; with 1 each call runs in this thread, when its result is requested.
    """
    if at_once == 1:
        yield from map(call, items)
        return
    running: deque[Future[T]] = deque()
    pending: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
    threads = 0

    def work() -> None:
        while promise := pending.get():
            promise()

    try:
        for item in items:
            if len(running) == at_once:
                yield running.popleft().result()
            future, promise = _future_of(partial(call, item))
            running.append(future)
            pending.put(promise)
            if threads < at_once:
                threads += 1
                _start(work)
        while running:
            yield running.popleft().result()
    finally:
        for _ in range(threads):
            pending.put(None)


def run_concurrently(call: Callable[[Item, threading.Event], None], items: Iterable[Item], at_once: int) -> None:
    """Run a call for every item, several at once; the first error is raised after the others have ended early.

    Args:
        call: takes an item, and the event that is set when it should end early.
        at_once: how many run at the same time.
    """
    from concurrent.futures import as_completed, wait

    waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    stop = threading.Event()  # also for calls still running after an interrupt

    def work() -> None:
        while not stop.is_set():
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            call(item, stop)

    running = [_start_future(work) for _ in range(min(at_once, waiting.qsize()))]
    try:
        for future in as_completed(running):
            future.result()
    except Exception:
        stop.set()
        wait(running)
        raise
    finally:
        stop.set()


def _start_future(call: Callable[[], T]) -> Future[T]:
    future, promise = _future_of(call)
    _start(promise)
    return future


def _future_of(call: Callable[[], T]) -> tuple[Future[T], Callable[[], None]]:
    """Return the future of a call, and a function that runs it on any thread."""
    from concurrent.futures import Future  # late: 15 ms that a folder does not need

    future: Future[T] = Future()

    def make() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001  (raised by the future)
            future.set_exception(error)

    return future, make


def _start(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="deltahub-store", daemon=True).start()
