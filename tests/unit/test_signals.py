"""Signal handlers: put in by the first run, out by the last, and the old ones back whatever happens."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from asyncexp.signals import NAMES, handled


class Run:
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.told = asyncio.Event()

    def signalled(self, name: str) -> None:
        self.heard.append(name)
        self.told.set()


def current() -> list[Any]:
    return [signal.getsignal(getattr(signal, name)) for name in NAMES]


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    before = current()
    yield
    assert current() == before


@pytest.mark.parametrize("name", NAMES)
async def test_a_signal_reaches_every_run(name: str) -> None:
    first, second = Run(), Run()
    with handled(first, None), handled(second, None):
        os.kill(os.getpid(), getattr(signal, name))
        await asyncio.wait_for(asyncio.gather(first.told.wait(), second.told.wait()), 30)
    assert first.heard == second.heard == [name]


def sleeps(thread: int) -> bool:
    return Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[0] == "S"


async def test_a_signal_that_the_kernel_hands_to_another_thread_is_heard_at_once() -> None:
    main = threading.get_native_id()

    def receive() -> None:
        while not sleeps(main):
            time.sleep(0.001)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    with handled(run := Run(), True):
        thread = threading.Thread(target=receive)
        began = time.monotonic()
        thread.start()
        await asyncio.wait_for(run.told.wait(), 60)
        thread.join()
    assert time.monotonic() - began < 30


async def test_who_has_signals_told_to_the_loop_already_keeps_it_so() -> None:
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, heard.set)
    try:
        with handled(run := Run(), True):
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(run.told.wait(), heard.wait()), 30)
        heard.clear()
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.wait_for(heard.wait(), 30)
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)


async def test_the_handlers_stay_until_the_last_run_has_ended_in_whatever_order() -> None:
    before = current()
    first, second = ExitStack(), ExitStack()
    first.enter_context(handled(Run(), None))
    second.enter_context(handled(run := Run(), None))
    first.close()
    assert current() != before
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(run.told.wait(), 30)
    second.close()
    assert current() == before


async def test_the_handlers_come_back_after_an_error() -> None:
    before = current()

    def fail() -> None:
        with handled(Run(), True):
            assert current() != before
            raise ValueError("in between")

    with pytest.raises(ValueError, match="in between"):
        fail()
    assert current() == before


def test_a_loop_closed_in_the_middle_leaves_the_next_signal_to_whom_it_was_for_before() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))

    async def runs() -> None:
        with handled(Run(), None):
            await asyncio.sleep(1000)

    try:
        loop = asyncio.new_event_loop()
        task = loop.create_task(runs())
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        signal.raise_signal(signal.SIGINT)
        assert heard == [signal.SIGINT]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    finally:
        signal.signal(signal.SIGINT, before)


async def test_false_touches_nothing() -> None:
    before = current()
    with handled(Run(), False):
        assert current() == before


@pytest.mark.parametrize("other", [signal.SIG_IGN, lambda *_: None])
async def test_a_handler_of_the_programs_own_is_respected_unless_told_to_insist(other: Any) -> None:
    old = signal.signal(signal.SIGTERM, other)
    try:
        before = current()
        with handled(Run(), None):
            assert current() == before
        with handled(Run(), True):
            assert current() != before
        assert current() == before
    finally:
        signal.signal(signal.SIGTERM, old)


async def test_another_thread_gets_no_handlers_and_is_told_so_if_it_insists() -> None:
    before = current()
    found: list[Any] = []

    async def inside() -> None:
        with handled(Run(), None):
            found.append(current())
        with pytest.raises(RuntimeError, match="main thread"), handled(Run(), True):
            found.append("never")

    thread = threading.Thread(target=lambda: asyncio.run(inside()))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert found == [before]
