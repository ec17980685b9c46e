"""Children that die, and their parents: one experiment is lost, nothing is left behind.

How the row ends is the same on all databases; see `tests.contract.test_processes` for what they store.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from asyncexp import Summary, SyncResultProcessor
from asyncexp.db.base import Target
from asyncexp.errors import ExperimentLostError, PyExperimenterError
from asyncexp.pools.process import DEAF_SECONDS
from tests.contract.shared import Shared
from tests.contract.sql import fetch as sql
from tests.contract.support import Keys, audit, eventually, numbers
from tests.studies import experimenter as new_experimenter
from tests.unit.children import Study, errors

DIED = "ChildProcessError: the child process died before the function returned"
SOON_SECONDS = 20.0
"""The promise is a second; a machine may be slow, or have other work to do. Whoever is not ended lives for longer."""


def gone(pids: Sequence[int]) -> bool:
    """Whether none of them runs; what is nobody's child any more is buried by the system in its own time."""
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return False
    return True


# --------------------------------------------------------------------------------------------- one experiment's death


def dies_by_segfault() -> None:
    ctypes.string_at(0)


def dies_by_kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_by_abort() -> None:
    os.abort()


def dies_by_exit_0() -> None:
    os._exit(0)


def dies_by_exit_3() -> None:
    os._exit(3)


def fails_by_sys_exit() -> None:
    sys.exit("enough")


def fails_for_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    bytearray(4 << 30)


def closes_everything() -> None:
    os.closerange(0, 1000)


def closes_everything_and_stays() -> None:
    os.closerange(0, 1000)
    threading.Event().wait()


def fails_unpicklably() -> None:
    class Own(Exception):
        def __reduce__(self) -> Any:
            raise TypeError("no pickle")

        def __str__(self) -> str:
            return "of its own kind"

    raise Own(threading.Lock())


def returns_unpicklable() -> object:
    return threading.Lock()


def forks_and_returns() -> None:
    if os.fork() == 0:
        sys.exit(3)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 3
    if os.fork() == 0:
        return
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    raise LookupError("the mother")


def leaves_a_daemon() -> None:
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    raise LookupError("left one")


ENDS: list[tuple[Callable[[], object], str]] = [
    (dies_by_segfault, "SIGSEGV"),
    (dies_by_kill, "SIGKILL"),
    (dies_by_abort, "SIGABRT"),
    (dies_by_exit_0, "exit code 0"),
    (dies_by_exit_3, "exit code 3"),
    (fails_by_sys_exit, "SystemExit: enough"),
    (fails_for_memory, "MemoryError"),
    (closes_everything, "closed the connection to its parent"),
    (closes_everything_and_stays, "closed the connection to its parent"),
    (fails_unpicklably, "Own: of its own kind"),
    (returns_unpicklable, "lock"),
    (forks_and_returns, "LookupError: the mother"),
    (leaves_a_daemon, "LookupError: left one"),
]


async def test_whatever_kills_a_child_costs_one_experiment_and_is_named(study: Study, sqlite_target: Target) -> None:
    ends = [end for end, _ in ENDS]

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> object:
        results.process_results({"result": keys["number"], "text": str(os.getpid())})
        return ends[keys["number"] // 2]() if keys["number"] % 2 else None

    experimenter = await study(2 * len(ends))
    summary = await experimenter.execute(run, n_jobs=2, max_errors=-1)
    assert (summary.done, summary.error) == (len(ends), len(ends))
    found = await errors(sqlite_target)
    assert found[::2] == [""] * len(ends)
    for text, (_, words) in zip(found[1::2], ENDS, strict=True):
        assert words in text.splitlines()[-1] or words in text
    rows = await sql(sqlite_target, 'SELECT "number", "result" FROM "experiments"')
    assert all(number == result for number, result in rows)


async def test_a_result_of_100_mb_is_stored(study: Study, sqlite_target: Target) -> None:
    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        results.process_results({"text": "x" * 100_000_000})

    assert (await (await study(1)).execute(run, n_jobs=1)).done == 1
    assert await sql(sqlite_target, 'SELECT LENGTH("text") FROM "experiments"') == [(100_000_000,)]


async def test_dead_children_are_tried_again_if_asked_for(study: Study, sqlite_target: Target) -> None:
    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        if results.attempt <= keys["number"]:
            os.kill(os.getpid(), signal.SIGKILL)

    experimenter = await study(4)
    summary = await experimenter.execute(run, n_jobs=2, retries=2, retry_on=[ChildProcessError])
    assert (summary.done, summary.error, summary.retried) == (3, 1, 5)
    await experimenter.retry_errors()
    summary = await experimenter.execute(run, n_jobs=2, retries=2, retry_on=[ConnectionError])
    assert (summary.error, summary.retried) == (0, 0)


class Shaky(OSError):
    """Only the child raises it; the parent knows its name."""


async def test_a_class_of_exceptions_is_known_by_its_name_in_another_process(study: Study) -> None:
    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        class Local(Shaky):
            pass

        if results.attempt == 1:
            raise Local("once")

    experimenter = await study(2)
    assert (await experimenter.execute(run, n_jobs=1, retries=1, retry_on=[Shaky])).retried == 2


async def test_children_that_all_die_alike_stop_the_run(study: Study) -> None:
    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        os._exit(7)

    experimenter = await study(40)
    summary = await experimenter.execute(run, n_jobs=2)
    assert summary.stopped_by == "max_errors"
    assert 20 <= summary.error <= 22


async def test_a_thread_left_behind_cannot_write_into_the_next_experiment(
    study: Study, sqlite_target: Target, shared: Shared
) -> None:
    seen = shared.seen()

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        def go_on() -> None:
            try:
                while True:
                    results.process_logs({"steps": {"step": keys["number"]}})
                    results.process_results({"result": keys["number"]})
            except BaseException as failure:
                seen.append([keys["number"], type(failure).__name__, str(failure)])
                raise

        results.process_results({"text": str(os.getpid())})
        threading.excepthook = lambda _: None
        threading.Thread(target=go_on, daemon=True).start()
        time.sleep(0.01)

    experimenter = await study(30)
    assert (await experimenter.execute(run, n_jobs=1)).done == 30
    rows = await sql(sqlite_target, 'SELECT "number", "result" FROM "experiments" WHERE "result" <> "number"')
    assert rows == []
    mixed = 'SELECT "ID" FROM "experiments__steps" WHERE "step" + 1 <> "experiment_id"'
    assert await sql(sqlite_target, mixed) == []
    assert {(kind, "has ended" in text or "no longer" in text) for _, kind, text in seen} == {
        ("ExperimentLostError", True)
    }


async def test_a_result_processor_is_of_no_use_after_its_end_or_in_a_forked_process(
    study: Study, sqlite_target: Target
) -> None:
    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        import builtins
        import multiprocessing

        def use(queue: Any) -> None:
            try:
                results.process_results({"result": 99})
            except ExperimentLostError as failure:
                queue.put(f"{type(failure).__name__}: {failure} {results.should_stop}")

        queue = multiprocessing.get_context("fork").SimpleQueue()
        process = multiprocessing.get_context("fork").Process(target=use, args=(queue,))
        process.start()
        said = [queue.get()]
        process.join()
        kept = getattr(builtins, "kept", None)
        builtins.kept = results  # type: ignore[attr-defined]
        for call in ("process_results", "process_logs"):
            if kept is not None:
                with pytest.raises(Exception, match="has ended") as caught:
                    getattr(kept, call)({})
                said.append(type(caught.value).__name__)
        results.process_results({"text": "|".join(said)})

    await (await study(2)).execute(run, n_jobs=1)
    first, second = [text for (text,) in await sql(sqlite_target, 'SELECT "text" FROM "experiments" ORDER BY "ID"')]
    assert first.startswith("ExperimentLostError: ")
    assert "attach" in first
    assert first.endswith("False")
    assert second.split("|")[1:] == ["ExperimentLostError"] * 2


# ------------------------------------------------------------------------------------------------------ time limits


def hold_the_gil() -> None:
    ctypes.PyDLL(None).sleep(1000)


def match_for_ever() -> None:
    import re

    re.match(r"(a+)+$", "a" * 60 + "b")


def spin() -> None:
    while True:
        pass


@pytest.mark.parametrize("hang", [hold_the_gil, match_for_ever, spin])
async def test_a_limit_kills_an_experiment_with_all_that_it_started_whatever_it_does(
    study: Study, sqlite_target: Target, shared: Shared, hang: Callable[[], None]
) -> None:
    seen = shared.seen()

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        sleeper = ["/bin/sleep", "1000"]
        grandchildren = [subprocess.Popen(sleeper, start_new_session=away) for away in (False, True)]
        seen.append([os.getpid(), *(process.pid for process in grandchildren)])
        if keys["number"] == 0:
            hang()
        end = time.monotonic() + 60  # long before the pool ends, which kills whatever is left
        while any(Path(f"/proc/{pid}").exists() for pid in seen.values()[0]):
            assert time.monotonic() < end, "something of the killed experiment lives on"
            time.sleep(0.01)

    experimenter = await study(2)
    limit: dict[str, Any] = {"timeout": 1.5} if hang is spin else {"stall_timeout": 1.5}
    began = time.monotonic()
    summary = await experimenter.execute(run, n_jobs=1, **limit)
    assert time.monotonic() - began < 1.5 + SOON_SECONDS
    assert (summary.done, summary.error) == (1, 1)
    assert f"{next(iter(limit))} of 1.5 s" in (await errors(sqlite_target))[0]
    first, second = seen
    assert gone(first)
    assert second[0] != first[0]
    await eventually(lambda: gone(second[1:]))  # with the pool


async def test_time_is_counted_from_the_functions_start(study: Study) -> None:
    class Slow:
        def __init__(self) -> None:
            self.heavy = 1

        def __setstate__(self, state: object) -> None:
            time.sleep(1.7)  # as importing much does

        def __call__(self, keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
            time.sleep(0.05)

    assert (await (await study(2)).execute(Slow(), n_jobs=2, timeout=1.5, stall_timeout=1.5)).done == 2


# ------------------------------------------------------------------------------------------------------- the nursery


def nurseries() -> list[psutil.Process]:
    """Those of this process, which has other children, too: servers, what earlier tests have started by forkserver."""
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if "nursery" in " ".join(child.cmdline())]


def nursery() -> psutil.Process:
    [found] = nurseries()
    return found


@pytest.mark.parametrize("retries", [0, 1])
async def test_the_nurserys_death_takes_the_children_along_and_another_one_goes_on(
    study: Study, sqlite_target: Target, shared: Shared, retries: int
) -> None:
    seen, gate = shared.seen(), shared.gate()

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        grandchild = subprocess.Popen(["/bin/sleep", "1000"])
        seen.append([os.getpid(), grandchild.pid])
        gate.wait()

    experimenter = await study(6)
    running = asyncio.create_task(experimenter.execute(run, n_jobs=2, retries=retries))
    await eventually(lambda: len(seen) == 2)
    nursery().kill()
    pids = [pid for pair in seen for pid in pair]
    await eventually(lambda: gone(pids), SOON_SECONDS)
    gate.open()
    summary = await running
    assert (summary.done, summary.error, summary.retried) == ((6, 0, 2) if retries else (4, 2, 0))
    assert all("ChildProcessError" in text for text in await errors(sqlite_target) if text)


async def test_the_news_of_a_death_may_be_late(study: Study, sqlite_target: Target, shared: Shared) -> None:
    """On a busy machine the line ends well before the nursery tells how its child died."""
    pids = shared.seen()

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        pids.append([os.getppid(), os.getpid()])
        threading.Event().wait()

    call = asyncio.create_task((await study(1)).execute(run, n_jobs=1))
    await eventually(lambda: len(pids) == 1)
    [(nursery, child)] = pids
    os.kill(nursery, signal.SIGSTOP)
    try:
        os.kill(child, signal.SIGKILL)
        await asyncio.sleep(2 * DEAF_SECONDS)
    finally:
        os.kill(nursery, signal.SIGCONT)
    assert (await call).error == 1
    [text] = await errors(sqlite_target)
    assert text.splitlines()[-1] == f"{DIED}: killed by SIGKILL (by somebody, or by the kernel for want of memory)"


async def test_a_nursery_that_does_not_answer_is_killed_at_the_end(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asyncexp.pools import process

    monkeypatch.setattr(process, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(process, "END_SECONDS", 0.2)

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        os.kill(os.getppid(), signal.SIGSTOP)

    assert (await (await study(1)).execute(run, n_jobs=1)).done == 1


@pytest.mark.parametrize("nursery_is", ["well", "deaf"])
def test_a_loop_closed_in_the_middle_of_a_run_takes_the_children_along_at_the_next_call(
    sqlite_target: Target,
    tmp_path: Path,
    shared: Shared,
    monkeypatch: pytest.MonkeyPatch,
    nursery_is: str,
) -> None:
    """Nothing was cancelled or awaited, and a process that was forked meanwhile has every descriptor, too."""
    monkeypatch.setattr("asyncexp.pools.process.END_SECONDS", 0.2 if nursery_is == "deaf" else 10.0)
    pids, loop = shared.seen(), asyncio.new_event_loop()
    experimenter = new_experimenter(tmp_path, sqlite_target, keyfields=numbers(4))

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        pids.append([os.getppid(), os.getpid(), subprocess.Popen(["/bin/sleep", "1000"]).pid])
        threading.Event().wait()

    async def begin() -> None:
        await experimenter.fill_table_from_config()
        running.append(asyncio.create_task(experimenter.execute(run, n_jobs=2)))
        await eventually(lambda: len(pids) == 2)

    async def next_call() -> None:
        async with experimenter:
            assert gone(family())
            assert (await experimenter.counts())["created"] == 4

    def family() -> list[int]:
        return [pid for of_one in pids for pid in of_one]

    running: list[asyncio.Task[Summary]] = []
    before = signal.getsignal(signal.SIGTERM)
    loop.run_until_complete(begin())
    with forked():
        loop.close()
        running.clear()
        if nursery_is == "deaf":
            os.kill(family()[0], signal.SIGSTOP)
        asyncio.run(next_call())
    assert signal.getsignal(signal.SIGTERM) is before


@contextmanager
def forked() -> Iterator[None]:
    """Beside a process that was forked from this one and does nothing."""
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        while True:
            signal.pause()
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# ------------------------------------------------------------------------------------------------ limits of the system


async def test_no_descriptors_for_a_child_is_a_clear_error_and_the_rows_go_back(study: Study, shared: Shared) -> None:
    no_more = shared.gate()

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        end = time.monotonic() + 2  # so that every slot needs a child, however long they take to start
        while time.monotonic() < end and not no_more.is_open:
            time.sleep(0.01)

    experimenter = await study(30)
    await experimenter.counts()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(descriptors())
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 14, limits[1]))
    try:
        with pytest.raises(PyExperimenterError, match=r"No child process could be started: .*open files.*ulimit"):
            await experimenter.execute(run, n_jobs=20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        no_more.open()
    counts = await experimenter.counts()
    assert counts["running"] == counts["error"] == 0
    assert (await experimenter.execute(run, n_jobs=8)).done == 30 - counts["done"]


async def test_a_python_that_is_not_there_is_a_clear_error_and_the_rows_go_back(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    experimenter = await study(3)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(PyExperimenterError, match=r"No child process could be started: .*/nowhere/python"):
        await experimenter.execute(lambda keys, results, custom: None)
    monkeypatch.undo()
    assert (await experimenter.counts())["created"] == 3


async def test_a_system_that_forks_no_more_is_a_clear_error_and_the_rows_go_back(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # As root there is no limit to run into: the process that forks children is made to find one.
    (tmp_path / "site").mkdir()
    refusal = "import errno, os\ndef refuse(): raise BlockingIOError(errno.EAGAIN, 'temporarily unavailable')\n"
    (tmp_path / "site" / "sitecustomize.py").write_text(refusal + "os.fork = refuse\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    experimenter = await study(3)
    with pytest.raises(PyExperimenterError, match=r"No child process could be started: .*temporarily.*ulimit"):
        await experimenter.execute(lambda keys, results, custom: None)
    assert "temporarily unavailable" in caplog.text
    monkeypatch.delenv("PYTHONPATH")
    assert (await experimenter.execute(lambda keys, results, custom: None)).done == 3


async def test_many_open_files_of_the_parent_do_not_matter(study: Study) -> None:
    ends = [socket.socketpair() for _ in range(520)]
    try:
        assert (await (await study(2)).execute(lambda keys, results, custom: None)).done == 2
    finally:
        for pair in ends:
            for end in pair:
                end.close()


# ----------------------------------------------------------------------------------------------- nothing is left behind


async def test_processes_killed_at_random_moments_cost_tries_and_nothing_else(
    study: Study, sqlite_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asyncexp.pools import process as pool

    monkeypatch.setattr(pool, "TRIES", 50)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        results.process_logs({"steps": {"step": results.attempt}})
        subprocess.Popen(["/bin/sleep", "100"], start_new_session=True)
        results.process_results({"result": keys["number"]})
        time.sleep(0.02)

    experimenter = await study(150)
    limits: dict[str, Any] = {"timeout": 2.0, "max_tasks_per_child": 10}
    running = asyncio.create_task(experimenter.execute(run, n_jobs=3, retries=50, **limits))
    longest = 0.2
    while not running.done():
        longest += 0.004  # or else a slow machine would never get anywhere
        await asyncio.wait([running], timeout=chance.uniform(0, longest))
        mine = [each for one in nurseries() for each in (one, *one.children(recursive=True))]
        if len(mine) > 1:
            with suppress(ProcessLookupError):
                chosen = mine[0] if chance.random() < 0.1 else chance.choice(mine[1:])
                os.kill(chosen.pid, chance.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP]))
        for process in mine[:1]:  # one that stands still could not kill a child that has had its time
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
    assert running.result().done == 150
    assert await audit(sqlite_target) == {"done": 150}
    wrong = 'SELECT "ID" FROM "experiments" WHERE "result" IS NULL OR "result" <> "number"'
    assert await sql(sqlite_target, wrong) == []
    lines = await experimenter.get_logtable("steps")
    assert list(lines["experiment_id"].sort_values()) == list(range(1, 151))


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


async def killed(study: Study, count: int) -> None:
    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    experimenter = await study(count + 1)
    await experimenter.execute(run, n_jobs=1, max_experiments=1)
    others = set(psutil.Process().children(recursive=True))
    before = threading.active_count(), descriptors()
    summary = await experimenter.execute(run, n_jobs=4, max_errors=-1)
    assert summary.error == count
    await eventually(lambda: set(psutil.Process().children(recursive=True)) <= others)
    await eventually(lambda: (threading.active_count(), descriptors()) == before)


async def test_100_deaths_leave_no_child_and_no_descriptor(study: Study) -> None:
    await killed(study, 100)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_1000_deaths_leave_no_child_and_no_descriptor(study: Study) -> None:
    await killed(study, 1000)
