"""S5 and S6: a grid into an empty table, and the same grid again."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from asyncexp.db.base import Target
from asyncexp.store.fill import Filled
from benchmarks import bare, study
from benchmarks.places import Place
from benchmarks.rounds import Line, Stopwatch, in_turns

BATCH = 10_000
COLUMNS = ("number", "kind", "creation_date", "status", "_attempt", "_counted_from", "_key_hash")
SAMPLE_SECONDS = 0.02


def measured(place: Place, rows: int, rounds: int) -> list[Line]:
    """S5, and S6 whose limit is the first fill of the same round."""
    first: list[float] = []
    again: list[float] = []
    grown: list[float] = []

    def ours() -> float:
        with place.empty() as (folder, target), memory() as growth:
            fills = study.run(_ours(folder, target, rows))
        first.append(rows / fills[0])
        again.append(rows / fills[1])
        grown.append(growth[0])
        return first[-1]

    limit, _ = in_turns(rounds, lambda: _limit(place, rows), ours)
    facts = {"rows": rows, "memory_growth_mb": max(grown)}
    what = "fill from a grid"
    reach, beyond = (None, None) if place.provider == "mysql" else (0.4, 0.7)
    return [
        Line("S5", what, "rows/s", limit, first, place.shown, None, reach, beyond, facts=facts),
        Line(
            "S6",
            "fill again; limit: the first",
            "rows/s",
            first,
            again,
            place.shown,
            None,
            1.0,
            2.0,
            facts={"rows": rows},
        ),
    ]


async def _ours(folder: Path, target: Target, rows: int) -> tuple[float, float]:
    """Seconds of the first and of the second fill."""
    first, second = Stopwatch(), Stopwatch()
    async with study.experimenter(folder, target, rows) as made:
        await made.create_table()
        with first.running():
            added = await made.fill_table_from_config()
        with second.running():
            again = await made.fill_table_from_config()
        assert (added, again) == (Filled(rows, 0), Filled(0, rows)), (added, again)
    return first.seconds, second.seconds


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


@contextmanager
def memory() -> Iterator[list[float]]:
    """How much this process's memory grew at most meanwhile, in MB."""
    growth = [0.0]
    over = threading.Event()
    process = psutil.Process()
    before = process.memory_info().rss

    def watch() -> None:
        while not over.wait(SAMPLE_SECONDS):
            growth[0] = max(growth[0], (process.memory_info().rss - before) / 1e6)

    watcher = threading.Thread(target=watch, name="memory")
    watcher.start()
    try:
        yield growth
    finally:
        over.set()
        watcher.join()
