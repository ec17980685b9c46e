"""Attached workers: they join a running experiment from anywhere, and write to that attempt and no other."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import multiprocessing
import os
import pickle
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, Literal

import asyncpg
import numpy as np
import pytest

from asyncexp import Experimenter, ExperimentStatus, ResultProcessor, Summary, SyncResultProcessor
from asyncexp.db.base import Target
from asyncexp.errors import (
    DatabaseConnectionError,
    DatabaseQueryError,
    ExperimentLostError,
    InvalidConfigError,
    InvalidLogFieldError,
    ParameterCombinationError,
    PyExperimenterError,
)
from asyncexp.experiment import ExperimentId
from asyncexp.results import from_thread
from tests.contract.conftest import Make
from tests.contract.functions import Joined
from tests.contract.modes import Mode
from tests.contract.shared import Gate, Seen, Shared
from tests.contract.sql import execute as change
from tests.contract.sql import fetch as sql
from tests.contract.support import Keys, audit, child, eventually, numbers
from tests.proxy import Proxy
from tests.servers import Server
from tests.studies import experimenter as new_experimenter

servers_only = pytest.mark.parametrize("provider", ["postgresql", "mysql"])
both_kinds = pytest.mark.parametrize("kind", ["def", "async"])
CLOSED = "closed while a (worker was attached|call was under way)"
STUDY: dict[str, Any] = {"keyfields": numbers(3), "execution": {"heartbeat_interval": 0.1, "lease": 30}}
"""A study whose workers look often at what became of their experiments."""
SLOW: dict[str, Any] = {"keyfields": numbers(3), "execution": {"heartbeat_interval": 50, "lease": 200}}
"""One whose workers do not look at all while a test lasts."""


@dataclass
class Running:
    """An experiment under way."""

    experimenter: Experimenter
    main: Joined
    id: ExperimentId
    call: asyncio.Task[Summary]

    async def ended(self, status: ExperimentStatus = ExperimentStatus.DONE) -> Summary:
        """Lets the main function return; the summary of its run."""
        self.main.status.append(status.value)
        self.main.go_on.open()
        return await self.call


@asynccontextmanager
async def running(experimenter: Experimenter, shared: Shared, **keywords: Any) -> AsyncIterator[Running]:
    """Experiment 1 of a study under way; it has ended afterwards."""
    await experimenter.fill_table_from_config()
    main = Joined(shared.seen(), shared.seen(), shared.gate())
    call = asyncio.create_task(experimenter.execute(main, **({"experiment_ids": [1]} | keywords)))
    try:
        await eventually(lambda: len(main.ids) > 0)
        yield Running(experimenter, main, ExperimentId(*main.ids.values()[0]), call)
    finally:
        main.go_on.open()
        await asyncio.gather(call, return_exceptions=True)


async def lines(target: Target) -> list[tuple[Any, ...]]:
    """(experiment, attempt, step, note) of every log line, in the order written."""
    text = 'SELECT "experiment_id", "_attempt", "step", "note" FROM "experiments__steps" ORDER BY "ID"'
    return await sql(target, text)


async def attached_rows(target: Target) -> list[tuple[Any, ...]]:
    """(experiment, whether it has stopped) of every attached worker."""
    text = 'SELECT "experiment_id", "stopped" IS NOT NULL FROM "experiments_workers" WHERE "role" = \'attached\''
    return [(number, bool(stopped)) for number, stopped in await sql(target, text)]


# ------------------------------------------------------------------------- worker functions of both kinds


def reports(results: SyncResultProcessor, note: str = "worker") -> str:
    results.process_logs({"steps": [{"step": 1, "note": note}, {"step": 2, "note": note}]})
    results.process_results({"result": 7})
    results.process_results({"text": note})
    results.heartbeat(0.25, note)
    results.flush()
    results.process_logs({"steps": {"step": 3, "note": note}})
    return f"{note} of {results.experiment_id} in {results.attempt}"


async def reports_too(results: ResultProcessor, note: str = "worker") -> str:
    await results.process_logs({"steps": [{"step": 1, "note": note}, {"step": 2, "note": note}]})
    await results.process_results({"result": 7})
    await results.process_results({"text": note})
    await results.heartbeat(0.25, note)
    await results.flush()
    await results.process_logs({"steps": {"step": 3, "note": note}})
    return f"{note} of {results.experiment_id} in {results.attempt}"


REPORTS: dict[str, Callable[..., Any]] = {"def": reports, "async": reports_too}


async def all_landed(target: Target, attempt: int = 1, note: str = "worker") -> None:
    assert await lines(target) == [(1, attempt, step, note) for step in (1, 2, 3)]
    row = 'SELECT "result", "text", "_progress", "_message" FROM "experiments" WHERE "ID" = 1'
    assert await sql(target, row) == [(7.0, note, 0.25, note)]


def listening(kind: str, seen: Seen, log: bool = False) -> Callable[..., Any]:
    """A worker function that notes that it is there and runs until it should stop, or is cancelled."""

    def plain(results: SyncResultProcessor) -> str:
        if log:
            results.process_logs({"steps": {"step": 0}})
        seen.append("attached")
        while not results.should_stop:
            time.sleep(0.005)
        return "stopped"

    async def coroutine(results: ResultProcessor) -> str:
        if log:
            await results.process_logs({"steps": {"step": 0}})
        seen.append("attached")
        await eventually(lambda: results.should_stop)
        return "stopped"

    return plain if kind == "def" else coroutine


def hanging(kind: str, seen: Seen, gate: Gate) -> Callable[..., Any]:
    """A worker function that notes that it is there and waits for the gate, whatever happens, then logs."""

    def plain(results: SyncResultProcessor) -> str:
        seen.append("attached")
        gate.wait()
        results.process_logs({"steps": {"step": 99}})
        return "logged"

    async def coroutine(results: ResultProcessor) -> str:
        seen.append("attached")
        await gate.passed()
        await results.process_logs({"steps": {"step": 99}})
        return "logged"

    return plain if kind == "def" else coroutine


def ending(kind: str, *, returns: object = None, raises: BaseException | None = None) -> Callable[..., Any]:
    """A worker function that logs a line and ends so."""

    def end() -> object:
        if raises is not None:
            raise raises
        return returns

    def plain(results: SyncResultProcessor) -> object:
        results.process_logs({"steps": {"step": 1}})
        return end()

    async def coroutine(results: ResultProcessor) -> object:
        await results.process_logs({"steps": {"step": 1}})
        return end()

    return plain if kind == "def" else coroutine


async def attached(seen: Seen, count: int = 1) -> None:
    await eventually(lambda: seen.values().count("attached") == count)


async def cancelled(works: asyncio.Task[Any], seen: Seen) -> None:
    """Cancels a call of `attach` once its worker function has begun; it has ended then."""
    await attached(seen)
    works.cancel()
    with pytest.raises(asyncio.CancelledError):
        await works


# -------------------------------------------------------------------------------- what it reports, returns, raises


@both_kinds
async def test_what_a_worker_reports_lands_in_the_row_and_logs_of_that_attempt(
    make: Make, target: Target, kind: str, shared: Shared
) -> None:
    async with running(make(**STUDY), shared) as at:
        assert await at.experimenter.attach(REPORTS[kind], at.id) == "worker of 1 in 1"
        await all_landed(target)
        assert (await at.ended()).done == 1
        await all_landed(target)
    assert await audit(target) == {"done": 1, "created": 2}


@pytest.mark.parametrize("given", [int, np.int64, lambda given: given])
async def test_a_bare_id_joins_the_attempt_under_way(
    make: Make, target: Target, given: Callable[[ExperimentId], int], shared: Shared
) -> None:
    async with running(make(**STUDY), shared) as at:
        assert await at.experimenter.attach(reports_too, given(at.id)) == "worker of 1 in 1"
    await all_landed(target)


@both_kinds
async def test_any_value_comes_back(make: Make, kind: str, shared: Shared) -> None:
    async with running(make(**STUDY), shared) as at:
        for value in (None, 0, "text", object(), int, lambda: 1, ValueError("returned"), math.nan):
            assert await at.experimenter.attach(ending(kind, returns=value), at.id) is value


class Custom(Exception):
    """An exception that says more than its class."""


@both_kinds
async def test_an_exception_of_the_worker_is_raised_to_its_caller_unchanged_and_what_it_sent_is_kept(
    make: Make, target: Target, kind: str, shared: Shared
) -> None:
    failures = [Custom("why", 1), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError("mine")]
    async with running(make(**STUDY), shared) as at:
        for number, failure in enumerate(failures, 1):
            with pytest.raises(type(failure)) as caught:
                await at.experimenter.attach(ending(kind, raises=failure), at.id)
            assert caught.value is failure
            assert await lines(target) == [(1, 1, 1, None)] * number
        assert await attached_rows(target) == [(1, True)] * len(failures)
        assert (await at.ended()).done == 1  # nothing of it is the main function's business


async def test_partials_methods_and_callable_objects_are_worker_functions(make: Make, shared: Shared) -> None:
    class Both:
        async def __call__(self, results: ResultProcessor) -> str:
            return await reports_too(results, "object")

        def method(self, results: SyncResultProcessor) -> str:
            return reports(results, "method")

    async with running(make(**STUDY), shared) as at:
        attach = at.experimenter.attach
        assert await attach(functools.partial(reports_too, note="partial"), at.id) == "partial of 1 in 1"
        assert await attach(functools.partial(reports, note="plain"), at.id) == "plain of 1 in 1"
        assert await attach(Both(), at.id) == "object of 1 in 1"
        assert await attach(Both().method, at.id) == "method of 1 in 1"


async def test_a_bad_value_raises_in_the_worker_and_a_refused_line_at_the_end_at_the_latest(
    make: Make, target: Target, shared: Shared
) -> None:
    await (first := make(**STUDY)).fill_table_from_config()
    refusing = {
        "sqlite": 'CREATE TRIGGER "refuse" BEFORE INSERT ON "experiments__steps" WHEN NEW."step" = 13 '
        "BEGIN SELECT RAISE(ABORT, 'not 13'); END"
    }
    constraint = 'ALTER TABLE "experiments__steps" ADD CONSTRAINT "refuse" CHECK ("step" <> 13)'
    await change(target, refusing.get(target.provider, constraint))

    async def worker(results: ResultProcessor) -> None:
        with pytest.raises(InvalidLogFieldError, match="did you mean 'step'"):
            await results.process_logs({"steps": {"stepp": 1}})
        await results.process_logs({"steps": {"step": 12}})
        await results.process_logs({"steps": {"step": 13}})

    async with running(first, shared) as at:
        with pytest.raises(DatabaseQueryError, match="refused what was sent earlier"):
            await at.experimenter.attach(worker, at.id)
        assert await lines(target) == [(1, 1, 12, None)]
        assert await attached_rows(target) == [(1, True)]


async def test_a_forgotten_await_is_an_error(make: Make, target: Target, shared: Shared) -> None:
    async def forgets(results: ResultProcessor) -> int:
        sent = results.process_results({"result": 1})
        forgotten.append(sent)
        return 5

    forgotten: list[Coroutine[Any, Any, None]] = []
    async with running(make(**STUDY), shared) as at:
        with pytest.raises(PyExperimenterError, match="without awaiting a call on its result processor: write `await`"):
            await at.experimenter.attach(forgets, at.id)
    forgotten[0].close()


async def test_a_plain_function_that_returns_a_coroutine_is_an_error(make: Make, shared: Shared) -> None:
    async with running(make(**STUDY), shared) as at:
        with pytest.raises(PyExperimenterError, match="returned a coroutine"):
            await at.experimenter.attach(lambda results: reports_too(results), at.id)


@pytest.mark.executes_nothing
@pytest.mark.parametrize("function", [lambda: 1, lambda keys, results: 1, "reports", None])
async def test_what_cannot_be_a_worker_function_is_refused(make: Make, mode: Mode, function: Any) -> None:
    words = r"called with \(result_processor\)" if callable(function) else "it must be a function"
    wrong: tuple[type[Exception], str] = (InvalidConfigError, f"worker_function is .*{words}")
    if mode == "blocking" and function is None:  # there it means that none was given
        wrong = TypeError, "takes worker_function"
    with pytest.raises(wrong[0], match=wrong[1]):
        await make(**STUDY).attach(function, 1)


@pytest.mark.executes_nothing
@pytest.mark.parametrize("wait", [-1, -0.001, math.nan, "1", None, True])
async def test_what_is_no_time_to_wait_is_refused(make: Make, wait: Any) -> None:
    with pytest.raises(InvalidConfigError, match="wait="):
        await make(**STUDY).attach(reports, 1, wait=wait)


@pytest.mark.executes_nothing
@pytest.mark.parametrize("given", ["1", 1.0, None, 2**63, [1]])
async def test_what_is_no_id_is_refused(make: Make, mode: Mode, given: Any) -> None:
    wrong: tuple[type[Exception], str] = (ParameterCombinationError, "whole numbers")
    if mode == "blocking" and given is None:  # there it means that none was given
        wrong = TypeError, "takes experiment_id"
    with pytest.raises(wrong[0], match=wrong[1]):
        await make(**STUDY).attach(reports, given)


# --------------------------------------------------------------------------------------------- from anywhere


@pytest.fixture(scope="module", autouse=True)
def _helpers_of_multiprocessing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The processes and files that `spawn` and `forkserver` leave for later use are none that a test leaves."""
    config: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    config["tempdir"] = str(tmp_path_factory.mktemp("multiprocessing"))
    resource_tracker.ensure_running()
    forkserver.ensure_running()
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    del config["tempdir"]


def in_process(experimenter: Experimenter, experiment_id: int, kind: str, answers: Any) -> None:
    answers.put((os.getpid(), asyncio.run(experimenter.attach(REPORTS[kind], experiment_id))))


@pytest.mark.in_process_only("it says itself where its main function runs")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize(("kind", "pool"), [("def", "task"), ("async", "task"), ("def", "process")])
async def test_from_a_multiprocessing_child(
    make: Make, target: Target, method: str, kind: str, pool: Literal["task", "process"]
) -> None:
    def main(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        context = multiprocessing.get_context(method)
        answers = context.SimpleQueue()
        worker = context.Process(  # type: ignore[attr-defined]
            target=in_process, args=(experimenter, results.experiment_id, kind, answers)
        )
        worker.start()
        pid, answer = answers.get()
        worker.join(60)
        assert (worker.exitcode, worker.pid, answer) == (0, pid, "worker of 1 in 1")
        worker.close()
        answers.close()

    experimenter = make(**STUDY)
    await experimenter.fill_table_from_config()
    summary = await experimenter.execute(main, experiment_ids=[1], pool=pool)
    assert (summary.done, summary.errors) == (1, ())
    await all_landed(target)
    assert await attached_rows(target) == [(1, True)]


@both_kinds
async def test_from_a_thread_with_an_event_loop_of_its_own(
    make: Make, target: Target, kind: str, shared: Shared
) -> None:
    async with running(make(**STUDY), shared) as at:

        def work() -> Any:
            return asyncio.run(at.experimenter.attach(REPORTS[kind], at.id))

        assert await asyncio.to_thread(work) == "worker of 1 in 1"
    await all_landed(target)


@pytest.mark.in_process_only("it says itself where its main function runs")
async def test_from_a_main_function_that_is_a_thread(make: Make, target: Target) -> None:
    def main(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        assert asyncio.run(experimenter.attach(reports, results.experiment_id)) == "worker of 1 in 1"

    experimenter = make(**STUDY)
    await experimenter.fill_table_from_config()
    assert (await experimenter.execute(main, experiment_ids=[1], pool="task")).done == 1
    await all_landed(target)


@pytest.mark.asyncio_only("the blocking class is such a caller")
@both_kinds
async def test_by_hand_for_a_caller_that_runs_the_function_in_its_own_thread(
    make: Make, target: Target, kind: str, shared: Shared
) -> None:
    async with running(make(**STUDY), shared) as at:
        attachment = await at.experimenter._attachment(at.id)
        try:
            if kind == "def":
                processor = from_thread(attachment.processor, asyncio.get_running_loop())
                assert await asyncio.to_thread(reports, processor) == "worker of 1 in 1"
            else:
                assert await reports_too(attachment.processor) == "worker of 1 in 1"
        finally:
            await attachment.end()
            await attachment.end()  # twice is no error
        await all_landed(target)
        assert await attached_rows(target) == [(1, True)]


@both_kinds
async def test_from_a_subprocess_with_the_id_through_a_pickle(
    make: Make, target: Target, tmp_path: Path, kind: str, shared: Shared
) -> None:
    async with running(make(**STUDY), shared) as at:
        given = pickle.dumps(at.id).hex()
        async with child("attach", tmp_path, target, given, kind, "outside", **STUDY) as worker:
            assert await worker.told() == [1, 1, worker.process.pid]
            assert await worker.ended() == 0
    assert await lines(target) == [(1, 1, step, "outside") for step in range(3)]


@contextmanager
def another_machine() -> Iterator[tuple[str, list[str]]]:
    """A network and a host name of its own: this machine's address as seen from there, and how to run a command."""
    holder = subprocess.Popen(
        ["unshare", "--net", "--uts", "sh", "-c", "hostname elsewhere && echo && exec sleep 300"],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        if not holder.stdout.readline():
            pytest.skip("the kernel gives this user no network namespace")
        inside = ["nsenter", "-t", str(holder.pid), "--net", "--uts"]
        here, there = f"veth{holder.pid}", "10.203.77."
        for command in (
            ["ip", "link", "add", here, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid)],
            ["ip", "addr", "add", f"{there}1/30", "dev", here],
            ["ip", "link", "set", here, "up"],
            [*inside, "ip", "addr", "add", f"{there}2/30", "dev", "eth0"],
            [*inside, "ip", "link", "set", "eth0", "up"],
        ):
            subprocess.run(command, check=True)
        yield f"{there}1", inside
    finally:
        holder.kill()
        holder.communicate()


@both_kinds
async def test_from_another_machine(make: Make, target: Target, tmp_path: Path, kind: str, shared: Shared) -> None:
    with another_machine() as (address, inside):
        async with contextlib.AsyncExitStack() as stack:
            seen_there = target
            if target.provider != "sqlite":  # which another machine cannot reach; there it is another process
                seen_there = (await stack.enter_async_context(Proxy(target, address))).target
            at = await stack.enter_async_context(running(make(**STUDY), shared))
            given = [pickle.dumps(at.id).hex(), kind, "abroad"]
            (tmp_path / "abroad").mkdir()
            process = child("attach", tmp_path / "abroad", seen_there, *given, through=inside, **STUDY)
            worker = await stack.enter_async_context(process)
            assert (await worker.told())[:2] == [1, 1]
            assert await worker.ended() == 0
            machines = {info.role: info.machine for info in await at.experimenter.workers()}
            assert machines["attached"] == "elsewhere"
            assert machines["worker"] != "elsewhere"
    assert await lines(target) == [(1, 1, step, "abroad") for step in range(3)]
    assert await sql(target, 'SELECT "text" FROM "experiments" WHERE "ID" = 1') == [("abroad on elsewhere",)]


@pytest.mark.in_process_only("it says itself where its main function runs")
@both_kinds
async def test_from_a_child_of_the_process_pool(make: Make, target: Target, kind: str) -> None:
    def main(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        answer = asyncio.run(experimenter.attach(REPORTS[kind], results.experiment_id))
        assert answer == "worker of 1 in 1"

    experimenter = make(**STUDY)
    await experimenter.fill_table_from_config()
    summary = await experimenter.execute(main, experiment_ids=[1], pool="process")
    assert (summary.done, summary.errors) == (1, ())
    await all_landed(target)
    assert await attached_rows(target) == [(1, True)]


async def test_a_child_forked_by_an_attached_worker_attaches_anew(make: Make, target: Target, shared: Shared) -> None:
    def parent(results: SyncResultProcessor) -> None:
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()
        results.process_logs({"steps": {"step": 0, "note": "parent"}})
        worker = context.Process(target=in_process, args=(experimenter, results.experiment_id, "def", answers))
        worker.start()
        worker.join(60)
        assert worker.exitcode == 0
        worker.close()
        answers.close()
        results.process_logs({"steps": {"step": 4, "note": "parent"}})

    experimenter = make(**STUDY)
    async with running(experimenter, shared) as at:
        await experimenter.attach(parent, at.id)
    assert {(step, note) for _, _, step, note in await lines(target)} == {
        *((0, "parent"), (1, "worker"), (2, "worker"), (3, "worker"), (4, "parent"))
    }
    assert await attached_rows(target) == [(1, True), (1, True)]


# ------------------------------------------------------------------------------------- that attempt and no other


async def test_a_worker_of_a_lost_attempt_cannot_write_into_the_next_one(
    make: Make, target: Target, shared: Shared
) -> None:
    seen, gate = shared.seen(), shared.gate()
    other = make(**SLOW)
    async with running(make(**STUDY), shared) as at:
        late = asyncio.create_task(other.attach(hanging("async", seen, gate), at.id))
        await attached(seen)
        earlier = pickle.loads(pickle.dumps(at.id))  # noqa: S301
        assert await other.release([1]) == [1]
        await at.call
        await change(target, 'UPDATE "experiments" SET "_not_before" = NULL')
    async with running(make(**STUDY), shared) as again:
        assert (int(again.id), again.id.attempt) == (1, 2)
        gate.open()
        with pytest.raises(ExperimentLostError, match="attempt 1 is over, and attempt 2 runs now"):
            await late
        with pytest.raises(ExperimentLostError, match="attempt 1 is over, and attempt 2 runs now"):
            await other.attach(reports_too, earlier, wait=60)  # which cannot help
        assert await other.attach(reports_too, int(again.id)) == "worker of 1 in 2"
        await all_landed(target, attempt=2)


@pytest.mark.parametrize("wait", [0, 0.2])
async def test_an_experiment_that_does_not_run_is_not_joined_and_the_message_says_what_it_does(
    make: Make, target: Target, wait: float, shared: Shared
) -> None:
    experimenter = make(**STUDY)
    await experimenter.fill_table_from_config()

    async def ends(keys: Keys, results: ResultProcessor, _: Keys) -> ExperimentStatus:
        mine = results.experiment_id
        seen.append([int(mine), mine.attempt, mine.worker])
        return [ExperimentStatus.DONE, ExperimentStatus.ERROR, ExperimentStatus.PAUSED][keys["number"]]

    async def refused(given: int) -> str:
        with pytest.raises(ExperimentLostError) as caught:
            await experimenter.attach(reports, given, wait=wait)
        return str(caught.value)

    seen = shared.seen()
    waited = f" Waited {wait:g} s." if wait else ""
    assert await refused(1) == f"Experiment 1 cannot be joined: it is not running yet (created).{waited}"
    await experimenter.execute(ends, n_jobs=1)
    ids = [ExperimentId(*each) for each in seen]
    assert await refused(1) == "Experiment 1 cannot be joined: it has finished (done)."
    assert await refused(2) == f"Experiment 2 cannot be joined: it has finished (error).{waited}"
    assert await refused(3) == f"Experiment 3 cannot be joined: it is paused.{waited}"
    assert [await refused(given) for given in ids] == [
        "Experiment 1 cannot be joined: it has finished (done).",
        "Experiment 2 cannot be joined: it has finished (error).",
        "Experiment 3 cannot be joined: it is paused.",
    ]
    await experimenter.retry_errors()
    back = "it was put back and is not running yet (created)"
    assert await refused(2) == f"Experiment 2 cannot be joined: {back}.{waited}"
    assert await refused(ids[1]) == f"Experiment 2 cannot be joined: {back}."
    unknown = "it is unknown: there never was such a row, or it was reset or deleted since"
    await experimenter.reset_experiments("done")
    await experimenter.delete_experiments("paused")
    for given in (ids[0], ids[2]):
        assert await refused(given) == f"Experiment {int(given)} cannot be joined: {unknown}."
    for number in (1, 3, 0, -5, 12345):
        assert await refused(number) == f"Experiment {number} cannot be joined: {unknown}.{waited}"
    assert await attached_rows(target) == []


@pytest.mark.executes_nothing
async def test_without_tables_there_is_nothing_to_join(make: Make, target: Target) -> None:
    with pytest.raises(PyExperimenterError, match="There is no table 'experiments' in this database yet"):
        await make(**STUDY).attach(reports, 1)


async def test_another_structure_is_told_before_anything_is_written(make: Make, target: Target, shared: Shared) -> None:
    async with running(make(**STUDY), shared) as at:
        other = make(**STUDY, resultfields={"result": "DOUBLE", "text": "TEXT", "more": "INT"})
        with pytest.raises(PyExperimenterError, match="'more' is missing"):
            await other.attach(reports, at.id)


async def test_it_waits_for_an_experiment_that_begins_later(make: Make, target: Target, shared: Shared) -> None:
    experimenter, other = make(**STUDY), make(**STUDY)
    await experimenter.fill_table_from_config()
    waiting = asyncio.create_task(other.attach(reports_too, 1, wait=60))
    session_began = asyncio.get_running_loop().time()
    await eventually(lambda: bool(other._attachments))
    async with running(experimenter, shared):
        assert await waiting == "worker of 1 in 1"
    assert asyncio.get_running_loop().time() - session_began < 50
    await all_landed(target)


@pytest.mark.executes_nothing
async def test_waiting_ends_with_its_time(make: Make) -> None:
    experimenter = make(**STUDY)
    await experimenter.fill_table_from_config()
    began = time.monotonic()
    with pytest.raises(ExperimentLostError, match=r"Waited 0\.3 s"):
        await experimenter.attach(reports, 1, wait=0.3)
    assert 0.3 <= time.monotonic() - began < 30


@pytest.mark.executes_nothing
@pytest.mark.asyncio_only("a blocking call cannot be cancelled")
async def test_waiting_ends_with_its_task(make: Make) -> None:
    experimenter = make(**STUDY)
    await experimenter.fill_table_from_config()
    waiting = asyncio.create_task(experimenter.attach(reports, 1, wait=math.inf))
    await eventually(lambda: bool(experimenter._attachments))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not experimenter._attachments


# ------------------------------------------------------------------------------------------ when the row is lost


async def test_what_is_logged_and_not_committed_when_the_main_function_ends_is_refused(
    make: Make, target: Target, shared: Shared
) -> None:
    seen, gate = shared.seen(), shared.gate()

    async def worker(results: ResultProcessor) -> None:
        await results.process_logs({"steps": {"step": 1}})
        await results.flush()
        seen.append("attached")
        await gate.passed()
        await results.process_logs({"steps": {"step": 2}})  # taken, and written a little later

    async with running(make(**SLOW), shared) as at:
        late = asyncio.create_task(make(**SLOW).attach(worker, at.id))
        await attached(seen)
        assert (await at.ended()).done == 1
        gate.open()
        with pytest.raises(ExperimentLostError, match=r"\(attempt 1\) ended before the worker attached to it: it has "):
            await late
    assert await lines(target) == [(1, 1, 1, None)]
    assert await audit(target) == {"done": 1, "created": 2}


Take = Callable[[Running, Experimenter, Target], Awaitable[object]]


async def reset(at: Running, other: Experimenter, _: Target) -> None:
    await other.reset_experiments("running", ids=[1])


async def paused(at: Running, other: Experimenter, _: Target) -> None:
    await at.ended(ExperimentStatus.PAUSED)


async def returned_error(at: Running, other: Experimenter, _: Target) -> None:
    await at.ended(ExperimentStatus.ERROR)


async def released(at: Running, other: Experimenter, _: Target) -> None:
    await other.release([1])


async def dropped(at: Running, other: Experimenter, _: Target) -> None:
    await other.delete_table()


async def taken_over(at: Running, other: Experimenter, target: Target) -> None:
    await change(target, 'UPDATE "experiments" SET "_worker" = 12345, "_attempt" = "_attempt" + 1 WHERE "ID" = 1')


LOSSES = [
    pytest.param(reset, "it is unknown", id="reset"),
    pytest.param(paused, "it is paused", id="paused"),
    pytest.param(returned_error, r"finished \(error\)", id="error"),
    pytest.param(released, "it was put back", id="released"),
    pytest.param(dropped, "it is unknown", id="dropped"),
    pytest.param(taken_over, "attempt 1 is over, and attempt 2 runs now", id="taken over"),
]


@pytest.mark.parametrize(("take", "words"), LOSSES)
async def test_a_silent_async_worker_is_cancelled_when_its_experiment_is_lost(
    make: Make, target: Target, shared: Shared, take: Take, words: str
) -> None:
    seen, other = shared.seen(), make(**STUDY)

    async def silent(results: ResultProcessor) -> None:
        seen.append("attached")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async with running(make(**STUDY), shared) as at:
        silently = asyncio.create_task(other.attach(silent, at.id))
        await attached(seen)
        await take(at, other, target)
        with pytest.raises(ExperimentLostError, match=words):
            await asyncio.wait_for(silently, 30)
        assert seen == ["attached", "cancelled"]


@pytest.mark.parametrize(("take", "words"), [loss for loss in LOSSES if loss.id != "released"])
async def test_a_plain_worker_should_stop_when_its_experiment_is_lost_and_attach_raises_at_its_end(
    make: Make, target: Target, shared: Shared, take: Take, words: str
) -> None:
    seen, other = shared.seen(), make(**STUDY)
    async with running(make(**STUDY), shared) as at:
        listens = asyncio.create_task(other.attach(listening("def", seen), at.id))
        await attached(seen)
        await take(at, other, target)
        with pytest.raises(ExperimentLostError, match=words):
            await asyncio.wait_for(listens, 30)


async def test_a_plain_worker_hears_of_the_loss_from_its_next_call_and_again_at_the_end(
    make: Make, target: Target, shared: Shared
) -> None:
    seen, gate = shared.seen(), shared.gate()

    def worker(results: SyncResultProcessor) -> str:
        seen.append("attached")
        gate.wait()
        calls: list[Callable[[], None]] = [
            functools.partial(results.process_results, {"result": 99}),
            functools.partial(results.process_logs, {"steps": {"step": 99}}),
            functools.partial(results.heartbeat, 1.0),
            results.flush,
        ]
        for call in calls:
            with pytest.raises(ExperimentLostError, match="no longer runs here"):
                call()
            seen.append("refused")
        return "as if nothing had happened"

    async with running(make(**SLOW), shared) as at:
        works = asyncio.create_task(at.experimenter.attach(worker, at.id))
        await attached(seen)
        await at.ended()
        gate.open()
        with pytest.raises(ExperimentLostError, match=r"has finished \(done\)"):
            await works
    assert seen == ["attached", *["refused"] * 4]
    assert await lines(target) == []
    assert await sql(target, 'SELECT "result", "_progress" FROM "experiments" WHERE "ID" = 1') == [(None, None)]


async def test_an_exception_of_its_own_goes_before_the_loss(make: Make, shared: Shared) -> None:
    seen, gate = shared.seen(), shared.gate()

    async def worker(_: ResultProcessor) -> None:
        seen.append("attached")
        await gate.passed()
        raise Custom("of its own")

    async with running(make(**SLOW), shared) as at:
        works = asyncio.create_task(at.experimenter.attach(worker, at.id))
        await attached(seen)
        await at.ended()
        gate.open()
        with pytest.raises(Custom):
            await works


async def test_an_async_worker_that_swallows_its_cancellation_is_left_alone_after_grace(
    make: Make, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    seen, gate = shared.seen(), shared.gate()

    async def stubborn(_: ResultProcessor) -> None:
        seen.append("attached")
        while not gate.is_open:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        seen.append("ended")

    execution = STUDY["execution"] | {"grace": 0.1}
    async with running(make(**(STUDY | {"execution": execution})), shared) as at:
        works = asyncio.create_task(at.experimenter.attach(stubborn, at.id))
        await attached(seen)
        await at.ended()
        with pytest.raises(ExperimentLostError, match="has finished"):
            await asyncio.wait_for(works, 30)
        assert "swallowed its cancellation" in caplog.text
        gate.open()
        await eventually(lambda: "ended" in seen)


# ----------------------------------------------------------------------------------------- stopping, cancelling


@pytest.mark.in_process_only(
    "a child that is to be cancelled is killed at once: its workers have no time to hear of it"
)
@pytest.mark.parametrize("ask", ["cancel", "release"])
@both_kinds
async def test_a_request_for_the_experiment_is_heard_of_in_an_attached_worker(
    make: Make, target: Target, shared: Shared, kind: str, ask: str
) -> None:
    async def main(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        began.open()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await gate.passed()  # it takes its time, so that its worker can end before

    seen, began, gate = shared.seen(), shared.gate(), shared.gate()
    experimenter, other = make(**STUDY), make(**STUDY)
    await experimenter.fill_table_from_config()
    call = asyncio.create_task(experimenter.execute(main, experiment_ids=[1]))
    await began.passed()
    listens = asyncio.create_task(other.attach(listening(kind, seen, log=True), 1))
    await attached(seen)
    assert await getattr(other, ask)([1]) == [1]
    assert await asyncio.wait_for(listens, 30) == "stopped"
    gate.open()
    assert (await call).stopped_by is None
    assert await lines(target) == [(1, 1, 0, None)]


@pytest.mark.parametrize("ask", ["stop the worker", "stop the attached one", "migrate"])
@both_kinds
async def test_that_it_should_stop_is_heard_of_in_an_attached_worker(
    make: Make, target: Target, shared: Shared, kind: str, ask: str
) -> None:
    seen, other = shared.seen(), make(**STUDY)
    async with running(make(**STUDY), shared) as at:
        listens = asyncio.create_task(other.attach(listening(kind, seen, log=True), at.id))
        await attached(seen)
        ids = {info.role: info.id for info in await other.workers()}
        match ask:
            case "stop the worker":
                assert await other.stop([ids["worker"]]) == [ids["worker"]]
            case "stop the attached one":
                assert await other.stop([ids["attached"]]) == [ids["attached"]]
            case "migrate":
                wider = numbers(3) | {"more": {"type": "INT", "values": [1], "default": 1}}
                await make(keyfields=wider).migrate()
        assert await asyncio.wait_for(listens, 30) == "stopped"
        assert (await at.ended()).done == 1
    assert await lines(target) == [(1, 1, 0, None)]


@pytest.mark.asyncio_only("a blocking call cannot be cancelled")
async def test_cancelling_attach_cancels_an_async_worker_and_keeps_what_it_sent(
    make: Make, target: Target, shared: Shared
) -> None:
    seen = shared.seen()

    async def worker(results: ResultProcessor) -> None:
        await results.process_logs({"steps": {"step": 1}})
        seen.append("attached")
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("ended")

    async with running(make(**SLOW), shared) as at:
        await cancelled(asyncio.create_task(at.experimenter.attach(worker, at.id)), seen)
        assert seen == ["attached", "ended"]
        assert await lines(target) == [(1, 1, 1, None)]
        assert await attached_rows(target) == [(1, True)]
        assert not at.experimenter._attachments


@pytest.mark.asyncio_only("a blocking call cannot be cancelled")
async def test_cancelling_attach_stops_waiting_for_a_plain_worker(
    make: Make, target: Target, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    seen, gate = shared.seen(), shared.gate()

    def worker(results: SyncResultProcessor) -> None:
        results.process_logs({"steps": {"step": 1}})
        seen.append("attached")
        gate.wait()
        seen.append(results.should_stop)
        try:
            results.process_logs({"steps": {"step": 2}})
        except ExperimentLostError:
            seen.append("refused")

    async with running(make(**SLOW), shared) as at:
        await cancelled(asyncio.create_task(at.experimenter.attach(worker, at.id)), seen)
        assert "runs in a thread, which cannot be ended" in caplog.text
        gate.open()
        await eventually(lambda: "refused" in seen)
    assert seen == ["attached", True, "refused"]
    assert await lines(target) == [(1, 1, 1, None)]


@pytest.mark.asyncio_only("a blocking call cannot be cancelled")
@both_kinds
async def test_cancelling_at_any_moment_leaves_nothing_behind(
    make: Make, target: Target, kind: str, shared: Shared
) -> None:
    async with running(make(**SLOW), shared) as at:
        took = time.monotonic()
        await at.experimenter.attach(REPORTS[kind], at.id)
        took = time.monotonic() - took
        for moment in range(15):
            works = asyncio.create_task(at.experimenter.attach(REPORTS[kind], at.id))
            await asyncio.sleep(took * moment / 14)
            works.cancel()
            await asyncio.wait([works])
            assert not at.experimenter._attachments
        assert all(stopped for _, stopped in await attached_rows(target))
        assert (await at.ended()).done == 1


@both_kinds
async def test_closing_the_experimenter_ends_what_is_attached(
    make: Make, target: Target, shared: Shared, kind: str
) -> None:
    seen, gate, other = shared.seen(), shared.gate(), make(**SLOW)

    def plain(results: SyncResultProcessor) -> None:
        results.process_logs({"steps": {"step": 1}})
        seen.append("attached")
        gate.wait()
        results.process_logs({"steps": {"step": 2}})

    async def coroutine(results: ResultProcessor) -> None:
        await results.process_logs({"steps": {"step": 1}})
        seen.append("attached")
        await asyncio.Event().wait()

    async with running(make(**SLOW), shared) as at:
        function: Callable[..., Any] = plain if kind == "def" else coroutine
        works = asyncio.create_task(other.attach(function, at.id))
        await attached(seen)
        await other.aclose()
        assert await lines(target) == [(1, 1, 1, None)]
        assert await attached_rows(target) == [(1, True)]
        gate.open()
        with pytest.raises(ExperimentLostError if kind == "def" else DatabaseConnectionError):
            await works
        assert await other.attach(REPORTS[kind], at.id) == "worker of 1 in 1"  # it opens anew


@pytest.mark.executes_nothing
@pytest.mark.parametrize("opened", [False, True])
async def test_closing_the_experimenter_ends_the_wait_for_an_experiment(
    make: Make, target: Target, opened: bool
) -> None:
    await make(**STUDY).fill_table_from_config()
    other = make(**STUDY)
    if opened:
        await other.counts()
    waiting = asyncio.create_task(other.attach(reports, 1, wait=60))
    await eventually(lambda: bool(other._attachments))
    await other.aclose()
    with pytest.raises(DatabaseConnectionError, match=CLOSED):
        await asyncio.wait_for(waiting, 30)
    assert await attached_rows(target) == []


@pytest.mark.asyncio_only("the loop of a blocking call is not the caller's")
@both_kinds
async def test_an_event_loop_that_ends_around_it_leaves_nothing_behind(
    make: Make, target: Target, shared: Shared, kind: str
) -> None:
    seen, other = shared.seen(), make(**SLOW)

    async def forgets(experiment_id: ExperimentId) -> asyncio.Task[Any]:
        works = asyncio.create_task(other.attach(listening(kind, seen, log=True), experiment_id))
        await attached(seen)
        return works

    async with running(make(**SLOW), shared) as at:
        works = await asyncio.to_thread(lambda: asyncio.run(forgets(at.id)))
        assert works.cancelled()
        assert await attached_rows(target) == [(1, True)]
        assert await lines(target) == [(1, 1, 0, None)]
        assert await other.attach(REPORTS[kind], at.id) == "worker of 1 in 1"


async def test_an_attached_worker_may_close_its_experimenter(make: Make, target: Target, shared: Shared) -> None:
    async def worker(results: ResultProcessor) -> None:
        await results.process_logs({"steps": {"step": 1}})
        await other.aclose()

    other = make(**SLOW)
    async with running(make(**SLOW), shared) as at:
        with pytest.raises(DatabaseConnectionError, match=CLOSED):
            await asyncio.wait_for(other.attach(worker, at.id), 30)
    assert await lines(target) == [(1, 1, 1, None)]


# --------------------------------------------------------------------------------- its row, its connection


async def test_it_is_among_the_workers_while_it_lasts(make: Make, target: Target, shared: Shared) -> None:
    seen, gate = shared.seen(), shared.gate()
    async with running(make(**STUDY), shared) as at:
        works = asyncio.create_task(at.experimenter.attach(hanging("async", seen, gate), at.id))
        await attached(seen)
        infos = {info.role: info for info in await at.experimenter.workers()}
        assert set(infos) == {"worker", "attached"}
        mine = infos["attached"]
        assert (mine.experiment_id, mine.state, mine.running, mine.pid) == (1, "live", 0, os.getpid())
        assert (infos["worker"].experiment_id, infos["worker"].running) == (None, 1)

        async def beats() -> bool:
            [later] = [info for info in await at.experimenter.workers() if info.role == "attached"]
            return later.heartbeat > mine.heartbeat

        await eventually(beats)
        gate.open()
        assert await works == "logged"
        infos = {info.role: info for info in await at.experimenter.workers()}
        assert (infos["attached"].state, infos["worker"].state) == ("stopped", "live")


async def test_a_row_of_its_own_that_somebody_deleted_comes_again(make: Make, target: Target, shared: Shared) -> None:
    seen, gate = shared.seen(), shared.gate()
    async with running(make(**STUDY), shared) as at:
        works = asyncio.create_task(at.experimenter.attach(hanging("async", seen, gate), at.id))
        await attached(seen)
        await change(target, 'DELETE FROM "experiments_workers" WHERE "role" = \'attached\'')

        async def is_back() -> bool:
            return await attached_rows(target) == [(1, False)]

        await eventually(is_back)
        gate.open()
        assert await works == "logged"


async def test_several_in_one_process_are_independent(make: Make, target: Target, shared: Shared) -> None:
    seen, gate = shared.seen(), shared.gate()

    async def fails(_: ResultProcessor) -> None:
        raise Custom("alone")

    async with running(make(**STUDY), shared, experiment_ids=[1, 2], n_jobs=2) as at:
        await eventually(lambda: len(at.main.ids) == 2)
        first, second = sorted(ExperimentId(*each) for each in at.main.ids)
        both = [asyncio.create_task(at.experimenter.attach(hanging("async", seen, gate), each)) for each in (1, 2)]
        await attached(seen, 2)
        with pytest.raises(Custom):
            await at.experimenter.attach(fails, second)
        await at.experimenter.delete_experiments("running", ids=[1])
        with pytest.raises(ExperimentLostError, match="Experiment 1"):
            await both[0]
        assert not both[1].done()
        gate.open()
        assert await both[1] == "logged"
    assert (int(first), int(second)) == (1, 2)
    assert await lines(target) == [(2, 1, 99, None)]


@servers_only
async def test_each_has_one_connection_and_shares_that_of_an_idle_experimenter(
    make: Make, target: Target, server: Server, shared: Shared
) -> None:
    def sessions() -> int:
        return len(server.sessions(target.database))

    seen, gate = shared.seen(), shared.gate()
    async with running(make(**STUDY), shared) as at:
        await eventually(lambda: sessions() == 2)  # the worker's and its sign of life
        fresh, opened = make(**STUDY), make(**STUDY)
        await opened.counts()
        await eventually(lambda: sessions() == 3)
        expected = 3
        works = []
        for experimenter, more in ((fresh, 1), (fresh, 1), (opened, 0), (opened, 1), (at.experimenter, 1)):
            works.append(asyncio.create_task(experimenter.attach(hanging("async", seen, gate), at.id)))
            await attached(seen, len(works))
            expected += more
            await eventually(lambda: sessions() == expected)  # noqa: B023
        assert (await opened.counts())["running"] == 1
        gate.open()
        assert await asyncio.gather(*works) == ["logged"] * 5
        await eventually(lambda: sessions() == 3)
        assert (await opened.counts())["running"] == 1


async def take_all(server: Server, database: str, held: list[asyncpg.Connection[asyncpg.Record]]) -> None:
    """Connects until the server refuses."""
    there = server.target(database)
    while True:
        connection = await asyncpg.connect(
            host=there.host, port=there.port, user=there.user, password=there.password, database=database
        )
        held.append(connection)


@pytest.mark.parametrize("provider", ["postgresql"])
async def test_it_waits_for_a_connection_when_the_server_has_none_left(
    make: Make, target: Target, server: Server, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    seen, gate = shared.seen(), shared.gate()
    held: list[asyncpg.Connection[asyncpg.Record]] = []
    async with running(make(**SLOW), shared) as at:
        try:
            with pytest.raises(asyncpg.TooManyConnectionsError):
                await take_all(server, target.database, held)
            works = asyncio.create_task(make(**SLOW).attach(hanging("async", seen, gate), at.id))
            await eventually(lambda: "too many connections" in caplog.text)
            impatient = make(**(SLOW | {"execution": {"database_wait": 0}}))
            with pytest.raises(DatabaseConnectionError, match="too many connections"):
                await impatient.attach(reports, at.id)
        finally:
            for connection in held:
                await connection.close()
        await attached(seen)
        gate.open()
        assert await works == "logged"


# ----------------------------------------------------------------------------------------- outages, lost answers


@servers_only
@both_kinds
async def test_what_it_sends_is_held_while_the_database_is_away(
    make: Make, target: Target, server: Server, shared: Shared, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    seen, gate = shared.seen(), shared.gate()
    async with running(make(**STUDY), shared) as at:
        works = asyncio.create_task(make(**STUDY).attach(hanging(kind, seen, gate), at.id))
        await attached(seen)
        server.stop()
        try:
            gate.open()
            await eventually(lambda: "The database is away" in caplog.text)
            assert not works.done()
        finally:
            server.start()
        assert await works == "logged"
        assert (await at.ended()).done == 1
    assert await lines(target) == [(1, 1, 99, None)]


@servers_only
async def test_cancelling_it_while_the_database_is_away_ends_in_time(
    make: Make,
    server: Server,
    shared: Shared,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("asyncexp.attach.CLOSE_LIMIT_SECONDS", 0.3)
    seen, gate = shared.seen(), shared.gate()
    async with running(make(**SLOW), shared) as at:
        works = asyncio.create_task(make(**SLOW).attach(hanging("async", seen, gate), at.id))
        await attached(seen)
        server.stop()
        try:
            gate.open()
            await eventually(lambda: "The database is away" in caplog.text)  # what it sent waits to be committed
            works.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(works, 30)
        finally:
            server.start()


async def sends(results: ResultProcessor) -> str:
    await results.process_logs({"steps": {"step": 1}})
    await results.process_results({"result": 5})
    return "sent"


@servers_only
async def test_a_flush_whose_commit_was_not_answered_is_looked_up_and_not_repeated(
    make: Make, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Shared
) -> None:
    monkeypatch.setattr("asyncexp.writer.FLUSH_LIMIT_SECONDS", 1.0)
    async with Proxy(target) as proxy, running(make(**SLOW), shared) as at:
        (tmp_path / "other").mkdir()
        async with new_experimenter(tmp_path / "other", proxy.target, **SLOW) as other:

            async def worker(results: ResultProcessor) -> str:
                proxy.cut_after_commit()
                return await sends(results)

            assert await other.attach(worker, at.id) == "sent"
            assert proxy.fired.is_set()
    assert await lines(target) == [(1, 1, 1, None)]
    [flushes] = await sql(target, 'SELECT "last_flush" FROM "experiments_workers" WHERE "role" = \'attached\'')
    assert flushes[0] > 0


@servers_only
async def test_a_flush_that_landed_is_not_called_lost_because_the_main_function_ended_meanwhile(
    make: Make, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Shared
) -> None:
    monkeypatch.setattr("asyncexp.writer.FLUSH_LIMIT_SECONDS", 1.0)
    seen: list[str] = []
    async with Proxy(target) as proxy, running(make(**SLOW), shared) as at:
        (tmp_path / "other").mkdir()
        async with new_experimenter(tmp_path / "other", proxy.target, **SLOW) as other:

            async def worker(results: ResultProcessor) -> None:
                proxy.swallow_after_commit()
                seen.append(await sends(results))

            works = asyncio.create_task(other.attach(worker, at.id))
            await eventually(proxy.fired.is_set)
            assert (await at.ended()).done == 1
            proxy.resume()
            with pytest.raises(ExperimentLostError, match=r"has finished \(done\)"):
                await works
            assert seen == ["sent"]
    assert await lines(target) == [(1, 1, 1, None)]
    assert await sql(target, 'SELECT "result" FROM "experiments" WHERE "ID" = 1') == [(5.0,)]


@servers_only
async def test_a_refusal_that_was_not_heard_is_not_taken_for_a_flush_that_landed(
    make: Make, target: Target, tmp_path: Path, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncexp.writer.FLUSH_LIMIT_SECONDS", 1.0)
    seen, gate = shared.seen(), shared.gate()
    async with Proxy(target) as proxy, running(make(**SLOW), shared) as at:
        (tmp_path / "other").mkdir()
        async with new_experimenter(tmp_path / "other", proxy.target, **SLOW) as other:

            async def worker(results: ResultProcessor) -> None:
                seen.append("attached")
                await gate.passed()
                proxy.cut_after_commit()
                with pytest.raises(ExperimentLostError):
                    await sends(results)
                seen.append("refused")

            works = asyncio.create_task(other.attach(worker, at.id))
            await attached(seen)
            await at.ended()
            gate.open()
            with pytest.raises(ExperimentLostError):
                await works
            assert proxy.fired.is_set()
    assert seen == ["attached", "refused"]
    assert await lines(target) == []


@servers_only
async def test_cut_connections_lose_nothing_and_double_nothing(
    make: Make, target: Target, tmp_path: Path, shared: Shared
) -> None:
    async with Proxy(target) as proxy, running(make(**STUDY), shared) as at:
        (tmp_path / "other").mkdir()
        async with new_experimenter(tmp_path / "other", proxy.target, **STUDY) as other:

            async def worker(results: ResultProcessor) -> None:
                for step in range(60):
                    await results.process_logs({"steps": {"step": step}})
                    if step % 3 == 0:
                        await results.flush()
                    if step % 15 == 7:
                        proxy.cut()

            await other.attach(worker, at.id)
    assert [step for _, _, step, _ in await lines(target)] == list(range(60))


# --------------------------------------------------------------------------------------------------- many at once


async def test_64_attached_processes_log_at_once_and_nothing_is_lost(
    make: Make, target: Target, tmp_path: Path, request: pytest.FixtureRequest, shared: Shared
) -> None:
    count, calls = 64, 40
    async with running(make(**SLOW), shared) as at:
        given = [pickle.dumps(at.id).hex(), str(count), str(calls)]
        async with child("attach_many", tmp_path, target, *given, **SLOW) as workers:
            assert await workers.told() == "attached"
            if target.provider != "sqlite":
                server: Server = request.getfixturevalue("server")
                assert len(server.sessions(target.database)) == 2 + count
            infos = [info for info in await at.experimenter.workers() if info.role == "attached"]
            assert [(info.experiment_id, info.state) for info in infos] == [(1, "live")] * count
            await workers.tell()
            assert await workers.told() == [0] * count
        assert (await at.ended()).done == 1
    assert await attached_rows(target) == [(1, True)] * count
    written: dict[str, list[int]] = {str(number): [] for number in range(count)}
    for experiment, attempt, step, note in await lines(target):
        assert (experiment, attempt) == (1, 1)
        written[note].append(step)
    assert all(steps == list(range(10 * calls)) for steps in written.values())
    assert await audit(target) == {"done": 1, "created": 2}
