"""S4: plain functions in child processes, warm, one result each; and what starting children costs."""

from __future__ import annotations

import statistics
from datetime import datetime
from pathlib import Path
from typing import Any

from asyncexp import SyncResultProcessor
from asyncexp.db.base import Target
from benchmarks import study
from benchmarks.places import Place
from benchmarks.rounds import Line, Stopwatch, in_turns

CHILDREN = 2
WANTED = 3_000.0
"""Experiments a second: page 6 of the design asks for a rate here, not for a ratio."""
WARM_UP = 100
"""Experiments that end before the clock starts: the children have begun by then."""
MANY = 16


def no_op(keyfields: study.Keys, results: SyncResultProcessor, _: study.Keys) -> None:
    """The experiment: one result, nothing else."""
    results.process_results({"result": float(keyfields["number"])})


def measured(place: Place, rows: int, rounds: int, cold_rounds: int) -> Line:
    """Experiments a second of two warm children; facts: seconds of a call of `execute` that runs a few only."""
    _, ours = in_turns(rounds, lambda: WANTED, lambda: warm(place, rows))
    facts: dict[str, Any] = {"rows": rows}
    if cold_rounds:
        facts["cold_call_ms"] = _median_ms(place, cold_rounds, children=1)
        facts[f"cold_call_of_{MANY}_ms"] = _median_ms(place, cold_rounds, children=MANY)
        facts["the_same_in_a_task_ms"] = _median_ms(place, cold_rounds, children=1, pool="task")
    what = f"`def`, {CHILDREN} children; limit: the rate asked for"
    return Line("S4", what, "experiments/s", [WANTED] * rounds, ours, place.shown, CHILDREN, 1.0, 2.0, facts=facts)


def warm(place: Place, rows: int) -> float:
    """Experiments a second after the warm-up, by the ends that the table holds."""
    total = rows + WARM_UP
    with place.empty() as (folder, target):
        study.prepared(folder, target, total)
        study.run(_execution(folder, target, total))
        study.run(study.prove(target, total))
        ends = study.run(_ends(target))
    return rows / (ends[-1] - ends[WARM_UP - 1]).total_seconds()


async def _execution(folder: Path, target: Target, rows: int) -> None:
    async with study.experimenter(folder, target, rows) as made:
        summary = await made.execute(no_op, n_jobs=CHILDREN, pool="process", progress=False)
    assert summary.done == rows, summary


async def _ends(target: Target) -> list[datetime]:
    found = await study.ask(target, f'SELECT "end_date" FROM "{study.TABLE}" ORDER BY "end_date"')
    return [datetime.fromisoformat(str(end)) for (end,) in found]


def _median_ms(place: Place, rounds: int, *, children: int, pool: str = "process") -> float:
    return round(statistics.median(_cold(place, children, pool) for _ in range(rounds)) * 1e3, 1)


def _cold(place: Place, children: int, pool: str) -> float:
    """Seconds of one `execute` that runs one experiment in each of so many children."""
    with place.empty() as (folder, target):
        study.prepared(folder, target, MANY)
        return study.run(_cold_call(folder, target, children, pool))


async def _cold_call(folder: Path, target: Target, children: int, pool: str) -> float:
    watch = Stopwatch()
    async with study.experimenter(folder, target, MANY) as made:
        await made.execute(study.no_op, max_experiments=0, progress=False)  # the worker is there
        function = no_op if pool == "process" else study.no_op
        with watch.running():
            keywords = {"n_jobs": children, "max_experiments": children, "progress": False}
            summary = await made.execute(function, pool=pool, **keywords)  # type: ignore[arg-type]
    assert summary.done == children, summary
    return watch.seconds
