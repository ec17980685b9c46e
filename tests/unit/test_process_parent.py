"""Parents of child processes that are stopped or killed: experiments end in time, and nobody outlives the parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from asyncexp.db.base import Target
from asyncexp.pools.process import _START
from tests.contract.shared import Seen
from tests.contract.support import numbers
from tests.studies import write_configuration
from tests.unit.children import program

SOON_SECONDS = 20.0
"""The promise is a second; a machine may be slow, or have other work to do. Whoever is not ended lives for longer."""

SCRIPT = """
import asyncio, os, subprocess, sys, time
from asyncexp import Experimenter, ExperimentStatus
from tests.contract.shared import Gate, Seen

SEEN, GATE = Seen(__import__("pathlib").Path("seen")), Gate(__import__("pathlib").Path("gate"))

def waits(keyfields, results, custom):
    sleeper = ["/bin/sleep", "1000"]
    pids = [subprocess.Popen(sleeper, start_new_session=away).pid for away in (False, True)]
    SEEN.append([os.getpid(), *pids])
    GATE.wait()

def listens(keyfields, results, custom):
    SEEN.append([os.getpid()])
    while not results.should_stop:
        time.sleep(0.01)
    results.process_results({"text": "listened"})
    return ExperimentStatus.PAUSED if keyfields["number"] else ExperimentStatus.DONE

async def listens_later(keyfields, results, custom):
    SEEN.append([os.getpid()])
    while not results.should_stop:
        await asyncio.sleep(0.01)
    await results.process_results({"text": "listened"})

def is_deaf(keyfields, results, custom):
    SEEN.append([os.getpid()])
    time.sleep(1000)

async def main():
    async with Experimenter("configuration.yml", log_file=None, use_codecarbon=False) as experimenter:
        await experimenter.fill_table_from_config()
        summary = await experimenter.execute(globals()[sys.argv[1]], pool="process", grace=float(sys.argv[2]))
        print(summary.done, summary.paused, summary.released, summary.stopped_by)

FORKS
asyncio.run(main())
"""
FORKS = """
if os.fork() == 0:
    time.sleep(1000)
    os._exit(0)
"""


@pytest.fixture
def folder(tmp_path: Path, sqlite_target: Target) -> Path:
    write_configuration(tmp_path, sqlite_target, keyfields=numbers(8), n_jobs=4)
    return tmp_path


@contextmanager
def parent(folder: Path, function: str, grace: float = 20, script: str = SCRIPT) -> Iterator[subprocess.Popen[str]]:
    """A script that has begun four experiments; in a process group of its own, killed at the end if it still runs."""
    (folder / "script.py").write_text(textwrap.dedent(script).replace("FORKS", ""))
    with program(folder, "script.py", function, str(grace)) as process:
        soon(lambda: len(seen(folder)) >= 4, 60)
        yield process


def seen(folder: Path) -> Seen:
    return Seen(folder / "seen")


def soon(condition: Callable[[], bool], seconds: float = SOON_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family(process: subprocess.Popen[str]) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


@pytest.mark.parametrize("forked", [False, True], ids=["alone", "beside a process that it forked"])
def test_children_and_grandchildren_of_a_killed_parent_are_gone_within_a_second(folder: Path, forked: bool) -> None:
    """A busy machine may be late once or twice; who is not ended is never in time."""
    took: list[float] = []
    while len(took) < 4 and min(took, default=2.0) >= 1.0:
        for left in (*folder.glob("seen*"), *folder.glob("experiments.db*")):
            left.unlink()
        took.append(until_all_are_gone(folder, forked))
    assert min(took) < 1.0, took


def until_all_are_gone(folder: Path, forked: bool) -> float:
    """Seconds from the death of the parent to that of all that it and its children started."""
    other = 0
    script = SCRIPT.replace("asyncio.run(main())", "asyncio.run(main())\n") if not forked else SCRIPT
    if forked:
        # It holds every descriptor that the parent has, the lines to its children among them.
        script = script.replace(
            "    async with", "    asyncio.get_running_loop().call_later(0.5, forks)\n    async with"
        ).replace("async def main", f"def forks():{textwrap.indent(FORKS, '    ')}\nasync def main")
    with parent(folder, "waits", script=script) as process:
        if forked:
            beside = psutil.Process(process.pid)
            soon(lambda: len(beside.children()) == 2)
            [other] = [child.pid for child in beside.children() if "nursery" not in " ".join(child.cmdline())]
        mine = [pid for pids in seen(folder) for pid in pids]
        everybody = {*family(process), *mine} - {other}
        assert len(mine) == 12
        began = time.monotonic()
        process.kill()
        soon(lambda: not any(map(runs, everybody)))
        took = time.monotonic() - began
        if forked:
            assert runs(other)
            os.kill(other, signal.SIGKILL)
    return took


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("function", ["listens", "listens_later"])
def test_a_signal_to_the_parent_is_heard_in_the_children(
    folder: Path, sqlite_target: Target, function: str, name: str
) -> None:
    with parent(folder, function) as process:
        process.send_signal(getattr(signal, name))
        said, _ = process.communicate(timeout=60)
    assert said.split() == (["1", "3", "0", name] if function == "listens" else ["4", "0", "0", name])


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_every_process_of_the_job_is_heard_as_one_to_the_parent(folder: Path, name: str) -> None:
    with parent(folder, "listens") as process:
        for pid in [process.pid, *family(process)]:
            os.kill(pid, getattr(signal, name))
        said, _ = process.communicate(timeout=60)
    assert said.split() == ["1", "3", "0", name]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_who_does_not_listen_has_its_grace_and_is_killed(folder: Path, name: str) -> None:
    with parent(folder, "is_deaf", grace=0.5) as process:
        children = family(process)
        began = time.monotonic()
        os.killpg(process.pid, getattr(signal, name))
        said, _ = process.communicate(timeout=60)
    assert 0.5 < time.monotonic() - began < 0.5 + SOON_SECONDS
    assert said.split() == ["0", "0", "4", name]
    soon(lambda: not any(map(runs, children)))


def test_a_second_signal_does_not_wait(folder: Path) -> None:
    with parent(folder, "waits", grace=100) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        while "no more experiments are started" not in process.stderr.readline():
            continue
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < SOON_SECONDS
    assert said.split() == ["0", "0", "4", "SIGTERM"]
    soon(lambda: not any(runs(pid) for pids in seen(folder) for pid in pids))


def test_a_signal_from_the_terminal_reaches_the_parent_alone(folder: Path, sqlite_target: Target) -> None:
    with parent(folder, "waits") as process:
        os.killpg(process.pid, signal.SIGINT)
        (folder / "gate").touch()
        said, _ = process.communicate(timeout=60)
    assert said.split() == ["4", "0", "0", "SIGINT"]


def test_processes_that_an_experiment_starts_end_by_sigterm_as_ever(folder: Path) -> None:
    script = SCRIPT.replace(
        "    GATE.wait()\n",
        """
    import multiprocessing, signal
    context = multiprocessing.get_context("fork")
    process = context.Process(target=time.sleep, args=(1000,))
    process.start()
    process.terminate()
    process.join()
    assert process.exitcode == -signal.SIGTERM, process.exitcode
    with context.Pool(2) as pool:
        assert pool.map(abs, [-1, 1]) == [1, 1]
    program = subprocess.Popen(["/bin/sleep", "1000"])
    program.terminate()
    assert program.wait() == -signal.SIGTERM
""",
    )
    with parent(folder, "waits", script=script) as process:
        said, _ = process.communicate(timeout=60)
    assert said.split() == ["8", "0", "0", "None"]


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_a_signal_for_the_parents_own_handler_ends_no_child(folder: Path, name: str) -> None:
    with parent(folder, "waits") as process:
        [nursery] = psutil.Process(process.pid).children()
        for each in [nursery, *nursery.children()]:
            each.send_signal(getattr(signal, name))
        (folder / "gate").touch()
        said, _ = process.communicate(timeout=60)
    assert said.split() == ["8", "0", "0", "None"]


def test_the_process_that_starts_children_ends_quietly_if_its_parent_died_first() -> None:
    """Before it was told anything: no warning of a socket that nobody closed."""
    mine, its = socket.socketpair()
    with its:
        command = [sys.executable, "-W", "error", "-c", _START, str(its.fileno())]
        nursery = subprocess.Popen(
            command, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    mine.close()
    assert (nursery.communicate(timeout=30)[1], nursery.returncode) == ("", 0)
