"""Running functions: what their ends mean, tries again, limits in time and in errors, and the summary."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from asyncexp import Experimenter, ExperimentStatus, ResultProcessor, Summary, SyncResultProcessor
from asyncexp.db.base import Target
from asyncexp.errors import ExperimentLostError
from tests.contract import functions
from tests.contract.conftest import Make
from tests.contract.functions import ENDS, AsObject, Flaky, Unprintable, done, fail_alike, mixed, scaled
from tests.contract.modes import Mode
from tests.contract.shared import Shared
from tests.contract.sql import fetch as sql
from tests.contract.support import Keys, audit, eventually, numbers
from tests.studies import experimenter as new_experimenter

LOGGER = "asyncexp-tests"


async def filled(make: Make, count: int, **study: Any) -> Experimenter:
    experimenter = make(keyfields=numbers(count), **study)
    await experimenter.fill_table_from_config()
    return experimenter


async def errors(target: Target) -> list[str]:
    return [text for (text,) in await sql(target, 'SELECT "error" FROM "experiments" ORDER BY "ID"')]


# ------------------------------------------------------------------------------------------------ the ends


def check_mixed(summary: Summary) -> None:
    ends = (summary.done, summary.error, summary.paused, summary.released, summary.lost, summary.retried)
    assert ends == (2, 2, 1, 1, 0, 0)
    assert (summary.running, summary.stopped_by) == (0, None)
    assert 0 < summary.seconds < 60
    assert sorted(summary.errors) == ["ValueError: number five", "returned ERROR"]


async def test_what_a_function_returns_or_raises_is_the_state_of_its_row(make: Make, target: Target) -> None:
    check_mixed(await (await filled(make, 6)).execute(mixed))
    states = [status for (status,) in await sql(target, 'SELECT "status" FROM "experiments" ORDER BY "ID"')]
    assert states == ["done", "done", "error", "paused", "created", "error"]
    assert (await errors(target))[:5] == [None] * 5
    text = (await errors(target))[5]
    assert text.startswith("Traceback (most recent call last):")
    assert text.endswith("ValueError: number five\n")
    assert functions.__file__ in text
    await audit(target)


async def test_plain_functions_end_alike(make: Make, target: Target) -> None:
    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> ExperimentStatus | None:
        if keys["number"] == 5:
            raise ValueError("number five")
        return ENDS[keys["number"]]

    check_mixed(await (await filled(make, 6)).execute(run))
    await audit(target)


RAISED: list[tuple[Callable[[], BaseException], str]] = [
    (lambda: SystemExit(3), "SystemExit: 3"),
    (lambda: KeyboardInterrupt(), "KeyboardInterrupt"),
    (lambda: asyncio.CancelledError("by myself"), "CancelledError"),
    (lambda: GeneratorExit(), "GeneratorExit"),
    (lambda: BaseExceptionGroup("two", [SystemExit(1), ValueError("x")]), "ValueError: x"),
    (lambda: Unprintable(), "Unprintable"),
    (lambda: ValueError("nul \0 and surrogate \ud800"), r"nul \x00 and surrogate \ud800"),
    (lambda: ValueError("🐍" * 100_000), "🐍" * 100_000),
    (lambda: ExperimentLostError("not by asyncexp"), "ExperimentLostError: not by asyncexp"),
    (lambda: TimeoutError("its own"), "TimeoutError: its own"),
]


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_whatever_is_raised_ends_its_row_as_error_and_the_others_go_on(
    make: Make, target: Target, asynchronous: bool
) -> None:
    def fail(keys: Keys, results: object, _: Keys) -> None:
        if keys["number"] < len(RAISED):
            raise RAISED[keys["number"]][0]()

    async def fail_later(keys: Keys, results: object, custom: Keys) -> None:
        fail(keys, results, custom)

    experimenter = await filled(make, len(RAISED) + 5)
    summary = await experimenter.execute(fail_later if asynchronous else fail, n_jobs=3)
    assert (summary.error, summary.done, summary.stopped_by) == (len(RAISED), 5, None)
    for text, (_, words) in zip(await errors(target), RAISED, strict=False):
        assert words in text
    await audit(target)


async def test_sys_exit_ends_the_row_and_not_the_worker(make: Make, target: Target) -> None:
    def leave(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        sys.exit("enough")

    assert (await (await filled(make, 2)).execute(leave)).error == 2
    assert all(text.endswith("SystemExit: enough\n") for text in await errors(target))


@pytest.mark.parametrize("value", [5, True, "finished", ExperimentStatus.RUNNING, ExperimentStatus.ALL, {}, done])
async def test_a_return_value_of_another_kind_is_an_error_saying_so(make: Make, target: Target, value: Any) -> None:
    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> Any:
        await results.process_results({"result": 1})
        return value

    assert (await (await filled(make, 1)).execute(run)).error == 1
    [text] = await errors(target)
    assert "returned" in text
    assert type(value).__name__ in text
    assert "ExperimentStatus" in text
    assert await sql(target, 'SELECT "result" FROM "experiments"') == [(1.0,)]


async def test_a_plain_function_that_returns_a_coroutine_is_told_so(make: Make, target: Target) -> None:
    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> Any:
        return done(keys, results, {})  # type: ignore[arg-type]

    assert (await (await filled(make, 1)).execute(run)).error == 1
    assert "coroutine" in (await errors(target))[0]


@pytest.mark.parametrize("function", [AsObject(), AsObject().method, partial(scaled, 2), partial(AsObject())])
async def test_whatever_gives_a_coroutine_runs_as_a_task(make: Make, target: Target, function: Any) -> None:
    assert (await (await filled(make, 2)).execute(function)).done == 2
    assert await sql(target, 'SELECT "result" FROM "experiments" ORDER BY "ID"') == [(0.0,), (1.0,)]


async def test_functions_get_keyfields_and_custom_fields_of_their_own(make: Make, shared: Shared) -> None:
    experimenter = await filled(make, 5, custom={"Path": "/data", "list": [1]})
    seen = shared.seen()

    async def run(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        seen.append([keys, custom])
        custom["list"].append(2)
        keys.clear()

    assert (await experimenter.execute(run, n_jobs=1)).done == 5
    assert seen == [[{"number": number}, {"Path": "/data", "list": [1]}] for number in range(5)]


# ------------------------------------------------------------------------------------------------ tries again


async def test_a_failure_is_tried_again_within_the_same_call(make: Make, target: Target) -> None:
    summary = await (await filled(make, 10)).execute(Flaky(2), retries=2)
    assert (summary.done, summary.error, summary.retried) == (10, 0, 20)
    assert await audit(target) == {"done": 10}
    assert await sql(target, 'SELECT DISTINCT "_attempt", "error" FROM "experiments"') == [(3, None)]


async def test_with_its_tries_used_up_a_row_ends_as_error(make: Make, target: Target) -> None:
    summary = await (await filled(make, 3)).execute(Flaky(99), retries=2)
    assert (summary.done, summary.error, summary.retried) == (0, 3, 6)
    assert all(text.endswith("OSError: shaky\n") for text in await errors(target))
    outcomes = 'SELECT "outcome", COUNT(*) FROM "experiments_attempts" GROUP BY "outcome" ORDER BY "outcome"'
    assert await sql(target, outcomes) == [("error", 3), ("retried", 6)]
    await audit(target)


async def test_tries_count_across_calls_and_retry_errors_starts_the_count_anew(make: Make, target: Target) -> None:
    experimenter = await filled(make, 1)
    once = partial(experimenter.execute, Flaky(99), max_experiments=1, retries=1)
    assert ((await once()).retried, (await once()).error) == (1, 1)
    assert await experimenter.retry_errors() == 1
    assert ((await once()).retried, (await once()).error) == (1, 1)
    assert await audit(target) == {"error": 1}
    assert await sql(target, 'SELECT "_attempt" FROM "experiments"') == [(4,)]


async def test_a_try_again_waits_its_delay_doubled_each_time(make: Make, shared: Shared) -> None:
    flaky = Flaky(2, times=shared.seen())
    await (await filled(make, 1)).execute(flaky, retries=2, retry_delay=0.2)
    assert flaky.times is not None
    first, second = (later - earlier for earlier, later in pairwise(flaky.times))
    assert first >= 0.2
    assert second >= 0.4


@pytest.mark.parametrize(("retry_on", "tried_again"), [(OSError, 1), ("builtins.OSError", 1), ([ValueError], 0)])
async def test_retry_on_names_what_is_tried_again_subclasses_included(
    make: Make, retry_on: Any, tried_again: int
) -> None:
    flaky = Flaky(1, ConnectionResetError("shaky"))
    summary = await (await filled(make, 1)).execute(flaky, retries=3, retry_on=retry_on)
    assert (summary.retried, summary.done, summary.error) == (tried_again, tried_again, 1 - tried_again)


async def test_a_returned_error_is_not_tried_again(make: Make) -> None:
    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> ExperimentStatus:
        return ExperimentStatus.ERROR

    summary = await (await filled(make, 2)).execute(run, retries=3)
    assert (summary.error, summary.retried) == (2, 0)


# ------------------------------------------------------------------------------------------------ max_errors


@pytest.mark.asyncio_only("the drop-in goes on, as PyExperimenter does")
async def test_twenty_first_failures_alike_stop_the_call(
    make: Make, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    summary = await (await filled(make, 60)).execute(fail_alike, n_jobs=1)
    assert (summary.stopped_by, summary.error) == ("max_errors", 20)
    assert await audit(target) == {"error": 20, "created": 40}
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "ValueError" in line
    assert Path(functions.__file__).name in line


async def test_what_runs_when_the_errors_are_too_many_ends_in_peace(make: Make, target: Target, shared: Shared) -> None:
    release, stopped = shared.gate(), shared.gate()

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        if keys["number"] == 0:
            await release.passed()
            assert not results.should_stop
        else:
            raise ValueError("typo")

    experimenter = await filled(make, 40)

    def watch(summary: Summary) -> None:
        if summary.stopped_by:
            stopped.open()

    call = asyncio.create_task(experimenter.execute(run, n_jobs=2, grace=0.01, max_errors=3, progress=watch))
    await stopped.passed()
    release.open()
    summary = await call
    assert (summary.done, summary.error) == (1, 3)
    assert await audit(target) == {"done": 1, "error": 3, "created": 36}


async def test_twenty_first_failures_of_different_kinds_stop_nothing(make: Make) -> None:
    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        if keys["number"] % 2:
            raise ValueError("odd")
        raise KeyError("even")

    summary = await (await filled(make, 60)).execute(run)
    assert (summary.error, summary.stopped_by) == (60, None)


async def test_one_success_among_the_first_twenty_and_the_call_goes_on(make: Make) -> None:
    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        if keys["number"] != 10:
            raise ValueError("typo")

    summary = await (await filled(make, 60)).execute(run, n_jobs=1)
    assert (summary.error, summary.done, summary.stopped_by) == (59, 1, None)


async def test_max_errors_as_a_number_stops_after_so_many(make: Make, target: Target) -> None:
    summary = await (await filled(make, 30)).execute(fail_alike, max_errors=3, n_jobs=1)
    assert (summary.error, summary.stopped_by) == (3, "max_errors")
    assert await audit(target) == {"error": 3, "created": 27}


async def test_max_errors_of_minus_one_never_stops(make: Make) -> None:
    summary = await (await filled(make, 60)).execute(fail_alike, max_errors=-1)
    assert (summary.error, summary.stopped_by) == (60, None)


# ------------------------------------------------------------------------------------------------ time limits


async def test_an_experiment_beyond_its_timeout_is_cancelled_or_killed_and_ends_as_error(
    make: Make, target: Target, shared: Shared, mode: Mode
) -> None:
    cancelled = shared.seen()

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        if keys["number"] == 0:
            return
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(keys["number"])

    summary = await (await filled(make, 3)).execute(run, timeout=1)
    assert (summary.done, summary.error) == (1, 2)
    assert sorted(cancelled) == ([] if mode == "process" else [1, 2])  # a child is killed
    assert all("timeout of 1 s" in text for text in (await errors(target))[1:])
    await audit(target)


async def test_a_timeout_counts_as_a_try(make: Make) -> None:
    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        if results.attempt == 1:
            await asyncio.Event().wait()

    summary = await (await filled(make, 1)).execute(run, timeout=1, retries=1, retry_on=[TimeoutError])
    assert (summary.retried, summary.done) == (1, 1)


@contextmanager
def warned(caplog: pytest.LogCaptureFixture, words: str) -> Iterator[None]:
    yield
    assert [record for record in caplog.records if words in record.getMessage()], caplog.text


@pytest.mark.in_process_only("a thread cannot be ended")
async def test_a_thread_beyond_its_timeout_loses_its_row_and_lives_on(
    make: Make, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    release, refused = threading.Event(), threading.Event()

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        assert release.wait(30)
        with pytest.raises(ExperimentLostError):
            results.process_results({"result": 1})
        with pytest.raises(ExperimentLostError):
            results.process_logs({"steps": {"step": 1}})
        refused.set()

    experimenter = await filled(make, 1)
    with warned(caplog, "lives on"):
        summary = await experimenter.execute(run, timeout=0.2)
    assert summary.error == 1
    release.set()
    await eventually(refused.is_set)
    assert "timeout of 0.2 s" in (await errors(target))[0]
    assert await sql(target, 'SELECT "result" FROM "experiments"') == [(None,)]
    assert await sql(target, 'SELECT * FROM "experiments__steps"') == []
    await audit(target)


@pytest.mark.in_process_only("a child is killed")
async def test_a_task_that_swallows_its_cancellation_is_left_alone_after_grace(
    make: Make, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    release, refused = asyncio.Event(), asyncio.Event()

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        if keys["number"] > 0:
            return
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await release.wait()
        with pytest.raises(ExperimentLostError):
            await results.process_results({"result": 1})
        refused.set()

    experimenter = await filled(make, 3)
    with warned(caplog, "swallowed its cancellation"):
        summary = await experimenter.execute(run, timeout=0.1, grace=0.2, n_jobs=1)
    assert (summary.error, summary.done) == (1, 2)
    release.set()
    await asyncio.wait_for(refused.wait(), 30)
    assert "timeout of 0.1 s" in (await errors(target))[0]
    await audit(target)


async def test_a_function_that_answers_its_timeout_by_returning_still_ends_as_error(make: Make) -> None:
    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    assert (await (await filled(make, 1)).execute(run, timeout=0.1)).error == 1


async def test_stall_timeout_runs_from_the_last_call(make: Make, target: Target) -> None:
    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        if keys["number"] == 0:
            await asyncio.Event().wait()
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            await results.heartbeat(0.5)
            await asyncio.sleep(0.05)

    summary = await (await filled(make, 2)).execute(run, stall_timeout=1)
    assert (summary.done, summary.error) == (1, 1)
    assert "stall_timeout of 1 s" in (await errors(target))[0]


# ------------------------------------------------------------------------------------------------ many at once


@pytest.mark.in_process_only("2,000 tasks")
async def test_two_thousand_experiments_at_once_in_one_worker(make: Make, target: Target) -> None:
    experimenter = await filled(make, 2_000)
    everyone = asyncio.Event()
    waiting = 0

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 2_000:
            everyone.set()
        await everyone.wait()
        await results.process_results({"result": keys["number"] * 2})

    summary = await experimenter.execute(run, n_jobs=2_000)
    assert summary.done == 2_000
    wrong = 'SELECT COUNT(*) FROM "experiments" WHERE "result" <> 2 * "number" OR "result" IS NULL OR "_attempt" <> 1'
    assert await sql(target, wrong) == [(0,)]
    assert await audit(target) == {"done": 2_000}


async def test_two_calls_at_once_share_the_rows_and_one_worker(make: Make, target: Target, shared: Shared) -> None:
    experimenter = await filled(make, 60)
    ran = shared.seen()

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        ran.append(keys["number"])
        await done(keys, results, {})

    summaries = await asyncio.gather(*(experimenter.execute(run, n_jobs=4) for _ in range(2)))
    assert sum(summary.done for summary in summaries) == 60
    assert sorted(ran) == list(range(60))
    assert await sql(target, 'SELECT COUNT(*) FROM "experiments_workers"') == [(1,)]
    assert await sql(target, 'SELECT COUNT(DISTINCT "_worker") FROM "experiments"') == [(1,)]
    await audit(target)


async def test_progress_gets_the_running_summary(make: Make) -> None:
    told: list[Summary] = []
    await (await filled(make, 20)).execute(done, n_jobs=3, progress=told.append)
    dones = [summary.done for summary in told]
    assert dones == sorted(dones)
    assert set(dones) >= set(range(1, 21))
    assert all(summary.running <= 3 for summary in told)
    assert (told[-1].left, told[-1].running) == (0, 0)
    lefts = [summary.left for summary in told if summary.left is not None]
    assert lefts == sorted(lefts, reverse=True)


async def test_the_last_line_of_progress_says_what_is_left_then(
    make: Make, shared: Shared, capsys: pytest.CaptureFixture[str]
) -> None:
    experimenter, other = (make(keyfields=numbers(6)) for _ in range(2))
    await experimenter.fill_table_from_config()
    began, gate = shared.seen(), shared.gate()
    held = functions.Held(began, gate, shared.seen())
    call = asyncio.create_task(experimenter.execute(held, n_jobs=1, progress=True))
    await eventually(lambda: len(began) == 1)
    await experimenter.stop()
    assert await other.delete_experiments(ids=[4, 5, 6]) == 3
    gate.open()
    summary = await call
    assert (summary.done, summary.left) == (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("progress:")]
    assert lines[-1].startswith("progress: 1 done, 0 failed, 2 left, ")


async def test_a_progress_function_that_fails_is_heard_of_and_leaves_nothing_running(
    make: Make, target: Target
) -> None:
    def fail(_: Summary) -> None:
        raise ValueError("no progress")

    experimenter = await filled(make, 10)
    with pytest.raises(ValueError, match="no progress"):
        await experimenter.execute(done, progress=fail)
    await audit(target)


# ------------------------------------------------------------------------------------------- one loop after another


def test_one_object_on_one_event_loop_after_another(target: Target, tmp_path: Path) -> None:
    experimenter = new_experimenter(tmp_path, target, keyfields=numbers(8))

    async def last() -> Summary:
        async with experimenter:
            return await experimenter.execute(done)

    assert asyncio.run(experimenter.fill_table_from_config()).added == 8
    assert asyncio.run(experimenter.execute(done, max_experiments=3)).done == 3
    assert asyncio.run(last()).done == 5
    assert asyncio.run(audit(target)) == {"done": 8}
    workers = asyncio.run(sql(target, 'SELECT "stopped" FROM "experiments_workers"'))
    assert len(workers) == 2
    assert all(stopped is not None for (stopped,) in workers)
