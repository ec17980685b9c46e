"""Scripts of the blocking class: those that close nothing, those that fork, and Ctrl-C."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from asyncexp.db.base import Target
from tests.contract.shared import Seen
from tests.contract.support import numbers
from tests.studies import write_configuration
from tests.unit.children import program

SOON_SECONDS = 20.0
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+  \| py-experimenter - (INFO|WARNING) ")

HEAD = """
import asyncio, gc, multiprocessing, os, signal, sqlite3, subprocess, sys, threading, time
from pathlib import Path
from asyncexp.sync import ExperimentStatus, PyExperimenter, ResultProcessor
from tests.contract.shared import Gate, Seen

SEEN, GATE = Seen(Path("seen")), Gate(Path("gate"))
KEPT = []

def run(keyfields, results, custom):
    results.process_results({"result": keyfields["number"]})

def listens(keyfields, results, custom):
    SEEN.append(os.getpid())
    while not results.should_stop:
        time.sleep(0.01)
    results.process_results({"text": "listened"})

async def listens_later(keyfields, results, custom):
    SEEN.append(os.getpid())
    while not results.should_stop:
        await asyncio.sleep(0.01)
    await results.process_results({"text": "listened"})

def is_deaf(keyfields, results, custom):
    results.process_results({"text": "half"})
    try:
        SEEN.append(os.getpid())
        while True:
            time.sleep(1)  # a signal just before a sleep is heard after it
    except BaseException as error:
        SEEN.append(type(error).__name__)
        raise

async def is_deaf_later(keyfields, results, custom):
    await results.process_results({"text": "half"})
    try:
        SEEN.append(os.getpid())
        await asyncio.sleep(1000)
    except BaseException as error:
        SEEN.append(type(error).__name__)
        raise

def has_children(keyfields, results, custom):
    sleeper = subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True)
    SEEN.append([os.getpid(), sleeper.pid])
    KEPT.append(sleeper)
    time.sleep(1000)

def say(summary):
    print(summary.done, summary.error, summary.released, summary.stopped_by, flush=True)

def statuses():
    connection = sqlite3.connect("experiments.db")
    print(*sorted({status for status, in connection.execute("SELECT status FROM experiments")}), flush=True)
    connection.close()

experimenter = PyExperimenter("configuration.yml", use_codecarbon=False)
experimenter.fill_table_from_config()
"""


@pytest.fixture
def folder(tmp_path: Path, sqlite_target: Target) -> Path:
    write_configuration(tmp_path, sqlite_target, keyfields=numbers(4), n_jobs=1)
    return tmp_path


@contextmanager
def script(folder: Path, text: str, head: str = HEAD) -> Iterator[subprocess.Popen[str]]:
    """A script under way; killed with all of its group at the end if it still runs."""
    (folder / "script.py").write_text(head + text)
    with program(folder, "-W", "error", "script.py") as process:
        yield process


def ended(process: subprocess.Popen[str], *, seconds: float = 60) -> list[str]:
    """What it said, if it ended well: with 0, and nothing on stderr but log lines."""
    said, complaints = process.communicate(timeout=seconds)
    assert "\n".join(line for line in complaints.splitlines() if not LOG_LINE.match(line)) == ""
    assert process.returncode == 0
    return said.split()


def rows(folder: Path, text: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(folder / "experiments.db")) as connection:
        return connection.execute(text).fetchall()


def all_stopped(folder: Path) -> bool:
    """Whether there were workers, and each has said goodbye."""
    found = rows(folder, "SELECT stopped IS NOT NULL FROM experiments_workers")
    return bool(found) and all(stopped for (stopped,) in found)


def soon(condition: Callable[[], bool], seconds: float = SOON_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.01)


def begun(folder: Path, count: int = 1) -> None:
    """Returns when so many experiments have begun."""
    soon(lambda: len(Seen(folder / "seen")) >= count, 60)


def stopping(process: subprocess.Popen[str]) -> None:
    """Returns when the script has said that it heard the first signal."""
    assert process.stderr is not None
    while "no more experiments are started" not in (line := process.stderr.readline()):
        assert line, "it ended without a word"


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ------------------------------------------------------------------------------ closing nothing


@pytest.mark.parametrize(
    "text",
    [
        "say(experimenter.execute(run))",
        "say(experimenter.execute(run, n_jobs=2))",
        "say(experimenter.execute(run, pool='task', n_jobs=2))",
        "async def main():\n    say(experimenter.execute(run))\nasyncio.run(main())",
        "threads = [threading.Thread(target=lambda: experimenter.execute(run)) for _ in range(3)]\n"
        "[thread.start() for thread in threads], [thread.join() for thread in threads]\n"
        "print(4, 0, 0, None)",
        "say(experimenter.execute(run)); experimenter.close(); experimenter.counts()",
        "say(experimenter.execute(run)); experimenter.me = experimenter",
        "say(experimenter.execute(run)); del experimenter; gc.collect()",
        "others = [PyExperimenter('configuration.yml') for _ in range(4)]\n"
        "[other.counts() for other in others]\nsay(experimenter.execute(run))",
    ],
)
def test_a_script_that_closes_nothing_ends_cleanly(folder: Path, text: str) -> None:
    with script(folder, text) as process:
        assert ended(process) == ["4", "0", "0", "None"]
    assert all_stopped(folder)
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith("experiments.db")) == [
        "experiments.db"
    ]


def test_a_script_that_leaves_by_exit_in_the_middle_ends_cleanly_and_at_once(folder: Path) -> None:
    with script(folder, "experimenter.execute(run, max_experiments=1)\nsys.exit(3)") as process:
        _, complaints = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "Traceback" not in complaints
    assert all_stopped(folder)


def test_a_script_that_fails_shows_its_own_error_only(folder: Path) -> None:
    with script(folder, "experimenter.execute(run)\nraise SystemError('mine')") as process:
        _, complaints = process.communicate(timeout=60)
    assert process.returncode == 1
    assert complaints.splitlines()[-1] == "SystemError: mine"
    assert complaints.count("Traceback") == 1
    assert all_stopped(folder)


def test_a_script_that_ends_while_a_thread_still_executes_gives_its_rows_back(folder: Path) -> None:
    text = """
threading.Thread(target=lambda: say(experimenter.execute(is_deaf_later, n_jobs=2)), daemon=True).start()
while len(SEEN) < 2:
    time.sleep(0.01)
"""
    with script(folder, text) as process:
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert rows(folder, "SELECT DISTINCT status FROM experiments") == [("created",)]
    assert all_stopped(folder)


# ------------------------------------------------------------------------------------- processes


CHILDREN = """
def in_child(one):
    with one:
        say(one.execute(run, max_experiments=1))

def in_child_that_closes_nothing(one):
    say(one.execute(run, max_experiments=1))

if __name__ == "__main__":
    experimenter = PyExperimenter("configuration.yml")
    experimenter.fill_table_from_config()
    experimenter.execute(run, max_experiments=1)
    context = multiprocessing.get_context(METHOD)
    children = [
        context.Process(target=each, args=(experimenter,)) for each in (in_child, in_child_that_closes_nothing)
    ]
    [child.start() for child in children]
    [child.join() for child in children]
    print(*(child.exitcode for child in children))
    say(experimenter.execute(run))
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_work_by_themselves(folder: Path, method: str) -> None:
    head = HEAD[: HEAD.index("experimenter = ")] + f"METHOD = {method!r}\n"
    with script(folder, CHILDREN, head) as process:
        assert sorted(ended(process)) == sorted(["1", "0", "0", "None"] * 3 + ["0", "0"])
    assert len(rows(folder, "SELECT id FROM experiments_workers")) == 3
    assert all_stopped(folder)
    assert rows(folder, "SELECT DISTINCT status FROM experiments") == [("done",)]


def test_a_fork_while_other_threads_use_it_works_in_the_child_and_goes_on_in_the_parent(folder: Path) -> None:
    text = """
end = threading.Event()
def reads():
    while not end.is_set():
        assert sum(experimenter.counts().values()) == 4
threads = [threading.Thread(target=reads) for _ in range(3)]
[thread.start() for thread in threads]
for number in range(10):
    child = os.fork()
    if not child:
        try:
            assert sum(experimenter.counts().values()) == 4
            if number < 2:
                assert experimenter.execute(run, max_experiments=1).done == 1
            experimenter.close()
            gc.collect()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, number
end.set()
[thread.join() for thread in threads]
say(experimenter.execute(run))
"""
    with script(folder, text) as process:
        assert ended(process) == ["2", "0", "0", "None"]
    assert all_stopped(folder)


def test_a_function_in_the_calling_thread_may_fork(folder: Path) -> None:
    text = """
def forks(keyfields, results, custom):
    child = os.fork()
    if not child:
        os._exit(0 if sum(experimenter.counts().values()) == 4 else 1)
    assert os.waitpid(child, 0)[1] == 0
    results.process_results({"result": 1})
say(experimenter.execute(forks))
"""
    with script(folder, text) as process:
        assert ended(process) == ["4", "0", "0", "None"]


# --------------------------------------------------------------------------------------- signals


WAYS: dict[str, str] = {
    "calling thread": "execute({}, grace={})",
    "threads": "execute({}, grace={}, pool='task')",
    "child processes": "execute({}, grace={}, pool='process')",
    "tasks": "execute({}_later, grace={})",
}
KILLABLE = [way for way in WAYS if way != "threads"]


def call(way: str, function: str, grace: float = 60) -> str:
    return f"say(experimenter.{WAYS[way].format(function, grace)})\nstatuses()"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("way", WAYS)
def test_a_signal_stops_it_gracefully_and_the_script_goes_on(folder: Path, way: str, name: str) -> None:
    with script(folder, call(way, "listens")) as process:
        begun(folder)
        process.send_signal(getattr(signal, name))
        assert ended(process) == ["1", "0", "0", name, "created", "done"]
    assert rows(folder, "SELECT text, count(*) FROM experiments GROUP BY 1") == [(None, 3), ("listened", 1)]
    assert all_stopped(folder)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("way", KILLABLE)
def test_a_second_signal_ends_what_runs_and_gives_it_back(folder: Path, way: str, name: str) -> None:
    with script(folder, call(way, "is_deaf")) as process:
        begun(folder)
        process.send_signal(getattr(signal, name))
        stopping(process)
        began = time.monotonic()
        process.send_signal(getattr(signal, name))
        assert ended(process) == ["0", "0", "1", name, "created"]
    assert time.monotonic() - began < SOON_SECONDS
    assert rows(folder, "SELECT DISTINCT text FROM experiments") == [(None,)]
    ways_to_hear = {"calling thread": ["KeyboardInterrupt"], "tasks": ["CancelledError"], "child processes": []}
    assert Seen(folder / "seen").values()[1:] == ways_to_hear[way]
    assert all_stopped(folder)


@pytest.mark.parametrize("way", KILLABLE)
def test_after_grace_what_runs_is_ended_and_given_back(folder: Path, way: str) -> None:
    with script(folder, call(way, "is_deaf", 0.3)) as process:
        begun(folder)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert ended(process) == ["0", "0", "1", "SIGTERM", "created"]
    assert 0.3 < time.monotonic() - began < 0.3 + SOON_SECONDS


def test_after_it_the_scripts_own_handlers_are_back(folder: Path) -> None:
    text = """
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
experimenter.execute(listens)
assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("mine")
"""
    with script(folder, text) as process:
        begun(folder)
        process.send_signal(signal.SIGINT)
        assert ended(process) == ["mine"]


@pytest.mark.parametrize("way", KILLABLE)
def test_without_handlers_ctrl_c_leaves_the_call_once_its_rows_are_back(folder: Path, way: str) -> None:
    text = f"""
try:
    experimenter.{WAYS[way].format("is_deaf", 60)[:-1]}, handle_signals=False)
except KeyboardInterrupt:
    print("interrupted")
    statuses()
say(experimenter.execute(run))
"""
    with script(folder, text) as process:
        begun(folder)
        process.send_signal(signal.SIGINT)
        assert ended(process) == ["interrupted", "created", "4", "0", "0", "None"]
    assert all_stopped(folder)


@pytest.mark.parametrize("way", KILLABLE)
def test_ctrl_c_that_nobody_catches_ends_the_script_as_ever_with_its_rows_back(folder: Path, way: str) -> None:
    with script(folder, f"experimenter.{WAYS[way].format('is_deaf', 60)[:-1]}, handle_signals=False)") as process:
        begun(folder)
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert complaints.splitlines()[-1] == "KeyboardInterrupt"
    assert rows(folder, "SELECT DISTINCT status FROM experiments") == [("created",)]
    assert all_stopped(folder)


@pytest.mark.parametrize("method", ["add_experiment_and_execute({'number': 9}, ", "unpause_experiment(5, "])
def test_calls_for_one_row_stop_too(folder: Path, method: str) -> None:
    text = f"""
experimenter.add_experiment_and_execute({{"number": 8}}, lambda *_: ExperimentStatus.PAUSED)
print(experimenter.{method}listens).value)
print(experimenter.{method.replace("9", "10").replace("5", "6")}is_deaf))
"""
    text = text[: text.rindex("print")] if method.startswith("unpause") else text
    with script(folder, text) as process:
        begun(folder)
        process.send_signal(signal.SIGINT)
        if not method.startswith("unpause"):
            stopping(process)
            begun(folder, 2)
            process.send_signal(signal.SIGINT)
            stopping(process)
            process.send_signal(signal.SIGINT)
        said = ended(process)
    assert said[0] == "done"
    assert said[1:] in ([], ["created"])


def test_ctrl_c_between_and_during_short_calls_is_never_lost_and_leaves_nothing_running(folder: Path) -> None:
    text = """
gc.disable()  # Python itself loses an interruption of a collection's callbacks
while True:
    try:
        while True:
            experimenter.counts()
            experimenter.execute(run, max_experiments=1, handle_signals=False)
            experimenter.reset_experiments("done")
            SEEN.append(1)
    except KeyboardInterrupt:
        print("heard", flush=True)
        if GATE.is_open:
            break
statuses()
"""
    with script(folder, text) as process:
        begun(folder)
        assert process.stdout is not None
        for number in range(30):
            if number == 29:
                (folder / "gate").touch()
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "heard\n"
            if number < 29:
                begun(folder, len(Seen(folder / "seen")) + 1 + number % 3)
        said, complaints = process.communicate(timeout=60)
    assert "running" not in said
    assert "Traceback" not in complaints
    assert process.returncode == 0
    assert all_stopped(folder)


@pytest.mark.parametrize("call", ["experimenter.counts()", "whole()"])
def test_ctrl_c_at_any_point_of_a_call_ends_it_and_leaves_nothing_behind(folder: Path, call: str) -> None:
    text = """
import faulthandler, itertools
from tests.unit.interruptions import interrupted

gc.disable()  # Python itself loses an interruption of a collection's callbacks

def joins(results):
    results.process_results({"text": "joined"})

def sends(keyfields, results, custom):
    results.process_results({"result": 1})
    results.process_logs({"steps": {"step": 1}})
    results.heartbeat(0.5)
    results.flush()
    experimenter.attach(joins, results.experiment_id)

def whole():
    experimenter.execute(sends, max_experiments=1, handle_signals=False)
    experimenter.reset_experiments("done")

experimenter.fill_table_from_config()
whole()
for number in itertools.count(1):
    faulthandler.dump_traceback_later(60, exit=True)
    where = interrupted(lambda: CALL, number)
    found = experimenter.counts()
    if found["created"] + found["done"] != 4:
        print(where, found, flush=True)
    experimenter.reset_experiments("done", "error")
    if not where:
        break
faulthandler.cancel_dump_traceback_later()
print(number > 25)
"""
    with script(folder, text.replace("CALL", call)) as process:
        assert ended(process, seconds=350) == ["True"]
    assert rows(folder, "SELECT DISTINCT status FROM experiments") == [("created",)]


# ------------------------------------------------------------------------------------- notebooks


CELL = """
async def cell():
    CALL

loop = asyncio.new_event_loop()
loop.run_until_complete(cell())
loop.close()
"""
"""As a notebook runs a cell: in the main thread, on a running loop that has no handler of its own."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cell", [CELL, "async def cell():\n    CALL\nasyncio.run(cell())"], ids=["notebook", "run"])
def test_ctrl_c_in_a_cell_stops_gracefully(folder: Path, way: str, cell: str) -> None:
    with script(folder, cell.replace("CALL", call(way, "listens").replace("\n", "\n    "))) as process:
        begun(folder)
        process.send_signal(signal.SIGINT)
        assert ended(process) == ["1", "0", "0", "SIGINT", "created", "done"]
    assert all_stopped(folder)


@pytest.mark.parametrize("way", KILLABLE)
def test_ctrl_c_twice_in_a_cell_ends_what_runs_and_the_next_cell_works(folder: Path, way: str) -> None:
    cell = CELL.replace("CALL", call(way, "is_deaf").replace("\n", "\n    "))
    with script(folder, cell + "say(experimenter.execute(run))") as process:
        begun(folder)
        process.send_signal(signal.SIGINT)
        stopping(process)
        process.send_signal(signal.SIGINT)
        assert ended(process) == ["0", "0", "1", "SIGINT", "created", "4", "0", "0", "None"]


# -------------------------------------------------------------------------------------- children


def family(folder: Path) -> Sequence[int]:
    return [pid for pids in Seen(folder / "seen") for pid in pids]


@pytest.mark.parametrize("how", ["second signal", "grace"])
def test_stopping_reaches_children_and_what_they_started(folder: Path, how: str) -> None:
    grace = 60 if how == "second signal" else 0.5
    with script(folder, f"say(experimenter.execute(has_children, n_jobs=2, grace={grace}))") as process:
        begun(folder, 2)
        children = {*family(folder), *(child.pid for child in psutil.Process(process.pid).children(recursive=True))}
        assert len(family(folder)) == 4
        process.send_signal(signal.SIGTERM)
        if how == "second signal":
            stopping(process)
            process.send_signal(signal.SIGTERM)
        assert ended(process) == ["0", "0", "2", "SIGTERM"]
    soon(lambda: not any(map(runs, children)))
    assert rows(folder, "SELECT DISTINCT status FROM experiments") == [("created",)]


def test_a_killed_script_takes_children_and_what_they_started_along(folder: Path) -> None:
    with script(folder, "experimenter.execute(has_children, n_jobs=2)") as process:
        begun(folder, 2)
        children = {*family(folder), *(child.pid for child in psutil.Process(process.pid).children(recursive=True))}
        process.kill()
        soon(lambda: not any(map(runs, children)))
