"""Waiting for a server never keeps Ctrl-C from being heard, and one failure ends all."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from deltahub.stores.threads import interruptible, map_concurrently, run_concurrently


def test_a_call_gives_back_what_it_gives_or_raises():
    assert interruptible(lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 / 0)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interrupt_is_heard_while_a_call_waits():
    never = threading.Event()

    def call() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        never.wait()

    with pytest.raises(KeyboardInterrupt):
        interruptible(call)
    never.set()


def test_every_item_has_its_call_and_no_more_than_asked_run_at_once():
    done, running, lock, full = [], set(), threading.Lock(), threading.Barrier(2, timeout=30)

    def call(item: int, stop: threading.Event) -> None:
        with lock:
            running.add(item)
            assert len(running) <= 2
        full.wait()  # goes on only while two are running
        with lock:
            running.remove(item)
            done.append(item)
        full.wait()

    run_concurrently(call, range(4), 2)
    assert sorted(done) == [0, 1, 2, 3]


def test_the_first_failure_is_raised_and_the_rest_are_stopped():
    started, told = [], threading.Event()

    def call(item: int, stop: threading.Event) -> None:
        started.append(item)
        if item == 0:
            raise ValueError(item)
        stop.wait()
        told.set()

    with pytest.raises(ValueError, match="0"):
        run_concurrently(call, range(100), 2)
    assert told.is_set() == (len(started) == 2)
    assert len(started) <= 2


def test_nothing_to_do_is_done():
    run_concurrently(lambda item, stop: pytest.fail("called"), [], 4)


def test_a_thread_that_hears_no_signals_makes_its_calls_itself():
    found = []

    def work() -> None:
        found.append((interruptible(threading.get_ident), threading.get_ident()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert interruptible(threading.get_ident) != threading.get_ident()
    ((made, asked),) = found
    assert made == asked


def test_calls_that_are_spread_come_back_in_order_from_no_more_threads_than_asked():
    def call(item: int) -> tuple[int, int]:
        return item, threading.get_ident()

    found = list(map_concurrently(call, range(50), 3))
    assert [item for item, _ in found] == list(range(50))
    assert len({thread for _, thread in found}) <= 3


def test_an_abandoned_iteration_leaves_no_thread_behind():
    started, go = [], threading.Event()

    def call(item: int) -> int:
        started.append(threading.current_thread())
        if item:
            go.wait(30)
        return item

    calls = map_concurrently(call, range(9), 3)
    assert next(calls) == 0
    calls.close()
    go.set()
    for thread in started:
        thread.join(30)
    assert not any(thread.is_alive() for thread in started)


def test_a_spread_call_that_fails_is_raised_when_it_is_its_turn():
    calls = map_concurrently(lambda item: 1 // item, [1, 0, 1], 3)
    assert next(calls) == 1
    with pytest.raises(ZeroDivisionError):
        next(calls)
