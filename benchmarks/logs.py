"""S8: log lines a second of one worker, sent one by one or many in a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from asyncexp import ResultProcessor
from asyncexp.db.base import Target
from benchmarks import bare, study
from benchmarks.places import Place
from benchmarks.rounds import Line, Stopwatch, all_in_turns

EXPERIMENTS = 10
BATCH = 5_000
TABLE = f"{study.TABLE}__steps"
A_CALL = (1, 100)
"""Lines in each call."""
COLUMNS = ("experiment_id", "timestamp", "step", "loss", "_attempt")


def measured(place: Place, lines: int, rounds: int) -> Iterator[Line]:
    """Ten experiments at once, until all is committed; against batches that lie ready."""
    sides: dict[int, Callable[[], float]] = {a_call: partial(_ours, place, lines, a_call) for a_call in A_CALL}
    taken = all_in_turns(rounds, {0: lambda: _limit(place, lines), **sides})
    for a_call in A_CALL:
        what = f"process_logs, {a_call} {'line' if a_call == 1 else 'lines'} a call"
        yield Line(
            "S8", what, "rows/s", taken[0], taken[a_call], place.shown, EXPERIMENTS, 0.5, 0.8, facts={"rows": lines}
        )


def _ours(place: Place, lines: int, a_call: int) -> float:
    with place.empty() as (folder, target):
        study.prepared(folder, target, 2 * EXPERIMENTS)
        seconds = study.run(_logging(folder, target, lines // EXPERIMENTS, a_call))
        _prove(target, lines)
        return lines / seconds


async def _logging(folder: Path, target: Target, each: int, a_call: int) -> float:
    async def experiment(_: dict[str, Any], results: ResultProcessor, __: dict[str, Any]) -> None:
        for first in range(0, each, a_call):
            steps = [{"step": step, "loss": step / 7} for step in range(first, min(first + a_call, each))]
            await results.process_logs({"steps": steps if a_call > 1 else steps[0]})

    watch = Stopwatch()
    async with study.experimenter(folder, target, 2 * EXPERIMENTS) as made:
        at_once: dict[str, Any] = {"n_jobs": EXPERIMENTS, "max_experiments": EXPERIMENTS, "progress": False}
        await made.execute(study.no_op, **at_once)
        with watch.running():
            summary = await made.execute(experiment, **at_once)
    assert summary.done == EXPERIMENTS, summary
    return watch.seconds


def _limit(place: Place, lines: int) -> float:
    with place.empty() as (folder, target):
        study.prepared(folder, target, 2 * EXPERIMENTS)
        seconds = study.run(_bare_insert(target, lines))
        _prove(target, lines)
        return lines / seconds


async def _bare_insert(target: Target, lines: int) -> float:
    watch = Stopwatch()
    async with bare.opened(target) as driver:
        rows = [(n % EXPERIMENTS + 1, driver.now(), n, n / 7, 1) for n in range(lines)]
        for start in range(0, lines, BATCH):
            with watch.running():
                await driver.begin()
                await driver.insert(TABLE, COLUMNS, rows[start : start + BATCH])
                await driver.commit()
    return watch.seconds


def _prove(target: Target, lines: int) -> None:
    [(there,)] = study.run(study.ask(target, f"SELECT COUNT(*) FROM {TABLE} WHERE loss IS NOT NULL"))
    assert there == lines, (there, lines)
