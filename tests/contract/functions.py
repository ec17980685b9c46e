"""Experiment functions that several tests use.

A child process imports this module to find them, so it imports little itself: no pytest, no `Experimenter`.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from asyncexp import ExperimentStatus, ResultProcessor, SyncResultProcessor
from tests.contract.shared import Gate, Seen, until

if TYPE_CHECKING:
    from asyncexp import Experimenter

Keys = dict[str, Any]


async def nothing(keys: Keys, results: ResultProcessor, custom: Keys) -> None: ...


async def never(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
    raise AssertionError("nothing is to be run")


async def for_ever(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
    await asyncio.Event().wait()


async def reports_its_process(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
    await results.process_results({"result": keys["number"], "text": str(os.getpid())})


async def done(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
    await results.process_results({"result": keys["number"]})


async def short(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
    """Two lines, which name the attempt, and a result, within 10 ms."""
    await results.process_logs({"steps": [{"step": results.attempt, "note": "a"}, {"step": results.attempt}]})
    await asyncio.sleep(random.uniform(0, 0.01))
    await results.process_results({"result": keys["number"] * 2})


async def fail_alike(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
    raise ValueError(f"number {keys['number']}")


ENDS = [None, *(ExperimentStatus(name) for name in ("done", "error", "paused", "created"))]


async def mixed(keys: Keys, results: ResultProcessor, custom: Keys) -> ExperimentStatus | None:
    """Each of the ends that there are, by number; the sixth fails."""
    if keys["number"] == len(ENDS):
        raise ValueError("number five")
    return ENDS[keys["number"]]


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class AsObject:
    async def __call__(self, keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        await done(keys, results, custom)

    async def method(self, keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        await done(keys, results, custom)


async def scaled(factor: int, keys: Keys, results: ResultProcessor, custom: Keys) -> None:
    await done(keys, results, custom)


@dataclass(frozen=True)
class Ran:
    """Notes which rows it is called for."""

    seen: Seen
    status: ExperimentStatus | None = None

    async def __call__(self, keys: Keys, results: ResultProcessor, custom: Keys) -> ExperimentStatus | None:
        self.seen.append([int(results.experiment_id), keys])
        return self.status

    @property
    def ids(self) -> list[int]:
        return [number for number, _ in self.seen]

    @property
    def keys(self) -> list[Keys]:
        return [keys for _, keys in self.seen]


@dataclass(frozen=True)
class Flaky:
    """Fails the first `failures` attempts at each row."""

    failures: int
    error: BaseException = field(default_factory=lambda: OSError("shaky"))
    times: Seen | None = None

    async def __call__(self, keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        if self.times is not None:
            self.times.append(time.monotonic())
        if results.attempt <= self.failures:
            raise self.error


@dataclass(frozen=True)
class Stoppable:
    """Says when it has begun, and waits for ever, or for `should_stop`."""

    began: Seen
    cancelled: Seen
    """What it saw of its cancellation; a child that is killed sees nothing."""
    end: Callable[[Keys], Any] | None = None

    async def __call__(self, keys: Keys, results: ResultProcessor, custom: Keys) -> Any:
        await results.process_results({"text": "kept"})
        await results.process_logs({"steps": {"step": results.attempt}})
        self.began.append(keys["number"])
        try:
            await until(lambda: self.end is not None and results.should_stop)
        except asyncio.CancelledError:
            self.cancelled.append(keys["number"])
            raise
        return self.end(keys) if self.end else None


@dataclass(frozen=True)
class Held:
    """Waits until it is cancelled, told to stop, or let go."""

    began: Seen
    let_go: Gate
    cancelled: Seen
    """What it saw of its cancellation; a child that is killed sees nothing."""

    async def __call__(self, keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        await results.process_results({"result": 1})
        self.began.append(int(results.experiment_id))
        try:
            await self.let_go.passed()
        except asyncio.CancelledError:
            self.cancelled.append(int(results.experiment_id))
            raise


@dataclass(frozen=True)
class Waits:
    """Opens a gate when it begins, and ends when the test opens the other."""

    began: Gate
    go_on: Gate

    async def __call__(self, keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        self.began.open()
        await self.go_on.passed()


@dataclass(frozen=True)
class Joined:
    """Notes (ID, attempt, worker) for others to attach to, and ends when told: as the last status noted, or as done."""

    ids: Seen
    status: Seen
    go_on: Gate

    async def __call__(self, keys: Keys, results: ResultProcessor, custom: Keys) -> ExperimentStatus | None:
        mine = results.experiment_id
        self.ids.append([int(mine), mine.attempt, mine.worker])
        await self.go_on.passed()
        return ExperimentStatus(self.status.values()[-1]) if len(self.status) else None


@dataclass(frozen=True)
class Gated:
    """Notes that it runs, waits to be let through, and gives the number twice as its result."""

    started: Seen
    go_on: Gate

    async def __call__(self, keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        self.started.append(keys["number"])
        await results.process_logs({"steps": {"step": keys["number"]}})
        await self.go_on.passed()
        await results.process_results({"result": keys["number"] * 2})


@dataclass(frozen=True)
class Attaches:
    """Attaches a worker to itself, which notes that it is there and waits to be let through."""

    experimenter: Experimenter
    joined: Seen
    go_on: Gate
    home: int = field(default_factory=os.getpid)
    """The process of its worker, whose experimenter is open."""

    async def __call__(self, keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        async def worker(attached: ResultProcessor) -> None:
            await attached.process_logs({"steps": {"step": keys["number"], "note": "attached"}})
            await attached.flush()
            self.joined.append(keys["number"])
            await self.go_on.passed()

        async with self.experimenter if os.getpid() != self.home else nullcontext():
            await self.experimenter.attach(worker, results.experiment_id)


@dataclass(frozen=True)
class Computes:
    """The even ones compute for so long, the others sleep; so many of them at the same time."""

    seconds: float
    began: Seen
    together: int

    def __call__(self, keys: Keys, results: SyncResultProcessor, custom: Keys) -> None:
        self.began.append(keys["number"])
        while len(self.began) < self.together:
            time.sleep(0.005)
        until = time.monotonic() + self.seconds
        while keys["number"] % 2 == 0 and time.monotonic() < until:
            sum(range(1000))
        time.sleep(max(0.0, until - time.monotonic()))
