"""A worker for faults: what its experiments write names their attempt, and it tells of its log and of its end.

Its further argument is JSON: `function` (a key of `FUNCTIONS`) and its fields (`ran` and gates as paths, `marks` the
others), `keywords` of `execute`, and `limits`: constants of asyncexp for this process, by dotted name.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asyncexp import ExperimentStatus, ResultProcessor, SyncResultProcessor
from tests.contract.shared import Gate, Seen
from tests.contract.workers.common import ARGUMENTS, say, study

Keys = dict[str, Any]
ENDS = (None, ExperimentStatus.CREATED, ExperimentStatus.PAUSED)
SIZE = 3_000_000


def line(results: ResultProcessor | SyncResultProcessor, note: str) -> dict[str, Any]:
    return {"steps": {"step": results.attempt, "note": note}}


def fields(keys: Keys, results: ResultProcessor | SyncResultProcessor, more: str = "") -> Keys:
    return {"result": keys["number"] * 2, "text": f"{results.attempt} {more}"}


@dataclass(frozen=True)
class Task:
    """Notes that it runs, logs, waits until the gate opens and `seconds` have passed, reports and logs once more."""

    ran: Seen
    go_on: Gate | None = None
    seconds: float = 0.0
    saves: bool = False
    """Whether what is told to stop returns, by number, None, `CREATED` or `PAUSED`."""
    size: int = 0
    """Characters of the result."""
    may_end: Gate | None = None
    """What it waits for when all is reported."""

    async def __call__(self, keys: Keys, results: ResultProcessor, _: Keys) -> ExperimentStatus | None:
        self.ran.append([int(results.experiment_id), results.attempt])
        await results.process_logs(line(results, "begun"))
        if self.go_on is not None:
            await self.go_on.passed()
        await asyncio.sleep(self.seconds)
        await results.process_results(fields(keys, results, "x" * self.size))
        await results.process_logs(line(results, "ended"))
        if self.may_end is not None:
            await self.may_end.passed()
        return ENDS[keys["number"] % 3] if self.saves and results.should_stop else None


@dataclass(frozen=True)
class Steady(Task):
    """Goes on reporting until the gate `may_end` opens."""

    async def __call__(self, keys: Keys, results: ResultProcessor, _: Keys) -> None:
        assert self.may_end is not None
        self.ran.append([int(results.experiment_id), results.attempt])
        await results.process_logs(line(results, "begun"))
        while not self.may_end.is_open:
            await asyncio.sleep(self.seconds)
            await results.process_results(fields(keys, results, "still"))
        await results.process_results(fields(keys, results))
        await results.process_logs(line(results, "ended"))


@dataclass(frozen=True)
class Plain(Task):
    """The same as `def`."""

    def __call__(  # type: ignore[override]
        self, keys: Keys, results: SyncResultProcessor, _: Keys
    ) -> ExperimentStatus | None:
        self.ran.append([int(results.experiment_id), results.attempt])
        results.process_logs(line(results, "begun"))
        if self.go_on is not None:
            self.go_on.wait()
        time.sleep(self.seconds)
        results.process_results(fields(keys, results, "x" * self.size))
        results.process_logs(line(results, "ended"))
        if self.may_end is not None:
            self.may_end.wait()
        return ENDS[keys["number"] % 3] if self.saves and results.should_stop else None


@dataclass(frozen=True)
class Writes(Task):
    """Writes large results all the time until the gate opens."""

    async def __call__(self, keys: Keys, results: ResultProcessor, _: Keys) -> None:
        self.ran.append([int(results.experiment_id), results.attempt])
        await results.process_logs(line(results, "begun"))
        while self.go_on is not None and not self.go_on.is_open:
            await results.process_results(fields(keys, results, "x" * SIZE))
        await results.process_results(fields(keys, results))
        await results.process_logs(line(results, "ended"))


FUNCTIONS = {"task": Task, "plain": Plain, "writes": Writes}


class Told(logging.Handler):
    """Tells the test each line of the log."""

    def emit(self, record: logging.LogRecord) -> None:
        say(["log", record.getMessage()])


def transactions(ran: Seen) -> Seen:
    """Where a worker on SQLite notes each transaction that it is about to begin, beside what it ran."""
    return Seen(ran.path.with_suffix(".transactions"))


def note_transactions(begun: Seen) -> None:
    from asyncexp.db.sqlite import Session  # children, which find their functions in this module, need none

    statement = Session.statement

    def noted(session: Session, sql: str, *given: Any) -> Any:
        if sql.startswith("BEGIN"):
            begun.append(sql)
        return statement(session, sql, *given)

    Session.statement = noted  # type: ignore[method-assign, assignment]


def set_limits(limits: Mapping[str, float]) -> None:
    for name, value in limits.items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(module), constant, value)


async def main() -> None:
    from asyncexp import provenance

    given = json.loads(ARGUMENTS[0])
    set_limits(given.get("limits", {}))
    provenance.git = dict  # or else what git says is written at any time
    logging.getLogger("asyncexp-tests").addHandler(Told())
    gates: dict[str, Any] = {name: Gate(Path(given[name])) for name in ("go_on", "may_end") if given.get(name)}
    ran = Seen(Path(given["ran"]))
    note_transactions(transactions(ran))
    function = FUNCTIONS[given["function"]](ran, **gates, **given.get("marks", {}))
    async with study() as experimenter:
        say(["open"])
        summary = await experimenter.execute(function, progress=False, **given["keywords"])
    say(["ended", asdict(summary)])


if __name__ == "__main__":
    asyncio.run(main())
