"""Experiments in child processes: what they report is stored as from a task, and what ends them ends only them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest

from asyncexp import Experimenter, ExperimentStatus, ResultProcessor, SyncResultProcessor
from asyncexp.db.base import Target
from tests.contract import sql
from tests.contract.conftest import Make
from tests.contract.modes import InProcesses
from tests.contract.shared import Gate, Seen, Shared
from tests.contract.support import Keys, audit, eventually, numbers
from tests.studies import experimenter as new_experimenter


@pytest.fixture
async def make(target: Target, tmp_path: Path) -> AsyncIterator[Make]:
    """As that of the suite; functions run in child processes, unless a call says otherwise."""
    made: list[Experimenter] = []

    def new(**study: Any) -> Experimenter:
        made.append(new_experimenter(tmp_path, target, InProcesses, **study))
        return made[-1]

    yield new
    for each in made:
        await each.aclose()


async def filled(make: Make, count: int, **study: Any) -> Experimenter:
    experimenter = make(keyfields=numbers(count), **study)
    await experimenter.fill_table_from_config()
    return experimenter


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def children() -> list[int]:
    """Of this process: those that start and run experiments, dead ones too; not those of the servers."""
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    ours = [child.pid for child in alive if "nursery" in " ".join(child.cmdline())]
    return [*ours, *(child.pid for pid in ours for child in psutil.Process(pid).children())]


# ----------------------------------------------------------------------------------------------- the same as in a task

KINDS = {
    "whole": "INT",
    "large": "BIGINT",
    "exact": "NUMERIC(12,4)",
    "double": "DOUBLE",
    "yes": "BOOLEAN",
    "day": "DATETIME",
    "words": "TEXT",
    "data": "JSON",
}


def values() -> list[dict[str, Any]]:
    """One call of `process_results` each, of kinds that users have."""
    from datetime import UTC, date, datetime, timedelta, timezone
    from decimal import Decimal
    from enum import Enum, IntEnum

    import numpy as np

    class Color(Enum):
        RED = "red"

    class Level(IntEnum):
        HIGH = 3

    east = timezone(timedelta(hours=5, minutes=30))
    return [
        {"whole": np.int32(7), "large": np.uint64(2**62), "double": np.float32(0.1), "yes": np.bool_(True)},
        {"whole": Level.HIGH, "exact": Decimal("12345678.90125"), "words": Color.RED, "day": date(2024, 2, 29)},
        {"day": datetime(2024, 3, 1, 12, 30, 15, 123456, east), "words": Path("/data/größe 🐍"), "yes": False},
        {"day": datetime(2024, 3, 1, 12, 30, tzinfo=UTC), "data": {"b": [1, None, 2.5], "a": {"ü": np.float64(0.5)}}},
        {
            "day": np.datetime64("2024-03-01T12:30:15.25"),
            "data": [np.int64(3), np.array([1.5, 2.5])],
            "words": {"a": 1},
        },
        {"double": float("nan"), "exact": float("inf"), "words": "", "data": "text", "large": -(2**63)},
        {"double": -0.0, "exact": np.float64(2.5), "words": np.str_("text"), "data": None, "whole": None},
        {"double": 5e-324, "exact": 3, "words": "x" * 100_000, "data": {"deep": [[[[]]]]}, "whole": True},
    ]


def wrong() -> list[Callable[[Any], Any]]:
    """Calls on the result processor that raise."""
    return [
        lambda results: results.process_results({"wohle": 1}),
        lambda results: results.process_results({"whole": 1.5}),
        lambda results: results.process_results({"whole": 2**31}),
        lambda results: results.process_results({"yes": "perhaps", "double": 1}),
        lambda results: results.process_results({"words": "nul \0"}),
        lambda results: results.process_results({"words": "\ud800"}),
        lambda results: results.process_results({"data": {"a": 1 + 2j}}),
        lambda results: results.process_results(5),
        lambda results: results.process_results({"day": "yesterday"}),
        lambda results: results.process_results({"exact": 10**9}),
        lambda results: results.process_logs({"stesp": {"step": 1}}),
        lambda results: results.process_logs({"steps": {"stp": 1}}),
        lambda results: results.process_logs({"steps": [{"step": 1}, {"step": "one"}]}),
        lambda results: results.process_logs({"steps": 5}),
        lambda results: results.heartbeat("half"),
    ]


def reports(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
    given = values()
    if keys["number"] // 2 < len(given):
        results.process_results(given[keys["number"] // 2])
        lines = [{"step": number, **call} for number, call in enumerate(given)]
        results.process_logs({"lines": lines[0]})
        results.process_logs({"lines": lines[1:]})
        return
    said = []
    for call in wrong():
        try:
            call(results)
        except Exception as failure:  # noqa: BLE001  (which one is compared)
            said.append(f"{type(failure).__module__}.{type(failure).__name__}: {failure}")
    results.process_results({"words": json.dumps(said)})


async def reports_later(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
    sent: list[Any] = []

    class Plain:
        def __getattr__(self, name: str) -> Any:
            return lambda given: sent.append((name, given))

    if keys["number"] // 2 < len(values()):
        reports(keys, Plain(), custom)  # type: ignore[arg-type]
        for name, given in sent:
            await getattr(results, name)(given)
        return
    said = []
    for call in wrong():
        try:
            await call(results)
        except Exception as failure:  # noqa: BLE001
            said.append(f"{type(failure).__module__}.{type(failure).__name__}: {failure}")
    await results.process_results({"words": json.dumps(said)})


@pytest.mark.parametrize("function", [reports, reports_later])
async def test_values_and_refusals_are_those_of_a_task(
    make: Make, target: Target, caplog: pytest.LogCaptureFixture, function: Callable[..., Any]
) -> None:
    count = 2 * (len(values()) + 1)
    logtables = {"lines": {"step": "INT", **KINDS}, "steps": {"step": "INT"}}
    experimenter = await filled(make, count, resultfields=KINDS, logtables=logtables)
    warned = []
    pools: list[tuple[Literal["task", "process"], int]] = [("task", 0), ("process", 1)]
    for pool, first in pools:
        caplog.clear()
        ids = range(first + 1, count + 1, 2)
        summary = await experimenter.execute(function, pool=pool, experiment_ids=ids, n_jobs=1)
        assert (summary.done, summary.error) == (count // 2, 0), summary.errors
        warned.append([record.getMessage() for record in caplog.records if record.levelno == logging.WARNING])
    fields = ", ".join(f'"{name}"' for name in KINDS)
    rows = await sql.fetch(target, f'SELECT {fields} FROM "experiments" ORDER BY "ID"')
    assert rows[0::2] == rows[1::2]
    assert all(any(value is not None for value in row) for row in rows)
    said = json.loads(rows[-1][list(KINDS).index("words")])
    assert len(said) == len(wrong())
    logged = await sql.fetch(
        target, f'SELECT "experiment_id", "step", {fields} FROM "experiments__lines" ORDER BY "ID"'
    )
    lines = [[line for number, *line in logged if number % 2 == rest] for rest in (0, 1)]
    assert lines[0] == lines[1]
    assert len(lines[0]) == len(values()) ** 2
    assert warned[0] == warned[1]
    assert any("double" in text for text in warned[0])


async def test_what_the_server_refuses_is_told_in_the_child_with_the_same_words(make: Make, target: Target) -> None:
    experimenter = await filled(make, 2)
    await sql.forbid(target, "experiments__steps", "step", 13)

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        from asyncexp.errors import DatabaseQueryError

        said = []
        results.process_results({"result": 1})
        for call in (results.flush, lambda: results.process_results({"result": 13})):
            results.process_logs({"steps": [{"step": 1}, {"step": 13}]})
            try:
                while True:  # the lines go in the background
                    call()
            except DatabaseQueryError as failure:
                said.append(str(failure).partition("DETAIL")[0])
        results.process_results({"text": json.dumps(said)})

    await experimenter.execute(run, pool="task", max_experiments=1)
    assert (await experimenter.execute(run)).done == 1
    rows = await sql.fetch(target, 'SELECT "result", "text" FROM "experiments"')
    assert rows[0] == rows[1]
    assert len(json.loads(rows[0][1])) == 2


async def test_a_child_knows_neither_driver_nor_password(make: Make, target: Target) -> None:
    password = target.password or "no password at all"

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        drivers = {"sqlite3", "aiosqlite", "asyncpg", "aiomysql", "pymysql", "asyncssh", "yaml", "asyncexp.db.base"}
        sockets = []
        for entry in Path("/proc/self/fd").iterdir():
            try:
                sockets.append(str(entry.readlink()))
            except FileNotFoundError:
                continue
        environment = Path("/proc/self/environ").read_text()
        facts = [sorted(drivers & set(sys.modules)), sorted(sockets), environment]
        results.process_results({"text": json.dumps(facts)})

    assert (await (await filled(make, 1)).execute(run, n_jobs=1)).done == 1
    [(text,)] = await sql.fetch(target, 'SELECT "text" FROM "experiments"')
    drivers, opened, environment = json.loads(text)
    assert drivers == []
    assert [name.partition(":")[0] for name in opened] == ["/dev/null", "pipe", "pipe", "socket"]
    assert password not in environment


# ---------------------------------------------------------------------------------------------------- much, and at once


async def test_threads_of_one_function_report_at_once(make: Make, target: Target) -> None:
    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        def report(thread: int) -> None:
            for step in range(50):
                results.process_logs({"steps": {"step": step, "note": str(thread)}})
                if step % 10 == thread:
                    results.process_results({"result": step})
                assert not results.should_stop
            results.flush()

        threads = [threading.Thread(target=report, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    experimenter = await filled(make, 3)
    assert (await experimenter.execute(run, n_jobs=3)).done == 3
    lines = await experimenter.get_logtable("steps")
    for _, mine in lines.groupby(["experiment_id", "note"]):
        assert list(mine["step"]) == list(range(50))
    assert len(lines) == 3 * 6 * 50
    await audit(target)


async def test_a_child_that_logs_faster_than_the_database_writes_waits_and_loses_nothing(
    make: Make, target: Target
) -> None:
    note = "n" * 1000

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        for step in range(0, 30_000, 10):
            results.process_logs({"steps": [{"step": step + more, "note": note} for more in range(10)]})
            if step % 1000 == 0:
                results.process_results({"result": step})

    experimenter = await filled(make, 2)
    before = psutil.Process().memory_info().rss
    assert (await experimenter.execute(run, n_jobs=2)).done == 2
    assert psutil.Process().memory_info().rss - before < 400 << 20
    counted = 'SELECT "experiment_id", COUNT(*), COUNT(DISTINCT "step") FROM "experiments__steps" GROUP BY 1'
    assert await sql.fetch(target, counted) == [(1, 30_000, 30_000), (2, 30_000, 30_000)]
    gap = '"step" - LAG("step") OVER (PARTITION BY "experiment_id" ORDER BY "ID") AS "gap"'
    disordered = f'SELECT COUNT(*) FROM (SELECT {gap} FROM "experiments__steps") AS "gaps" WHERE "gap" <> 1'
    assert await sql.fetch(target, disordered) == [(0,)]


# ------------------------------------------------------------------------------------------------------------ the ends


def hang(seen: Seen, gate: Gate) -> Callable[..., None]:
    """A function that notes its process and one that it starts, and goes on until the gate is open."""

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        results.process_results({"result": results.attempt})
        results.process_logs({"steps": {"step": results.attempt}})
        grandchild = subprocess.Popen(["/bin/sleep", "1000"])
        seen.append([os.getpid(), grandchild.pid])
        while not gate.is_open:
            results.flush()
            time.sleep(0.02)

    return run


async def test_deaths_cost_one_experiment_each_and_the_others_are_intact(make: Make, target: Target) -> None:
    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        results.process_logs({"steps": {"step": keys["number"]}})
        results.process_results({"result": keys["number"], "text": "x" * 1000})
        results.process_logs({"steps": {"step": -1}})
        if keys["number"] % 3 == 0:
            os.kill(os.getpid(), 9 if results.attempt < 3 else 11)

    experimenter = await filled(make, 30)
    summary = await experimenter.execute(run, n_jobs=4, retries=1, retry_on=[ChildProcessError], max_errors=-1)
    assert (summary.done, summary.error, summary.retried) == (20, 10, 10)
    assert await audit(target) == {"done": 20, "error": 10}
    lines = await experimenter.get_logtable("steps")
    steps = lines.groupby("experiment_id")["step"].agg(list).to_dict()
    assert steps == {number + 1: [number, -1] for number in range(30)}
    grouped = await experimenter.errors()
    assert len(grouped) == 1
    assert "SIGKILL" in str(grouped)


async def test_a_time_limit_kills_the_group_and_keeps_what_was_written(
    make: Make, target: Target, shared: Shared
) -> None:
    seen = shared.seen()
    experimenter = await filled(make, 4)
    summary = await experimenter.execute(hang(seen, shared.gate()), n_jobs=2, timeout=1.5)
    assert (summary.done, summary.error) == (0, 4)
    await eventually(lambda: all(gone(pid) for pair in seen for pid in pair))
    assert len({pid for pid, _ in seen}) == 4
    rows = await sql.fetch(target, 'SELECT "result", "error" FROM "experiments"')
    assert all(result == 1 and "TimeoutError" in text and "1.5 s" in text for result, text in rows)
    await audit(target)


async def test_a_lost_row_kills_its_child_and_the_slot_goes_on(make: Make, target: Target, shared: Shared) -> None:
    seen, gate = shared.seen(), shared.gate()
    experimenter = await filled(make, 3, execution={"heartbeat_interval": 0.2, "lease": 1.0})
    running = asyncio.create_task(experimenter.execute(hang(seen, gate), n_jobs=2))
    await eventually(lambda: len(seen) == 2)
    await sql.execute(target, 'UPDATE "experiments" SET "_worker" = 1 WHERE "ID" = 1')
    await eventually(lambda: any(all(map(gone, pair)) for pair in seen))
    await eventually(lambda: len(seen) == 3)
    gate.open()
    summary = await running
    assert (summary.done, summary.lost) == (2, 1)


@pytest.mark.parametrize("way", ["cancelled", "closed", "stopped"])
async def test_whatever_ends_the_call_ends_its_children_and_their_rows_go_back(
    make: Make, target: Target, shared: Shared, way: str
) -> None:
    seen, gate = shared.seen(), shared.gate()
    experimenter = await filled(make, 6)
    running = asyncio.create_task(experimenter.execute(hang(seen, gate), n_jobs=2, grace=0.2))
    await eventually(lambda: len(seen) == 2)
    if way == "cancelled":
        running.cancel()
    elif way == "closed":
        await experimenter.aclose()
    else:
        await experimenter.stop()
    await asyncio.wait([running], timeout=30)
    assert running.cancelled() or (running.exception() is None and running.result().released == 2)
    await eventually(lambda: all(gone(pid) for pair in seen for pid in pair))
    await eventually(lambda: children() == [])
    assert await audit(target) == {"created": 6}


async def test_cancel_and_release_kill_the_child_of_that_row_alone(make: Make, target: Target, shared: Shared) -> None:
    seen, gate = shared.seen(), shared.gate()
    experimenter = await filled(make, 3, execution={"heartbeat_interval": 0.2})
    running = asyncio.create_task(experimenter.execute(hang(seen, gate), n_jobs=3))
    await eventually(lambda: len(seen) == 3)
    assert await experimenter.cancel([1]) == [1]
    assert await experimenter.release([2]) == [2]
    await eventually(lambda: sum(all(map(gone, pair)) for pair in seen) == 2)
    gate.open()
    summary = await running
    assert (summary.done, summary.error, summary.released) == (1, 1, 1)
    assert await audit(target) == {"done": 1, "error": 1, "created": 1}


def listens(began: Seen) -> Callable[..., ExperimentStatus]:
    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> ExperimentStatus:
        began.append(keys["number"])
        while not results.should_stop:
            time.sleep(0.01)
        results.process_results({"result": 1})
        return ExperimentStatus.PAUSED if keys["number"] else ExperimentStatus.CREATED

    return run


def listens_later(began: Seen) -> Callable[..., Any]:
    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> ExperimentStatus:
        began.append(keys["number"])
        await eventually(lambda: results.should_stop)
        await results.process_results({"result": 1})
        return ExperimentStatus.PAUSED if keys["number"] else ExperimentStatus.CREATED

    return run


@pytest.mark.parametrize("kind", [listens, listens_later])
async def test_should_stop_is_heard_and_what_is_returned_then_counts(
    make: Make, target: Target, shared: Shared, kind: Callable[[Seen], Callable[..., Any]]
) -> None:
    began = shared.seen()
    experimenter = await filled(make, 2)
    running = asyncio.create_task(experimenter.execute(kind(began), n_jobs=2))
    await eventually(lambda: len(began) == 2)
    await experimenter.stop()
    summary = await running
    assert (summary.paused, summary.released) == (1, 1)
    assert await audit(target) == {"created": 1, "paused": 1}
    assert await sql.fetch(target, 'SELECT "result" FROM "experiments"') == [(1,), (1,)]


async def test_two_calls_at_once_on_one_experimenter_have_children_of_their_own(
    make: Make, target: Target, shared: Shared
) -> None:
    seen, everybody = shared.seen(), shared.gate()

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        if not everybody.is_open:
            seen.append(os.getpid())
            everybody.wait()
        results.process_results({"text": str(os.getpid())})

    experimenter = await filled(make, 40)
    calls = [asyncio.create_task(experimenter.execute(run, n_jobs=2)) for _ in range(2)]
    await eventually(lambda: len(seen) == 4)
    everybody.open()
    first, second = await asyncio.gather(*calls)
    assert first.done + second.done == 40
    assert await audit(target) == {"done": 40}
    assert set(await sql.fetch(target, 'SELECT "text" FROM "experiments"')) == {(str(pid),) for pid in seen}
