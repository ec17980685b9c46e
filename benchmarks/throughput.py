"""S1 and S3: experiments that do nothing, so many at once, one worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from asyncexp.db.base import Target
from benchmarks import bare, study
from benchmarks.places import Place
from benchmarks.rounds import Line, Stopwatch, in_turns

AT_ONCE = (1, 10, 50, 200)
TURNS = {
    "sqlite": {1: 500, 10: 200, 50: 60, 200: 20},
    "postgresql": {1: 40, 10: 20, 50: 60, 200: 30},
    "mysql": {1: 40, 10: 20, 50: 20, 200: 12},
}
"""How often each slot runs an experiment, in the quick form."""


@dataclass(frozen=True)
class Size:
    """How much of each line is measured."""

    rounds: int
    factor: int
    """Rows are so many times those of the quick form."""
    rows: int | None = None
    """This many, whatever the line."""

    def of(self, provider: str, at_once: int) -> int:
        """Rows that last a tenth of a second and more, for either side."""
        return self.rows or rows(provider, at_once, self.factor)


def rows(provider: str, at_once: int, factor: int) -> int:
    """Few where a server's disk has to confirm every single one; more where a server learns of each statement first."""
    return at_once * TURNS[provider][at_once] * factor


def measured(place: Place, at_once: int, size: Size) -> Line:
    """One pair; the rows of a round are those of its warm-up, which is not timed, and those that count."""
    count = size.of(place.provider, at_once)
    bare_figures, our_figures = in_turns(
        size.rounds,
        lambda: limit(place, at_once, count),
        lambda: ours(place, at_once, count),
    )
    wanted = _wanted(place.provider, at_once)
    return Line(
        "S3" if at_once == 1 else "S1",
        "no-op experiments",
        "experiments/s",
        bare_figures,
        our_figures,
        place.shown,
        at_once,
        *wanted,
        facts={"rows": count},
    )


def _wanted(provider: str, at_once: int) -> tuple[float | None, float | None]:
    if at_once == 1:
        return (0.5, 0.8) if provider == "sqlite" else (None, None)
    return (0.6, 0.8) if at_once >= 50 else (None, None)


def warm_up(at_once: int) -> int:
    """Rows that each side runs before the clock does; with the study's number even."""
    return max(2, at_once)


def limit(place: Place, at_once: int, count: int) -> float:
    """Experiments a second of the bare loop; all of them proved."""
    with place.empty() as (folder, target):
        total = count + warm_up(at_once)
        study.prepared(folder, target, total)
        seconds = study.run(bare_loop(folder, target, at_once, count))
        study.run(study.prove(target, total))
        return count / seconds


async def bare_loop(_: Path, target: Target, at_once: int, count: int) -> float:
    """Seconds that the bare loop takes for `count` rows, its connection open and warm."""
    watch = Stopwatch()
    async with bare.opened(target) as driver:
        await bare.work(driver, bare.no_op, at_once, warm_up(at_once))
        with watch.running():
            done = await bare.work(driver, bare.no_op, at_once)
    assert done == count, (done, count)
    return watch.seconds


def ours(place: Place, at_once: int, count: int) -> float:
    """Experiments a second of ours; all of them proved."""
    with place.empty() as (folder, target):
        total = count + warm_up(at_once)
        study.prepared(folder, target, total)
        seconds = study.run(execution(folder, target, at_once, count))
        study.run(study.prove(target, total))
        return count / seconds


async def execution(
    folder: Path, target: Target, at_once: int, count: int, begun: Callable[[], None] = lambda: None
) -> float:
    """Seconds that `execute` takes for `count` rows, its connections open and warm."""
    watch = Stopwatch()
    async with study.experimenter(folder, target, count + warm_up(at_once)) as made:
        await made.execute(study.no_op, n_jobs=at_once, max_experiments=warm_up(at_once), progress=False)
        begun()
        with watch.running():
            summary = await made.execute(study.no_op, n_jobs=at_once, progress=False)
    assert summary.done == count, summary
    return watch.seconds
