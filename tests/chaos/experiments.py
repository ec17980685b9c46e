"""The experiments of the storm: some log, pause, fail, come back later, attach others, or live longer than a lease.

What an experiment does follows from the seed and its number, so that the audit knows how it must end. Each attempt
makes a token, which its results and all its logs carry.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncexp import Experimenter, ExperimentStatus, ResultProcessor, SyncResultProcessor
from asyncexp.experiment import ExperimentId
from asyncexp.sync import PyExperimenter
from tests.chaos.journal import Entry, Journal

Keys = dict[str, Any]
FAILURE = "a failure that was meant"
KINDS = {
    "plain": 40,
    "talks": 12,
    "lasts": 6,
    "stumbles": 10,
    "fails": 3,
    "says_error": 3,
    "pauses": 8,
    "comes_back": 8,
    "attaches": 10,
}
"""Kind of experiment -> how many in a hundred."""
LOOK_SECONDS = 0.05
ATTACHED_FROM = 10_000
"""The first step that an attached worker logs."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Does nothing, until it is told to stop."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Log:
    lines: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Report:
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Beat:
    progress: float


@dataclass(frozen=True, slots=True)
class Attach:
    lines: list[dict[str, Any]]
    """What the attached worker logs."""


@dataclass(frozen=True, slots=True)
class Finish:
    status: ExperimentStatus | None


Step = Wait | Log | Report | Beat | Attach | Finish


def kind_of(seed: str, number: int) -> str:
    """What the experiment of this number does."""
    return random.Random(f"{seed}/{number}").choices(list(KINDS), list(KINDS.values()))[0]


class Attempt:
    """One attempt at one experiment, as steps for whoever can take them: a coroutine or a plain function."""

    def __init__(self, keys: Keys, experiment_id: ExperimentId, custom: Mapping[str, Any]) -> None:
        self.id = experiment_id
        self.hurried = False
        """It was told to stop while it waited."""
        self._number = int(keys["number"])
        self._folder = Path(custom["folder"])
        self._journal = Journal(self._folder / "journal")
        self._kind = kind_of(custom["seed"], self._number)
        self._random = random.Random(f"{custom['seed']}/{self._number}/{int(self.id)}/{self.id.attempt}")
        self._token = secrets.token_hex(8)
        self._lines = 0
        self._attached = 0
        self._note("began")

    def _note(self, what: Any, how: str = "") -> None:
        place = int(self.id), self.id.attempt, self._number, self._token
        self._journal.write(Entry(what, *place, how, self._lines, self._attached))

    def steps(self) -> Iterator[Step]:
        yield Wait(self._random.uniform(0, 0.3))
        yield self._log(self._random.randint(1, 3))
        yield from self._middle()
        yield Report({"text": self._token, "result": self._number * 0.5})
        yield self._log(2)
        yield Wait(self._random.uniform(0, 0.2))
        yield self._end()

    def _middle(self) -> Iterator[Step]:
        if self._kind == "talks":
            for part in range(8):
                yield self._log(5)
                yield Beat(part / 8)
                yield Wait(0.03)
        elif self._kind == "lasts":
            yield Report({"text": self._token})
            yield Wait(self._random.uniform(1.5, 3.5))
        elif self._kind == "attaches":
            yield Attach([{"step": ATTACHED_FROM + step, "note": self._token} for step in range(4)])
            self._attached = 4

    def _log(self, count: int) -> Log:
        first, self._lines = self._lines, self._lines + count
        return Log([{"step": step, "note": self._token} for step in range(first, self._lines)])

    def _end(self) -> Finish:
        status = self._status()
        if status is None and self._stumbles():
            self._note("ends", "raises")
            raise RuntimeError(FAILURE)
        self._note("ends", str(status or "done"))
        return Finish(status)

    def _stumbles(self) -> bool:
        return self._kind == "fails" or (self._kind == "stumbles" and self._random.random() < 0.5)

    def _status(self) -> ExperimentStatus | None:
        if self._kind == "says_error":
            return ExperimentStatus.ERROR
        if self._kind == "pauses" and self._first_time():
            return ExperimentStatus.PAUSED
        if self.hurried or (self._kind == "comes_back" and self._first_time()):
            return ExperimentStatus.CREATED
        return None

    def _first_time(self) -> bool:
        """Whether no attempt has come so far; leaves a checkpoint."""
        checkpoint = self._folder / "checkpoints" / str(int(self.id))
        try:
            checkpoint.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


async def as_task(keys: Keys, results: ResultProcessor, custom: Keys) -> ExperimentStatus | None:
    attempt = Attempt(keys, results.experiment_id, custom)
    for step in attempt.steps():
        match step:
            case Wait(seconds):
                for part in _parts(seconds):
                    if not results.should_stop:
                        await asyncio.sleep(part)
                attempt.hurried = results.should_stop
            case Log(lines):
                await results.process_logs({"steps": lines})
            case Report(fields):
                await results.process_results(fields)
            case Beat(progress):
                await results.heartbeat(progress, "on the way")
            case Attach(lines):
                await _attach(attempt.id, lines, custom)
            case Finish(status):
                return status
    raise AssertionError("an attempt has an end")


def plainly(keys: Keys, results: SyncResultProcessor, custom: Keys) -> ExperimentStatus | None:
    attempt = Attempt(keys, results.experiment_id, custom)
    for step in attempt.steps():
        match step:
            case Wait(seconds):
                for part in _parts(seconds):
                    if not results.should_stop:
                        time.sleep(part)
                attempt.hurried = results.should_stop
            case Log(lines):
                results.process_logs({"steps": lines})
            case Report(fields):
                results.process_results(fields)
            case Beat(progress):
                results.heartbeat(progress, "on the way")
            case Attach(lines):
                _attach_plainly(attempt.id, lines, custom)
            case Finish(status):
                return status
    raise AssertionError("an attempt has an end")


def _parts(seconds: float) -> list[float]:
    """A wait in parts, between which to look up."""
    count = int(seconds / LOOK_SECONDS) + 1
    return [seconds / count] * count


async def _attach(experiment_id: ExperimentId, lines: list[dict[str, Any]], custom: Keys) -> None:
    async def joined(results: ResultProcessor) -> None:
        for line in lines:
            await results.process_logs({"steps": line})
            await asyncio.sleep(0.01)

    other = Experimenter(*_study(custom), logger_name="asyncexp-chaos")
    try:
        await other.attach(joined, experiment_id)
    finally:
        await other.aclose()


def _attach_plainly(experiment_id: ExperimentId, lines: list[dict[str, Any]], custom: Keys) -> None:
    def joined(results: SyncResultProcessor) -> None:
        for line in lines:
            results.process_logs({"steps": line})
            time.sleep(0.01)

    other = PyExperimenter(*_study(custom), logger_name="asyncexp-chaos")
    try:
        other.attach(joined, experiment_id)
    finally:
        other.close()


def _study(custom: Keys) -> tuple[str, str | None]:
    folder = Path(custom["folder"])
    credentials = folder / "credentials.yml"
    return str(folder / "configuration.yml"), str(credentials) if credentials.exists() else None
