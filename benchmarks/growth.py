"""S7: what a claim takes on a large table, against a table of 1,000 rows in the same run.

A claim is what a run asks of its worker's writer when it has free slots and nothing to write, from the question
to the committed answer. Each table is filled once and serves every round: claims take rows and leave the others
as they are.
"""

from __future__ import annotations

import itertools
import logging
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from asyncexp import provenance
from asyncexp.db import connect
from asyncexp.db.base import Target
from asyncexp.schema import RANDOM_INDEX, Schema, quote
from asyncexp.store import setup, workers
from asyncexp.store.claim import Wanted, Worker
from asyncexp.store.study import Study
from asyncexp.writer import Writer
from benchmarks import study
from benchmarks.places import Place
from benchmarks.rounds import Line, Stopwatch, all_in_turns

SMALL = 1_000
REACH, BEYOND = 1.5, 1.1
FINISHED_AT_ONCE = 10_000
FRESH, HALF = "", ", half of them done"


@dataclass(frozen=True)
class Kind:
    """One way of asking for rows, so many at a time, so often a round."""

    name: str
    count: int
    times: int

    @property
    def rows(self) -> int:
        return self.count * self.times


IN_ORDER, RANDOM, WHERE = "claim", "claim, random_order", "claim, where on an indexed keyfield"
PLAIN = (Kind(IN_ORDER, 1, 40), Kind(IN_ORDER, 50, 8), Kind(WHERE, 1, 20))
AT_RANDOM = (Kind(RANDOM, 1, 40), Kind(RANDOM, 50, 8))
"""Apart, for the first call in random order makes an index, which every later claim has to keep up."""


@dataclass
class Filled:
    """A table that is there, and how far claims have come in it."""

    folder: Path
    target: Target
    rows: int
    schema: Schema
    numbers: Iterator[int]
    """Values for `where`, from the end of the table: a search by ID would come to them last."""
    first_ms: dict[str, float] = field(default_factory=dict)
    """The first claim of each kind that a new worker made, in each state of the table."""

    @classmethod
    def make(cls, folder: Path, target: Target, rows: int) -> Filled:
        study.prepared(folder, target, rows, indexed=True)
        schema = study.schema(study.experimenter(folder, target, rows, indexed=True))
        return cls(folder, target, rows, schema, iter(reversed(range(rows // len(study.KINDS)))))


Taken = dict[Kind, float]
"""Milliseconds of a claim of each kind, the median of one round."""


def measured(place: Place, sizes: Sequence[int], rounds: int) -> Iterator[Line]:
    """A line for each kind and size: as filled, then after half of the rows are done."""
    with ExitStack() as tables:
        large = [Filled.make(*tables.enter_context(place.empty()), rows) for rows in sizes]
        for state, kinds in itertools.product((FRESH, HALF), (PLAIN, AT_RANDOM)):
            for filled in large:
                study.run(_made_ready(filled, state, kinds))
            sides: dict[int, Callable[[], Taken]] = {SMALL: partial(_small, place, kinds)}
            sides |= {filled.rows: partial(_round, filled, kinds, state) for filled in large}
            taken = all_in_turns(rounds, sides)
            for filled, kind in itertools.product(large, kinds):
                yield _line(place, filled, kind, state, taken)


async def _made_ready(filled: Filled, state: str, kinds: Sequence[Kind]) -> None:
    """Brings a table into a state, with the index of claims at random or without."""
    async with _opened(filled) as of:
        if kinds is AT_RANDOM:
            await setup.make_index(of, filled.schema.main, RANDOM_INDEX)
        elif state == HALF:
            await _drop_index(of)
            await _finish_half(of, filled.rows // 2)


async def _drop_index(of: Study) -> None:
    where = f" ON {of.main}" if of.dialect.name == "mysql" else ""
    await of.execute(of.db, f"DROP INDEX {quote(RANDOM_INDEX.name(of.schema.main.name))}{where}")


async def _finish_half(of: Study, half: int) -> None:
    """The first half of the rows done, each in two steps as workers would have left them."""
    for start in range(0, half, FINISHED_AT_ONCE):
        ids = f'"ID" > {start} AND "ID" <= {min(start + FINISHED_AT_ONCE, half)}'
        for change in ('"status" = \'running\', "_attempt" = 1', '"status" = \'done\', "result" = "number"'):
            await of.execute(of.db, f"UPDATE {of.main} SET {change} WHERE {ids}")


def _line(place: Place, filled: Filled, kind: Kind, state: str, taken: Mapping[int, list[Taken]]) -> Line:
    limit, ours = ([figures[kind] for figures in taken[rows]] for rows in (SMALL, filled.rows))
    what = f"{kind.name}; {filled.rows:,} rows{state}; limit: {SMALL:,} rows"
    facts = {
        "rows": filled.rows,
        "half_done": state == HALF,
        "kind": kind.name,
        "first_ms": filled.first_ms[_key(kind, state)],
    }
    wanted = (REACH, BEYOND)
    return Line("S7", what, "ms", limit, ours, place.shown, kind.count, *wanted, judged="time", facts=facts)


def _key(kind: Kind, state: str) -> str:
    return f"{kind.name} {kind.count}{state}"


def _small(place: Place, kinds: Sequence[Kind]) -> Taken:
    """One round on a new table of 1,000 rows."""
    with place.empty() as (folder, target):
        filled = Filled.make(folder, target, SMALL)
        study.run(_made_ready(filled, FRESH, kinds))
        return _round(filled, kinds, FRESH)


def _round(filled: Filled, kinds: Sequence[Kind], state: str) -> Taken:
    return study.run(_claims(filled, kinds, state))


async def _claims(filled: Filled, kinds: Sequence[Kind], state: str) -> Taken:
    taken: Taken = {}
    ids: list[int] = []
    async with _worker(filled) as claimer:
        for kind in kinds:
            times, got = await claimer.several(kind)
            taken[kind] = statistics.median(times)
            filled.first_ms.setdefault(_key(kind, state), times[0])
            ids += got
    assert len(set(ids)) == len(ids) == sum(kind.rows for kind in kinds), (len(set(ids)), len(ids))
    await _prove(filled.target, claimer.worker, len(ids))
    return taken


async def _prove(target: Target, worker: Worker, rows: int) -> None:
    """Sees that the worker holds so many rows, each in its first attempt."""
    held = f'"status" = \'running\' AND "_attempt" = 1 AND "_worker" = {worker.id}'
    [(there,)] = await study.ask(target, f'SELECT COUNT(*) FROM "{study.TABLE}" WHERE {held}')
    assert there == rows, (there, rows)


@asynccontextmanager
async def _worker(filled: Filled) -> AsyncIterator[Claimer]:
    """A new worker in the table, its connection open and warm."""
    async with _opened(filled) as of:
        worker = Worker(time.monotonic_ns(), "growth", provenance.machine())
        await workers.register(of, worker, 60.0, provenance.here())
        logger = logging.getLogger("asyncexp-benchmarks")
        writer = Writer(of, worker, logger, lost=lambda _: None, away=lambda: None, longest_wait_seconds=1.0)
        yield Claimer(filled, of, worker, writer)
        await writer.close(10.0)


@asynccontextmanager
async def _opened(filled: Filled) -> AsyncIterator[Study]:
    database = connect(filled.target)
    try:
        yield Study(database, filled.schema, print)
    finally:
        await database.close()


class Claimer:
    """Claims as a run does."""

    def __init__(self, filled: Filled, of: Study, worker: Worker, writer: Writer) -> None:
        self.worker = worker
        self._study = of
        self._writer = writer
        self._filled = filled
        self._above = 0

    async def several(self, kind: Kind) -> tuple[list[float], list[int]]:
        """Milliseconds of each claim, and the IDs that they took."""
        times: list[float] = []
        taken: list[int] = []
        while len(times) < kind.times:
            watch = Stopwatch()
            wanted = self._wanted(kind)
            with watch.running():
                rows = await self._writer.claim(wanted)
            assert rows is not None
            if kind.name == WHERE and not rows:
                continue  # others took both rows of this number at random
            assert len(rows) == kind.count, (kind, len(rows))
            times.append(watch.seconds * 1e3)
            taken += [int(row.id) for row in rows]
            if kind.name == IN_ORDER:
                self._above = max(taken)
        return times, taken

    def _wanted(self, kind: Kind) -> Wanted:
        if kind.name == RANDOM:
            return Wanted(kind.count, random_from=os.urandom(16))
        if kind.name == WHERE:
            where = {"number": next(self._filled.numbers)}
            return Wanted(kind.count, where=self._study.condition(where, self._filled.schema.keyfields))
        return Wanted(kind.count, above=self._above)
