"""The blocking class: 1.4.2's names in their order, the asynchronous class's promises, and from where it is called."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from asyncexp import Experimenter, SyncResultProcessor, sync
from asyncexp.db.base import Target
from asyncexp.errors import (
    DatabaseConnectionError,
    DatabaseError,
    InvalidConfigError,
    NoPausedExperimentsException,
    ParameterCombinationError,
)
from asyncexp.sync import ExperimentStatus, PyExperimenter, ResultProcessor
from tests.contract.shared import Shared, until
from tests.contract.support import numbers
from tests.studies import write_configuration

Keys = dict[str, Any]
Make = Callable[..., PyExperimenter]
PROJECT = Path(__file__).resolve().parents[2]

POSITIONAL: dict[str, list[str]] = {
    "__init__": [
        "experiment_configuration_file_path",
        "database_credential_file_path",
        "use_ssh_tunnel",
        "table_name",
        "database_name",
        "use_codecarbon",
        "name",
        "logger_name",
        "log_level",
        "log_file",
    ],
    "close_ssh": [],
    "create_table": ["create_database"],
    "fill_table_from_config": [],
    "fill_table_from_combination": ["fixed_parameter_combinations", "parameters"],
    "fill_table_with_rows": ["rows"],
    "execute": ["experiment_function", "random_order", "n_jobs", "max_experiments"],
    "add_experiment_and_execute": ["keyfield_values", "experiment_function"],
    "unpause_experiment": ["experiment_id", "experiment_function"],
    "attach": ["experiment_function", "experiment_id"],
    "reset_experiments": [],
    "delete_table": [],
    "get_table": [],
    "get_logtable": ["logtable_name"],
    "get_codecarbon_table": [],
}
"""The methods of PyExperimenter 1.4.2 and their parameters, in its order."""
OTHER_SPELLING = {
    ("add_experiment_and_execute", "keyfield_values"): "keyfields",
    ("attach", "experiment_function"): "worker_function",
    ("get_logtable", "logtable_name"): "name",
}
"""What 1.4.2 calls otherwise: theirs is a keyword, ours stands at the place."""
OWN = {"execute", "add_experiment_and_execute", "unpause_experiment", "attach", "get_logtable", "snapshot"}
"""Methods that the blocking class has to write out; all others it takes over."""


def public(cls: type) -> set[str]:
    return {name for name, found in vars(cls).items() if callable(found) and not name.startswith("_")}


def parameters(method: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(list(inspect.signature(method).parameters.items())[1:])


@pytest.fixture
def make(sqlite_target: Target, tmp_path: Path) -> Iterator[Make]:
    """Makes blocking experimenters on one table; each is closed after the test."""
    made: list[PyExperimenter] = []

    def new(count: int = 3, **study: Any) -> PyExperimenter:
        path = write_configuration(tmp_path, sqlite_target, keyfields=numbers(count), **{"n_jobs": 1, **study})
        made.append(PyExperimenter(path, logger_name="asyncexp-tests", log_file=None))
        return made[-1]

    yield new
    for each in made:
        each.close()


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    return Shared(tmp_path)


def rows(target: Target, text: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(target.database)) as connection:
        return connection.execute(text).fetchall()


def soon(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "not within 30 s"
        time.sleep(0.005)


def nothing(keys: Keys, results: ResultProcessor, custom: Keys) -> None: ...


def pauses(keys: Keys, results: ResultProcessor, custom: Keys) -> ExperimentStatus:
    return ExperimentStatus.PAUSED


def fails(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
    raise ValueError("as ever")


# ------------------------------------------------------------------------------------------- names


def test_the_names_to_import_are_those_of_1_4_2_and_tell_editors_the_truth() -> None:
    assert sync.__all__ == ["ExperimentStatus", "PyExperimenter", "ResultProcessor"]
    assert ResultProcessor is SyncResultProcessor


@pytest.mark.parametrize("name", POSITIONAL)
def test_a_method_takes_what_1_4_2_takes_in_its_order(name: str) -> None:
    theirs = POSITIONAL[name]
    ours = parameters(getattr(PyExperimenter, name))
    assert set(theirs) <= set(ours)
    positional = [key for key, each in ours.items() if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional[: len(theirs)] == [OTHER_SPELLING.get((name, each), each) for each in theirs]


def test_reset_takes_any_number_of_states() -> None:
    [first, *_] = parameters(PyExperimenter.reset_experiments).values()
    assert first.kind is inspect.Parameter.VAR_POSITIONAL


def test_every_method_of_the_asynchronous_class_is_there() -> None:
    assert public(Experimenter) - {"aclose"} == public(PyExperimenter) - {"close"}


@pytest.mark.parametrize("name", sorted(public(Experimenter) - OWN - {"aclose", "close_ssh"}))
def test_a_method_taken_over_has_the_signature_and_the_words_of_the_other_and_blocks(name: str) -> None:
    ours, theirs = getattr(PyExperimenter, name), getattr(Experimenter, name)
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert inspect.getdoc(ours) == inspect.getdoc(theirs)
    assert not inspect.iscoroutinefunction(ours)
    assert (ours.__module__, ours.__qualname__) == ("asyncexp.sync", f"PyExperimenter.{name}")


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_method_written_out_takes_every_keyword_of_the_other_with_its_default(name: str) -> None:
    ours, theirs = parameters(getattr(PyExperimenter, name)), parameters(getattr(Experimenter, name))
    assert set(theirs) <= set(ours)
    optional = {key: each.default for key, each in theirs.items() if each.default is not inspect.Parameter.empty}
    assert optional == {key: ours[key].default for key in optional}
    doc = inspect.getdoc(getattr(PyExperimenter, name)) or ""
    assert "Returns:" in doc or name in ("get_logtable", "snapshot")


def test_the_constructor_takes_every_parameter_of_the_other_with_its_default() -> None:
    ours, theirs = parameters(PyExperimenter.__init__), parameters(Experimenter.__init__)
    assert {key: each.default for key, each in ours.items()} == {key: each.default for key, each in theirs.items()}


@pytest.mark.slow
def test_types_are_what_a_caller_gets() -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "tests/unit/typed_sync.py"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


# ------------------------------------------------------------------------------------ as 1.4.2 has it


def test_a_program_in_the_positional_words_of_1_4_2(make: Make, sqlite_target: Target, tmp_path: Path) -> None:
    path = make().configuration.path
    one = PyExperimenter(path, None, False, "other", sqlite_target.database, False, "me", "asyncexp-tests", 20, None)
    one.create_table(False)
    one.fill_table_from_config()
    one.fill_table_from_combination([], {"number": [7]})
    one.fill_table_with_rows([{"number": 8}])
    one.execute(nothing, True, 1, 3)
    assert one.add_experiment_and_execute({"number": 9}, pauses) is ExperimentStatus.PAUSED
    assert one.unpause_experiment(6, nothing) is ExperimentStatus.DONE
    assert one.reset_experiments("done", "error") == 4
    one.execute(pauses, False, 1, -1)
    table = one.get_table()
    assert (set(table["status"]), set(table["name"]), len(table)) == ({"paused"}, {"me"}, 6)
    assert len(one.get_logtable("steps")) == len(one.get_codecarbon_table()) == 0
    one.close_ssh()
    one.delete_table()
    one.close()
    assert rows(sqlite_target, "SELECT name FROM sqlite_master WHERE name = 'other'") == []


def test_both_spellings_do_the_same(make: Make) -> None:
    one = make(count=1)
    assert one.add_experiment_and_execute(keyfield_values={"number": 7}, experiment_function=pauses)
    assert one.add_experiment_and_execute(keyfields={"number": 8}, experiment_function=pauses)
    assert set(one.get_table()["number"]) == {7, 8}

    def logs(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        results.process_logs({"steps": {"step": keys["number"]}})
        assert one.attach(worker_function=lambda r: r.attempt, experiment_id=results.experiment_id) == 2
        assert one.attach(experiment_function=lambda r: r.attempt, experiment_id=results.experiment_id) == 2

    assert one.execute(logs, from_status="paused").done == 2
    assert one.get_logtable(logtable_name="steps").equals(one.get_logtable(name="steps"))


@pytest.mark.parametrize(
    "call",
    [
        lambda one: one.add_experiment_and_execute({"number": 1}),
        lambda one: one.add_experiment_and_execute({"number": 1}, nothing, keyfield_values={"number": 1}),
        lambda one: one.attach(experiment_id=1),
        lambda one: one.attach(nothing, 1, experiment_function=nothing),
        lambda one: one.get_logtable(),
        lambda one: one.get_logtable("steps", logtable_name="steps"),
    ],
)
def test_of_two_spellings_exactly_one_is_wanted(make: Make, call: Callable[[PyExperimenter], Any]) -> None:
    with pytest.raises(TypeError, match=r"takes .*, exactly one of them"):
        call(make())


def test_errors_alike_do_not_stop_a_call_unless_that_is_asked_for(make: Make) -> None:
    one = make(count=30)
    one.fill_table_from_config()
    assert (one.execute(fails, max_errors=2).error, one.execute(fails, max_experiments=3).error) == (2, 3)
    assert one.execute(fails).error == 25
    one.retry_errors()
    configured = make(count=30, execution={"max_errors": 4})
    summary = configured.execute(fails)
    assert (summary.error, summary.stopped_by) == (4, "max_errors")


# --------------------------------------------------------------------------- where functions run


def where(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
    results.process_results({"text": f"{os.getpid()} {threading.get_ident()}"})


async def where_async(keys: Keys, results: Any, custom: Keys) -> None:
    await results.process_results({"text": f"{os.getpid()} {threading.get_ident()}"})


def places(one: PyExperimenter) -> set[tuple[bool, bool]]:
    """Of all rows, whether this process ran them, and whether this thread did."""
    texts = [text.split() for text in one.get_table()["text"]]
    return {(int(pid) == os.getpid(), int(thread) == threading.get_ident()) for pid, thread in texts}


HERE, ANOTHER_THREAD, ANOTHER_PROCESS = (True, True), (True, False), "another process"


@pytest.mark.parametrize(
    ("keywords", "place"),
    [
        ({}, HERE),
        ({"retries": 1, "grace": 1.0, "where": {"number": [0, 1, 2]}}, HERE),
        ({"n_jobs": 2}, ANOTHER_PROCESS),
        ({"pool": "process"}, ANOTHER_PROCESS),
        ({"timeout": 60.0}, ANOTHER_PROCESS),
        ({"stall_timeout": 60.0}, ANOTHER_PROCESS),
        ({"max_tasks_per_child": 9}, ANOTHER_PROCESS),
        ({"worker_env": {"X": "1"}}, ANOTHER_PROCESS),
        ({"pool": "task"}, ANOTHER_THREAD),
    ],
    ids=str,
)
def test_a_plain_function_runs_in_the_calling_thread_unless_something_needs_a_pool(
    make: Make, keywords: Any, place: Any
) -> None:
    one = make()
    one.fill_table_from_config()
    assert one.execute(where, **keywords).done == 3
    found = places(one)
    assert found == {place} if place is not ANOTHER_PROCESS else not any(same for same, _ in found)


@pytest.mark.parametrize(
    ("study", "place"),
    [({"n_jobs": 2}, (False, False)), ({"execution": {"pool": "task"}}, ANOTHER_THREAD)],
    ids=["n_jobs", "pool"],
)
def test_what_the_configuration_asks_for_counts_too(make: Make, study: Any, place: tuple[bool, bool]) -> None:
    one = make(**study)
    one.fill_table_from_config()
    one.execute(where)
    assert {same for same, _ in places(one)} == {place[0]}


def test_an_async_function_runs_as_a_task_in_this_process(make: Make) -> None:
    one = make()
    one.fill_table_from_config()
    assert one.execute(where_async).done == 3
    assert places(one) == {ANOTHER_THREAD}


def test_calls_for_one_row_run_in_the_calling_thread(make: Make) -> None:
    one = make(n_jobs=4)
    one.add_experiment_and_execute({"number": 1}, where)
    one.add_experiment_and_execute({"number": 2}, pauses)
    one.unpause_experiment(2, where)
    assert places(one) == {HERE}


def test_another_thread_than_the_main_one_runs_them_itself(make: Make) -> None:
    one = make()
    one.fill_table_from_config()

    def call() -> set[tuple[bool, bool]]:
        one.execute(where)
        return places(one)

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(call).result(30) == {HERE}


def test_a_function_in_the_calling_thread_may_call_the_class_itself(make: Make) -> None:
    one = make()
    one.fill_table_from_config()

    def asks(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        results.process_results({"result": one.counts()["running"]})
        results.process_logs({"steps": {"step": 1}})
        results.flush()
        assert len(one.get_logtable("steps", {"experiment_id": int(results.experiment_id)})) == 1

    assert one.execute(asks).done == 3
    assert set(one.get_table()["result"]) == {1.0}


def test_a_task_that_would_wait_for_itself_is_told_so(make: Make) -> None:
    one = make(count=1)
    one.fill_table_from_config()

    async def asks(keys: Keys, results: Any, custom: Keys) -> None:
        one.counts()

    assert one.execute(asks).error == 1
    [error] = one.get_table()["error"]
    assert "RuntimeError: This call would wait for itself" in error


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda one: one.execute(nothing, max_experiments=-2), InvalidConfigError, "max_experiments=-2"),
        (lambda one: one.execute(nothing, n_jobs=0), InvalidConfigError, "n_jobs=0"),
        (lambda one: one.execute("nothing"), InvalidConfigError, "must be a function"),
        (lambda one: one.execute(lambda a: a), InvalidConfigError, r"is called with \(keyfields, .*, but takes \(a\)"),
        (lambda one: one.execute(nothing, timout=1), InvalidConfigError, "timeout"),
        (lambda one: one.execute(nothing, pool="tasks"), InvalidConfigError, "pool='tasks'"),
        (lambda one: one.execute(nothing, handle_signals=True, until="never"), InvalidConfigError, "until"),
        (lambda one: one.add_experiment_and_execute({"numbr": 1}, nothing), ParameterCombinationError, "number"),
        (lambda one: one.add_experiment_and_execute({"number": 0}, nothing, njobs=1), InvalidConfigError, "njobs"),
        (lambda one: one.add_experiment_and_execute({"number": 1}, None), TypeError, "experiment_function"),
        (lambda one: one.unpause_experiment(1, nothing), NoPausedExperimentsException, "only a paused one"),
        (lambda one: one.get_table("status = 'done'"), ParameterCombinationError, "where is a dict"),
        (lambda one: one.fill_table_from_config(1), TypeError, "positional argument"),
        (lambda one: one.attach(nothing, 1), InvalidConfigError, "called"),
    ],
)
def test_a_wrong_call_is_one_clear_error_and_the_next_one_works(
    make: Make, call: Callable[[PyExperimenter], Any], error: type[Exception], words: str
) -> None:
    one = make()
    one.fill_table_from_config()
    with pytest.raises(error, match=words) as raised:
        call(one)
    assert raised.value.__context__ is None or raised.value.__suppress_context__
    assert one.execute(nothing).done == 3


def test_an_error_shows_the_callers_line_first_and_its_cause_last(make: Make) -> None:
    one = make()
    one.add_experiment_and_execute({"number": 1}, nothing)
    with pytest.raises(DatabaseError, match="done") as raised:
        one.add_experiment_and_execute({"number": 1}, nothing)
    lines = traceback.format_exception(raised.value)
    assert "one.add_experiment_and_execute" in lines[1]
    assert len([line for line in lines if "During handling" in line]) == 0


def test_an_error_holds_nothing_that_only_a_collection_frees(make: Make) -> None:
    class Held: ...

    one = make()
    one.fill_table_from_config()

    def call() -> weakref.ref[Held]:
        held = Held()
        try:
            one.get_table("never")  # type: ignore[arg-type]
        except ParameterCombinationError:
            return weakref.ref(held)
        raise AssertionError("no error")

    gc.collect()
    gc.disable()
    try:
        held = call()
        soon(lambda: held() is None)  # the other thread may hold on to it for a moment
    finally:
        gc.enable()


def test_an_exception_of_an_attached_function_comes_as_it_was_raised(make: Make) -> None:
    one = make(count=1)
    one.fill_table_from_config()
    mine = ValueError("mine")

    def worker(results: ResultProcessor) -> None:
        raise mine

    def main(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        with pytest.raises(ValueError, match="mine") as raised:
            one.attach(worker, results.experiment_id)
        assert raised.value is mine

    assert one.execute(main).done == 1


# -------------------------------------------------------------------------------- open and close


def stopped(target: Target) -> list[bool]:
    """Of every worker that there was, whether it said goodbye."""
    return [bool(when) for (when,) in rows(target, "SELECT stopped IS NOT NULL FROM experiments_workers")]


def test_the_constructor_opens_nothing(make: Make, sqlite_target: Target) -> None:
    before = threading.active_count()
    repr(make())
    assert threading.active_count() == before
    assert not Path(sqlite_target.database).exists()


def test_as_a_context_manager_it_is_closed_afterwards(make: Make, sqlite_target: Target) -> None:
    before = threading.active_count()
    with make() as one:
        one.fill_table_from_config()
        one.execute(nothing)
        assert stopped(sqlite_target) == [False]
    assert stopped(sqlite_target) == [True]
    soon(lambda: threading.active_count() == before)  # that of the measuring ends a moment later


def test_an_exception_inside_the_context_comes_out_and_it_is_closed(make: Make, sqlite_target: Target) -> None:
    one = make()
    one.fill_table_from_config()
    with pytest.raises(ZeroDivisionError), one:
        raise ZeroDivisionError(one.execute(nothing).done)
    assert stopped(sqlite_target) == [True]


def test_closed_twice_is_no_error_and_used_again_it_opens_again(make: Make, sqlite_target: Target) -> None:
    one = make()
    one.close()
    one.close()
    one.fill_table_from_config()
    for done in range(3):
        assert one.execute(nothing, max_experiments=1).done == 1
        one.close()
        one.close()
        assert stopped(sqlite_target) == [True] * (done + 1)
    assert one.counts()["done"] == 3


def test_forgotten_it_is_closed_when_it_is_collected(make: Make, sqlite_target: Target) -> None:
    before = set(threading.enumerate())
    one = PyExperimenter(make().configuration.path, logger_name="asyncexp-tests", log_file=None)
    one.fill_table_from_config()
    one.execute(nothing)
    new = set(threading.enumerate()) - before
    assert new
    del one
    gc.collect()
    for thread in new:
        thread.join(30)
    assert not any(thread.is_alive() for thread in new)
    assert stopped(sqlite_target) == [True]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("kind", ["task", "calling thread"])
def test_a_signal_that_does_not_interrupt_the_waiting_thread_is_heard(make: Make, kind: str, name: str) -> None:
    one = make(count=1)
    one.fill_table_from_config()
    number = getattr(signal, name)

    async def waits(keys: Keys, results: Any, custom: Keys) -> None:
        signal.pthread_kill(threading.get_ident(), number)
        await until(lambda: results.should_stop)

    def fails_first(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        threading.Timer(0.1, lambda: signal.pthread_kill(threading.get_ident(), number)).start()
        raise ValueError("wait for the next try")

    function = waits if kind == "task" else fails_first
    assert one.execute(function, retries=1, retry_delay=60).stopped_by == name


def test_an_interruption_that_the_main_thread_overslept_is_sent_again(
    make: Make, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make(execution={"grace": 0.05})
    one.fill_table_from_config()
    began = shared.gate()
    sent: list[int] = []

    def kill(thread: int, number: int) -> None:
        sent.append(number)
        if len(sent) > 1:  # the first comes just before the sleep begins
            pthread_kill(thread, number)

    pthread_kill = signal.pthread_kill
    monkeypatch.setattr(signal, "pthread_kill", kill)

    def sleeps(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        began.open()
        time.sleep(60)

    def stop() -> None:
        began.wait()
        one.stop()

    with ThreadPoolExecutor(1) as threads:
        stopping = threads.submit(stop)
        start = time.monotonic()
        assert one.execute(sleeps).released == 1
        assert time.monotonic() - start < 30
        stopping.result(30)
    assert len(sent) >= 2
    assert set(sent) == {signal.SIGINT}


def test_closing_while_a_call_is_under_way_stops_it_and_gives_its_rows_back(
    make: Make, sqlite_target: Target, shared: Shared
) -> None:
    one = make(execution={"grace": 0.1})
    one.fill_table_from_config()
    began = shared.gate()

    async def waits(keys: Keys, results: Any, custom: Keys) -> None:
        began.open()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(one.execute, waits, n_jobs=2)
        began.wait()
        one.close()
        error = call.exception(30)
        assert error is None or isinstance(error, DatabaseConnectionError)
    assert rows(sqlite_target, "SELECT DISTINCT status FROM experiments") == [("created",)]
    assert stopped(sqlite_target) == [True]


def test_copies_are_independent(make: Make) -> None:
    one = make()
    one.fill_table_from_config()
    for other in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):  # noqa: S301
        assert other.counts() == one.counts()
        assert repr(other) == repr(one)
        other.close()
    assert one.execute(nothing).done == 3


# ----------------------------------------------------------------------- threads and event loops


def test_many_threads_call_it_at_once(make: Make, shared: Shared) -> None:
    one = make(count=60)
    one.fill_table_from_config()
    seen = shared.seen()
    barrier = threading.Barrier(12)

    def notes(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        seen.append(keys["number"])

    def call(number: int) -> int:
        barrier.wait(30)
        if number % 2:
            return sum(one.counts().values())
        return one.execute(notes).done

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(call, range(12)))
    assert (set(answers[1::2]), sum(answers[::2])) == ({60}, 60)
    assert sorted(seen) == list(range(60))
    assert len(one.workers()) == 1


def test_first_calls_of_many_threads_open_it_once(make: Make) -> None:
    one = make()
    barrier = threading.Barrier(8)

    def call(_: int) -> int:
        barrier.wait(30)
        return one.fill_table_from_config().added

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(call, range(8))) == 3
    assert len([each for each in threading.enumerate() if each.name == "asyncexp loop"]) == 1


def test_threads_that_close_it_while_others_call_get_an_answer_or_a_clear_error(make: Make) -> None:
    one = make()
    one.fill_table_from_config()
    end = threading.Event()

    def calls() -> int:
        answered = 0
        while not end.is_set() or not answered:
            try:
                assert sum(one.counts().values()) == 3
            except DatabaseConnectionError as closed:
                assert "closed while a call was under way" in str(closed)  # noqa: PT017
            else:
                answered += 1
        return answered

    with ThreadPoolExecutor(4) as threads:
        work = [threads.submit(calls) for _ in range(3)]
        for _ in range(20):
            one.close()
        end.set()
        assert all(each.result(60) for each in work)


async def test_a_thread_with_a_running_loop_waits_meanwhile(make: Make, shared: Shared) -> None:
    one = make()
    one.fill_table_from_config()
    ticked = asyncio.get_running_loop().call_soon(shared.gate().open)
    assert one.execute(where).done == 3
    assert places(one) == {HERE}
    assert not ticked.cancelled()
    with one as entered:
        assert entered.counts()["done"] == 3
