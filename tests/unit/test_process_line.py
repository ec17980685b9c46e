"""A child's line to its parent, interrupted by a signal's handler that raises, wherever Python looks for signals."""

from __future__ import annotations

import asyncio
import itertools
import random
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from operator import methodcaller
from typing import Any
from unittest.mock import patch

import pytest

from asyncexp import SyncResultProcessor
from asyncexp.db.base import Target
from asyncexp.pools.child import Line
from asyncexp.pools.frames import Frames, packed
from tests.contract.sql import fetch as sql
from tests.contract.support import Keys
from tests.unit.children import Study
from tests.unit.interruptions import interrupted

LONG = "x" * 300_000
"""Longer than what a socket holds: it is sent in parts, while the parent reads."""


class Parent:
    """The other end of a line: answers what is asked, and gives an order for each message that wants one."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.got: list[Any] = []
        self.fault: Exception | None = None

    def serve(self) -> None:
        frames = Frames()
        try:
            while data := self.sock.recv(10_000):
                for message in frames.feed(data):
                    self._answer(message)
        except Exception as fault:  # noqa: BLE001  (the test looks at it)
            self.fault = fault

    def _answer(self, message: tuple[Any, ...]) -> None:
        self.got.append(message)
        match message:
            case ("results", number, _):
                self.sock.sendall(packed(("stop",)) + packed(("answer", number, None)))
            case ("wanted", order):
                self.sock.sendall(packed(("order", order)))


@contextmanager
def lined() -> Iterator[tuple[Line, Parent]]:
    mine, its = socket.socketpair()
    its.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    # A line that ends, ends its process.
    with mine, its, patch("os._exit", sys.exit):
        parent = Parent(mine)
        thread = threading.Thread(target=parent.serve, daemon=True)
        thread.start()
        try:
            yield Line(its), parent
        finally:
            mine.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert parent.fault is None


def ask(call: Coroutine[Any, Any, None]) -> None:
    with suppress(StopIteration):
        call.send(None)


def allowed() -> None: ...


def in_time(call: Callable[[], object]) -> None:
    """Makes the call in a thread of its own, so that one that never ends fails the test."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it waits for ever"


@pytest.mark.parametrize("reader", ["alone", "beside another that reads"])
def test_a_line_works_on_wherever_a_call_was_interrupted(reader: str) -> None:
    with lined() as (line, parent):
        if reader != "alone":
            waits = threading.Thread(target=line.wait, daemon=True)
            waits.start()
        points = 0
        for number in itertools.count(1):
            call = line.ask_now(allowed, "results", LONG)
            where = interrupted(partial(ask, call), number)
            call.close()
            in_time(partial(ask, line.ask_now(allowed, "results", f"after {number}")))
            assert line.told_to_stop
            if not where:
                break
            points += 1
        assert points > 20
        sent = [message[2] for message in parent.got]
        assert len({message[1] for message in parent.got}) == len(sent)
        assert [what for what in sent if what != LONG] == [f"after {each}" for each in range(1, points + 2)]
        if reader != "alone":
            line.send(("wanted", "the last"))
            waits.join(10)
            assert not waits.is_alive()


def test_an_order_is_neither_lost_nor_taken_twice_wherever_waiting_for_it_was_interrupted() -> None:
    taken: list[int] = []
    with lined() as (line, _):

        def take() -> None:  # what came back is not lost here
            taken.extend(map(methodcaller("wait"), [line]))

        for number in itertools.count(1):
            line.send(("wanted", number))
            where = interrupted(take, number)
            line.send(("wanted", -number))
            for _ in range(2 * number - len(taken)):
                in_time(take)
            if not where:
                break
    assert taken == [each for one in range(1, number + 1) for each in (one, -one)]
    assert number > 20


async def test_an_answer_comes_wherever_the_look_for_it_was_interrupted() -> None:
    loop = asyncio.get_running_loop()
    with lined() as (line, _):
        loop.add_reader(line.sock, line.look_again, loop)
        for number in itertools.count(1):
            told = line.ask_later(allowed, "results", "short")
            select.select([line.sock], [], [], 10)
            if not interrupted(lambda: line.look_again(loop), number):
                break
            await asyncio.wait_for(told, 10)
        loop.remove_reader(line.sock)
        assert number > 20


async def test_an_alarm_that_raises_at_any_moment_costs_the_call_that_it_ends_and_nothing_else(
    study: Study, sqlite_target: Target
) -> None:
    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        class Alarm(Exception): ...

        def rings(*_: object) -> None:
            raise Alarm

        chance, rung = random.Random(keys["number"]), 0
        signal.signal(signal.SIGALRM, rings)
        for step in range(150):
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.choice((1e-5, 1e-4, 1e-3)) * chance.uniform(1, 10))
                results.process_logs({"steps": {"step": step, "note": "x" * chance.choice((1, 300_000))}})
                results.process_results({"text": "x" * chance.choice((1, 300_000))})
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Alarm:
                rung += 1
        results.process_results({"text": "well" if rung > 20 else f"only {rung} rung"})
        results.process_logs({"steps": {"step": -1}})

    summary = await (await study(2)).execute(run, n_jobs=2, timeout=40)
    assert (summary.done, summary.errors) == (2, ())
    assert await sql(sqlite_target, 'SELECT DISTINCT "text" FROM "experiments"') == [("well",)]
    last = 'SELECT COUNT(*) FROM "experiments__steps" WHERE "step" = -1'
    assert await sql(sqlite_target, last) == [(2,)]
