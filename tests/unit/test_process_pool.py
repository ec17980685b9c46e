"""Experiment functions in child processes: what may be sent there, what it is like there, and what is left of it.

What reaches the database is the same on all three, and is in `tests.contract.test_processes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asyncexp import ResultProcessor, SyncResultProcessor
from asyncexp.db.base import Target
from asyncexp.errors import InvalidConfigError
from tests.contract.shared import Shared
from tests.contract.sql import fetch as sql
from tests.contract.support import Keys, eventually, statuses
from tests.unit.children import Study, errors, some_done, told

# ----------------------------------------------------------------------------------- what may be sent there


class Scaled:
    """A callable object, and a method, with a state of its own."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        results.process_results({"result": keys["number"] * self.factor, "text": str(os.getpid())})

    async def later(self, keys: Keys, results: ResultProcessor, _: Keys) -> None:
        await asyncio.sleep(0)
        await results.process_results({"result": keys["number"] * self.factor, "text": str(os.getpid())})

    @staticmethod
    def double(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        Scaled(2)(keys, results, {})


def scaled(factor: int, keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
    Scaled(factor)(keys, results, {})


async def scaled_later(keys: Keys, results: ResultProcessor, _: Keys, factor: int = 2) -> None:
    await Scaled(factor).later(keys, results, {})


async def test_any_kind_of_function_runs_in_a_child(study: Study, sqlite_target: Target) -> None:
    two = 2

    def closure(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        results.process_results({"result": keys["number"] * two, "text": str(os.getpid())})

    functions: list[Callable[..., Any]] = [
        closure,
        lambda keys, results, _: closure(keys, results, {}),
        partial(scaled, 2),
        partial(scaled_later, factor=2),
        scaled_later,
        Scaled(2),
        Scaled(2).later,
        Scaled(2).__call__,
        Scaled.double,
    ]
    experimenter = await study(2 * len(functions))
    for function in functions:
        assert (await experimenter.execute(function, pool="process", n_jobs=1, max_experiments=2)).done == 2
    rows = await sql(sqlite_target, 'SELECT "number", "result", "text" FROM "experiments"')
    assert [result for _, result, _ in rows] == [2.0 * number for number, _, _ in rows]
    assert str(os.getpid()) not in {pid for _, _, pid in rows}


async def test_the_default_pool_is_a_child_for_def_and_a_task_for_async_def(
    study: Study, sqlite_target: Target
) -> None:
    experimenter = await study(2)
    await experimenter.execute(partial(scaled, 2), max_experiments=1)
    await experimenter.execute(scaled_later, max_experiments=1)
    first, second = await told(sqlite_target)
    assert first != os.getpid()
    assert second == os.getpid()


async def test_a_function_that_cannot_be_sent_is_refused_before_anything_runs(study: Study) -> None:
    experimenter = await study(2)
    loop = asyncio.get_running_loop()

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        loop.stop()

    with pytest.raises(InvalidConfigError, match=r'cannot be sent to a child process.*pool="task"'):
        await experimenter.execute(run)
    assert (await experimenter.counts())["created"] == 2


async def test_on_windows_there_is_one_clear_error(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None: ...

    experimenter = await study(1)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delitem(sys.modules, "asyncexp.pools.process", raising=False)
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as it is there: the import fails
    with pytest.raises(InvalidConfigError, match="WSL"):
        await experimenter.execute(run)


async def test_a_traceback_names_the_file_and_shows_its_line(study: Study, sqlite_target: Target) -> None:
    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        raise ValueError("here")  # this very line

    assert (await (await study(1)).execute(run)).error == 1
    [text] = await errors(sqlite_target)
    assert f'File "{__file__}", line ' in text
    assert 'raise ValueError("here")  # this very line' in text
    assert "asyncexp/pools" not in text


async def test_a_module_that_a_child_cannot_import_is_one_clear_error_and_the_rows_go_back(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fleeting.py").write_text("def run(keys, results, custom): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import fleeting  # type: ignore[import-not-found]

    (tmp_path / "fleeting.py").write_text("raise LookupError('gone')\n")
    experimenter = await study(5)
    with pytest.raises(InvalidConfigError, match=r"(?s)could not load experiment_function.*LookupError: gone"):
        await experimenter.execute(fleeting.run)
    assert (await experimenter.counts())["created"] == 5


# ------------------------------------------------------------------------------------------- slots and children


async def test_one_child_a_slot_is_reused_and_replaced_after_its_most_tasks(
    study: Study, sqlite_target: Target, shared: Shared
) -> None:
    seen = shared.seen()

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        results.process_results({"text": str(os.getpid())})
        seen.append(os.getpid())
        while len(set(seen)) < 3:  # until there is a child in each slot
            time.sleep(0.005)

    experimenter = await study(32)
    await experimenter.execute(run, n_jobs=3, max_experiments=20)
    first = (await told(sqlite_target))[:20]
    assert len(set(first)) == 3
    await experimenter.execute(run, n_jobs=2, max_tasks_per_child=3)
    second = (await told(sqlite_target))[20:]
    assert all(second.count(pid) <= 3 for pid in second)
    assert 4 <= len(set(second)) <= 5
    assert not set(first) & set(second)


async def test_a_child_that_is_replaced_and_does_not_end_is_killed(
    study: Study, sqlite_target: Target, monkeypatch: pytest.MonkeyPatch, shared: Shared
) -> None:
    from asyncexp.pools import process

    monkeypatch.setattr(process, "CLOSE_SECONDS", 0.2)
    go_on = shared.gate()

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        import threading

        threading.Thread(target=threading.Event().wait).start()
        if keys["number"] == 10:
            go_on.wait()
        results.process_results({"text": str(os.getpid())})

    experimenter = await study(12)
    running = asyncio.create_task(experimenter.execute(run, n_jobs=1, max_tasks_per_child=1))
    await eventually(partial(some_done, sqlite_target, 10))
    pids = [pid for pid in await told(sqlite_target) if pid is not None]
    assert len(set(pids)) == 10
    await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    go_on.open()
    assert (await running).done == 12


async def test_worker_env_is_one_value_for_all_or_dealt_by_slot(
    study: Study, sqlite_target: Target, monkeypatch: pytest.MonkeyPatch, shared: Shared
) -> None:
    monkeypatch.setenv("SET_BEFORE", "by the parent")
    pids = shared.seen()

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        names = ("DEVICE", "EVERYWHERE", "SET_BEFORE")
        seen = subprocess.run(["/usr/bin/env"], capture_output=True, text=True, check=True).stdout.splitlines()
        assert all(f"{name}={os.environ[name]}" in seen for name in names)
        results.process_results({"text": json.dumps([os.environ[name] for name in names])})
        pids.append(os.getpid())
        while len(set(pids)) < 3:  # until there is a child in each slot
            time.sleep(0.005)

    experimenter = await study(12, execution={"worker_env": {"DEVICE": ["0", "1"], "EVERYWHERE": "yes"}})
    await experimenter.execute(run, n_jobs=3)
    found = await told(sqlite_target)
    assert {device for device, _, _ in found} == {"0", "1"}
    assert {tuple(rest) for _, *rest in found} == {("yes", "by the parent")}


async def test_many_children_load_the_function_a_few_at_a_time(
    study: Study, sqlite_target: Target, shared: Shared
) -> None:
    seen = shared.seen()

    class Slow:
        def __setstate__(self, state: object) -> None:
            seen.append(["loading", 1])
            time.sleep(0.05)
            seen.append(["loading", -1])

        def __getstate__(self) -> object:
            return 1

        def __call__(self, keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
            results.process_results({"text": str(os.getpid())})
            time.sleep(0.5)

    experimenter = await study(16)
    assert (await experimenter.execute(Slow(), n_jobs=16)).done == 16
    at_once = most = 0
    for _, change in seen:
        at_once += change
        most = max(most, at_once)
    assert most <= max(2, len(os.sched_getaffinity(0)))


async def test_rows_that_wait_for_children_that_load_are_not_given_back(study: Study, sqlite_target: Target) -> None:
    class Heavy:
        def __setstate__(self, state: object) -> None:
            time.sleep(0.7)

        def __getstate__(self) -> object:
            return 1

        def __call__(self, keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
            time.sleep(0.012)

    summary = await (await study(400)).execute(Heavy(), n_jobs=40)
    assert (summary.done, summary.released) == (400, 0)
    assert await sql(sqlite_target, 'SELECT DISTINCT "_attempt" FROM "experiments"') == [(1,)]


# --------------------------------------------------------------------------------------------- what it is like there


async def test_a_child_has_no_driver_no_credentials_and_no_descriptor_of_ours(
    study: Study, sqlite_target: Target, tmp_path: Path
) -> None:
    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        opened = {}
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the one that lists this folder
                opened[entry.name] = str(entry.readlink())
        inherited = [name for name in opened if int(name) > 2 and os.get_inheritable(int(name))]
        facts = {"modules": sorted(sys.modules), "opened": opened, "inherited": inherited}
        results.process_results({"text": json.dumps(facts)})

    held = (tmp_path / "held").open("w")
    os.set_inheritable(held.fileno(), True)
    experimenter = await study(1)
    await experimenter.execute(run, n_jobs=1)
    held.close()
    [facts] = await told(sqlite_target)
    drivers = {"sqlite3", "aiosqlite", "asyncpg", "aiomysql", "pymysql", "asyncssh", "pandas", "yaml", "numpy"}
    assert drivers.isdisjoint(facts["modules"])
    ours = {name for name in facts["modules"] if name.startswith("asyncexp")}
    assert ours <= {
        "asyncexp",
        *(f"asyncexp.{name}" for name in ("errors", "experiment", "fields", "pools", "results", "values", "waiting")),
        *(f"asyncexp.pools.{name}" for name in ("base", "child", "frames", "nursery")),
    }
    kinds = sorted(name.split(":")[0] for name in facts["opened"].values())
    assert kinds == ["/dev/null", "pipe", "pipe", "socket"]
    assert facts["inherited"] == []


async def test_stdin_is_empty_and_the_folder_is_the_parents(study: Study, sqlite_target: Target) -> None:
    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        results.process_results({"text": json.dumps([sys.stdin.read(), str(Path.cwd()), sys.argv])})

    experimenter = await study(1)
    await experimenter.execute(run)
    assert await told(sqlite_target) == [["", str(Path.cwd()), sys.argv]]


async def test_an_experiment_spawns_where_main_is_pytest(study: Study, sqlite_target: Target) -> None:
    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        import multiprocessing

        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results.process_results({"text": json.dumps(pool.map(abs, [-1, 2]))})

    assert (await (await study(1)).execute(run, n_jobs=1)).done == 1
    assert await told(sqlite_target) == [[1, 2]]


async def test_a_fault_of_ours_on_the_way_ends_the_run_and_gives_the_rows_back(
    study: Study, sqlite_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug in asyncexp")

    monkeypatch.setattr("asyncexp.pools.process._Child._on_results", broken)

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        results.process_results({"result": 1})

    with pytest.raises(RuntimeError, match="a bug in asyncexp"):
        await (await study(3)).execute(run, n_jobs=2)
    assert await statuses(sqlite_target) == {"created": 3}


async def test_what_only_children_have_is_warned_of_where_there_are_none(
    study: Study, caplog: pytest.LogCaptureFixture
) -> None:
    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        return

    await (await study(1)).execute(run, worker_env={"DEVICE": "0"})
    assert [record for record in caplog.records if "are for child processes" in record.getMessage()]
