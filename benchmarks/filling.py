"""S5 and S6: a grid into an empty table, and the same grid again."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from asyncexp.db.base import Target
from asyncexp.store.fill import Filled
from benchmarks import bare, study
from benchmarks.places import Place
from benchmarks.processes import child, say
from benchmarks.rounds import Line, Stopwatch, in_turns

BATCH = 10_000
COLUMNS = ("number", "kind", "creation_date", "status", "_attempt", "_counted_from", "_key_hash")
MOST_MB = 200.0
"""That a fill may take, however many rows it adds."""


def measured(place: Place, rows: int, rounds: int) -> list[Line]:
    """S5, and S6 whose limit is the first fill of the same round."""
    told: list[dict[str, float]] = []

    def ours() -> float:
        told.append(_ours(place, rows))
        return rows / told[-1]["first_seconds"]

    limit, first = in_turns(rounds, lambda: _limit(place, rows), ours)
    again = [rows / round_["again_seconds"] for round_ in told]
    reach, beyond = (None, None) if place.provider == "mysql" else (0.4, 0.7)
    line = partial(Line, unit="rows/s", database=place.shown, memory_most_mb=MOST_MB)
    memory = {name: [round_[f"{name}_mb"] for round_ in told] for name in ("first", "again")}
    return [
        line(
            "S5",
            "fill from a grid",
            limit=limit,
            ours=first,
            reach=reach,
            beyond=beyond,
            memory_mb=memory["first"],
            facts={"rows": rows},
        ),
        line(
            "S6",
            "fill again; limit: the first",
            limit=first,
            ours=again,
            reach=1.0,
            beyond=2.0,
            memory_mb=memory["again"],
            facts={"rows": rows},
        ),
    ]


def _ours(place: Place, rows: int) -> dict[str, float]:
    """Seconds and megabytes of the first and of the second fill, in a process that does nothing else."""
    with place.empty() as (folder, target):
        study.experimenter(folder, target, rows)
        with child("filling", str(folder), str(rows)) as process:
            return process.hear()


def _limit(place: Place, rows: int) -> float:
    """A bare bulk insert of rows that lie ready, in one transaction, into the very same table."""
    with place.empty() as (folder, target):
        seconds = study.run(bare_insert(folder, target, rows))
        [(there,)] = study.run(study.ask(target, f"SELECT COUNT(*) FROM {study.TABLE} WHERE status = 'created'"))
        assert there == rows, (there, rows)
        return rows / seconds


async def bare_insert(folder: Path, target: Target, rows: int) -> float:
    """Makes the table by our DDL and fills it by hand; seconds of the filling alone."""
    async with study.experimenter(folder, target, rows) as made:
        await made.create_table()
    watch = Stopwatch()
    async with bare.opened(target) as driver:
        with watch.running():
            await driver.begin()
        for batch in _batches(driver, target, rows):
            with watch.running():
                await driver.insert(study.TABLE, COLUMNS, batch)
        with watch.running():
            await driver.commit()
    return watch.seconds


def _batches(driver: bare.Bare, target: Target, rows: int) -> Iterator[list[tuple[Any, ...]]]:
    """The grid, its hashes in no order, as those of real rows are."""
    now = driver.now()
    grid = itertools.product(range(rows // len(study.KINDS)), study.KINDS)
    while batch := list(itertools.islice(grid, BATCH)):
        yield [(number, kind, now, "created", 0, 0, _hash(target)) for number, kind in batch]


def _hash(target: Target) -> Any:
    """16 bytes; for aiomysql as ASCII text, which it need not escape as bytes."""
    return os.urandom(8).hex() if target.provider == "mysql" else os.urandom(16)


# ------------------------------------------------------------------------------------- in the process


async def _fills(folder: Path, rows: int) -> dict[str, float]:
    """Fills a new table twice."""
    told: dict[str, float] = {}
    async with study.joined(folder) as made:
        await made.create_table()
        for name, wanted in (("first", Filled(rows, 0)), ("again", Filled(0, rows))):
            gc.collect()
            watch, growth = Stopwatch(), Growth()
            with watch.running():
                filled = await made.fill_table_from_config()
            told |= {f"{name}_seconds": watch.seconds, f"{name}_mb": growth.most_mb()}
            assert filled == wanted, (filled, wanted)
    return told


class Growth:
    """How much this process's memory has grown at most since, by the kernel's own mark."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the mark is what it is now
        self._before = self._kilobytes("VmRSS")

    def most_mb(self) -> float:
        return (self._kilobytes("VmHWM") - self._before) * 1024 / 1e6

    @staticmethod
    def _kilobytes(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    folder, rows = sys.argv[1:]
    say(**asyncio.run(_fills(Path(folder), int(rows))))


if __name__ == "__main__":
    main()
