"""Where our side's time goes, and how often it goes to the database.

    python -m benchmarks.profile sqlite 200

Counts first, without a profiler: transactions, statements and round trips an experiment. Then the CPU
time by function, of each thread apart (SQLite runs its statements in a thread of its own).
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from asyncexp.db import connect
from asyncexp.db.base import Database, Params, Row, Target, Transaction
from benchmarks import study, throughput
from benchmarks.places import PROVIDERS, Place, places

T = TypeVar("T")
Stats = Mapping[tuple[str, int, str], tuple[int, int, float, float, Any]]
"""(file, line, name) -> (calls but for recursion, calls, own seconds, seconds with those called, callers)."""
WORTH_A_LOOK = 0.03
ROOT = Path(__file__).resolve().parents[1]


class Counted:
    """A `Database` that counts what goes through it; everything else is the inner one's."""

    def __init__(self, inner: Database, counts: Counter[str]) -> None:
        self._inner = inner
        self._counts = counts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def run(self, work: Callable[[Transaction], Awaitable[T]], *, limit_seconds: float = 30.0) -> T:
        self._counts["transactions"] += 1
        # SQLite does a whole transaction in one visit to its thread; elsewhere BEGIN and COMMIT travel, too.
        self._counts["round trips"] += 1 if self._inner.dialect.name == "sqlite" else 2
        return await self._inner.run(lambda tx: work(CountedTransaction(tx, self)), limit_seconds=limit_seconds)

    def at_once(self, work: Callable[[Transaction], Awaitable[T]]) -> T | None:
        done = self._inner.at_once(lambda tx: work(CountedTransaction(tx, self)))
        self._counts.update(("transactions", "of them at once") if done is not None else ())
        return done

    async def fetch(self, sql: str, params: Params = (), *, limit_seconds: float = 30.0) -> list[Row]:
        self._counts.update(("single statements", "round trips"))
        return await self._inner.fetch(sql, params, limit_seconds=limit_seconds)

    async def execute(self, sql: str, params: Params = (), *, limit_seconds: float = 30.0) -> int:
        self._counts.update(("single statements", "round trips"))
        return await self._inner.execute(sql, params, limit_seconds=limit_seconds)

    def statement(self, sql: str) -> None:
        """Notes one statement of a transaction."""
        self._counts["statements"] += 1
        self._counts["round trips"] += self._inner.dialect.name != "sqlite"
        self._counts[_kind(sql)] += 1


class CountedTransaction:
    """A `Transaction` that counts its statements."""

    def __init__(self, inner: Transaction, counted: Counted) -> None:
        self._inner = inner
        self._counted = counted

    async def fetch(self, sql: str, params: Params = ()) -> list[Row]:
        self._counted.statement(sql)
        return await self._inner.fetch(sql, params)

    async def execute(self, sql: str, params: Params = ()) -> int:
        self._counted.statement(sql)
        return await self._inner.execute(sql, params)

    async def execute_many(self, sql: str, rows: Sequence[Params]) -> None:
        self._counted.statement(sql)
        await self._inner.execute_many(sql, rows)

    async def copy(self, table: str, columns: Sequence[str], rows: Sequence[Params]) -> None:
        self._counted.statement(f"COPY {table}")
        await self._inner.copy(table, columns, rows)


def _kind(sql: str) -> str:
    words = " ".join(sql.split())
    return f"  {words[:60]}…"


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Counts what every `Experimenter` made meanwhile sends."""
    counts: Counter[str] = Counter()

    def counted(target: Target, *way: Any) -> Any:
        return Counted(connect(target, *way), counts)

    with mock.patch("asyncexp.experimenter.connect", counted):
        yield counts


@contextmanager
def profiling() -> Iterator[dict[str, cProfile.Profile]]:
    """Profiles this thread and every thread begun meanwhile, by the CPU time of each."""
    profiles: dict[str, cProfile.Profile] = {}

    def begin(*_: object) -> None:
        name = threading.current_thread().name
        profiles[name] = profile = cProfile.Profile(time.thread_time)
        profile.enable()

    threading.setprofile(begin)
    begin()
    try:
        yield profiles
    finally:
        profiles[threading.current_thread().name].disable()
        threading.setprofile(None)


def told(stats: Stats, experiments: int, lines: int) -> str:
    """The functions that take most, by their own time, in µs an experiment."""
    rows = sorted(stats.items(), key=lambda item: -item[1][2])
    total = sum(row[1][2] for row in rows) / experiments * 1e6
    shown = [f"{total:9.1f}           of all"]
    for where, (_, calls, own, together, _) in rows[:lines]:
        each, whole = own / experiments * 1e6, together / experiments * 1e6
        shown.append(f"{each:9.1f} {whole:9.1f} {calls / experiments:8.2f}  {_place(*where)}")
    return "\n".join(["  own µs  with calls    calls  function", *shown])


def _place(file: str, line: int, name: str) -> str:
    path = Path(file)
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(*path.parts[-2:])
    return name if line == 0 else f"{shown}:{line} {name}"


def show(place: Place, at_once: int, count: int, lines: int) -> None:
    """Prints counts and profile of one setting."""
    with counting() as counts, place.empty() as (folder, target):
        total = count + throughput.warm_up(at_once)
        study.prepared(folder, target, total)
        before = [0.0]

        def begun() -> None:
            counts.clear()
            before[0] = time.process_time()

        seconds = study.run(throughput.execution(folder, target, at_once, count, begun))
        cpu = time.process_time() - before[0]
    print(f"\n{place.shown}, {at_once} at once: {count} experiments, {count / seconds:,.0f} a second;")
    print(f"{cpu / count * 1e6:.1f} µs of this process's CPU an experiment; a profiler makes that several times more")
    for what, number in counts.most_common():
        print(f"{number / count:9.4f} an experiment ({number:6})  {what}")
    with place.empty() as (folder, target):
        study.prepared(folder, target, total)
        with profiling() as profiles:
            study.run(throughput.execution(folder, target, at_once, count))
    _show_threads(profiles, total, lines)


def _show_threads(profiles: Mapping[str, cProfile.Profile], experiments: int, lines: int) -> None:
    """Those threads that took a share worth a look."""
    taken: dict[str, Stats] = {}
    for name, profile in profiles.items():
        profile.snapshot_stats()
        taken[name] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    own = {name: sum(row[2] for row in stats.values()) for name, stats in taken.items()}
    for name, stats in taken.items():
        if own[name] >= WORTH_A_LOOK * sum(own.values()):
            print(f"\nthread {name}\n{told(stats, experiments, lines)}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.profile", description=__doc__)
    parser.add_argument("database", choices=PROVIDERS)
    parser.add_argument("at_once", type=int, choices=throughput.AT_ONCE)
    parser.add_argument("--rows", type=int, help="how many experiments (default: as the full benchmark)")
    parser.add_argument("--lines", type=int, default=30, help="how many functions to show")
    given = parser.parse_args(arguments)
    count = given.rows or throughput.rows(given.database, given.at_once, 5)
    with places([given.database]) as [place]:
        show(place, given.at_once, count, given.lines)


if __name__ == "__main__":
    main()
