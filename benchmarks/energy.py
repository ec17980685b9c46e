"""S14: what recording energy costs an experiment, once codecarbon's tracker is warm."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from asyncexp import Experimenter
from asyncexp.db.base import Target
from benchmarks import study
from benchmarks.places import Place
from benchmarks.rounds import Line, Stopwatch, in_turns

WARM_UP_LOOKS = 6_000
CALLS = 20
"""Calls of `execute` with one experiment each: every one of them measures at its end."""


def measured(place: Place, rows: int, rounds: int) -> Iterator[Line]:
    """One at a time, and many at once, in one call; and one a call. The limit is the same without energy."""
    for what, at_once, count, calls in (
        ("no-op experiments", 1, rows // 20 * 2, 1),  # the study has an even number
        ("no-op experiments", 200, rows, 1),
        ("calls of one experiment", 1, CALLS, CALLS),
    ):
        taken = partial(_milliseconds, place, at_once, count, calls)
        off, on = in_turns(rounds, partial(taken, energy=False), partial(taken, energy=True))
        facts = {"rows": count, "calls": calls}
        shown = f"energy of {what}; limit: off"
        yield Line("S14", shown, "ms each", off, on, place.shown, at_once, 20.0, 5.0, judged="excess", facts=facts)


def _milliseconds(place: Place, at_once: int, count: int, calls: int, *, energy: bool) -> float:
    with place.empty() as (folder, target):
        study.prepared(folder, target, count + 2)
        seconds = study.run(_executing(folder, target, at_once, count, calls, energy))
        study.run(study.prove(target, count + 2))
        [(rows,)] = study.run(study.ask(target, f'SELECT COUNT(*) FROM "{study.TABLE}_codecarbon"'))
        assert rows == (count + 2 if energy else 0), rows
        return seconds / count * 1000


async def _executing(folder: Path, target: Target, at_once: int, count: int, calls: int, energy: bool) -> float:
    watch = Stopwatch()
    async with study.experimenter(folder, target, count + 2, energy=energy) as made:
        await made.execute(study.no_op, max_experiments=2, progress=False)
        if energy:
            await _warm(made)
        with watch.running():
            for _ in range(calls):
                await made.execute(study.no_op, n_jobs=at_once, max_experiments=count // calls, progress=False)
    return watch.seconds


async def _warm(made: Experimenter) -> None:
    [session] = made._sessions.values()
    assert session.energy is not None
    for _ in range(WARM_UP_LOOKS):
        if session.energy.is_warm:
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("codecarbon's tracker has not started")
