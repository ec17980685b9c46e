"""`examples/checkpoint` as on a cluster: whole jobs preempted or killed, and started again.

In the copy each sweep of the annealing is noted in a file, and the first attempts at the first two rows stand still
after some of them, so that it is known what they had saved.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.examples.test_examples import EXAMPLES, MADE, ROOT, check_ignored, replace, run, start, statuses

SWEEPS, EVERY, STILL_AT = 60, 20, 30
AGAIN = STILL_AT % EVERY
"""Sweeps since its checkpoint, of an attempt that stands still."""
ROWS = 4
SMALL = {
    "[0.001, 0.01, 0.1, 1]": "[0.01, 0.1]",
    "{start: 0, stop: 4}": "{start: 0, stop: 2}",
    "cities: 200": "cities: 20",
    "sweeps: 1000": f"sweeps: {SWEEPS}",
    "checkpoint_every: 50": f"checkpoint_every: {EVERY}",
    "grace: 20": "grace: 600",  # the job's own: here SLURM's is over first
}
STEP = "        state = sweep(state, cities, cooled)\n"
NOTED = """\
        with (HERE / "sweeps.log").open("a") as notes:
            notes.write(f"{result_processor.experiment_id} {result_processor.attempt} {state['sweep']}\\n")
"""
STANDS_STILL = f"""\
        while result_processor.experiment_id <= 2 and (result_processor.attempt, state["sweep"]) == (1, {STILL_AT}):
            if result_processor.should_stop and result_processor.experiment_id != DEAF:
                break
            __import__("time").sleep(0.01)
"""
DUMP = "        json.dump(state, stream)\n"
HALF = f"""\
        half = HERE / f"{{file.stem}}.half.log"
        if state["sweep"] == {2 * EVERY} and int(file.stem) <= 2 and not half.exists():
            stream.write(json.dumps(state)[:100])
            stream.flush()
            half.touch()
            while True:
                __import__("time").sleep(1)
"""
Sweep = tuple[int, int, int]
"""(ID, attempt, number)"""


def copy(folder: Path, more: str = "", deaf: int = 0) -> Path:
    """The example with few and short experiments that note what they do; the one called `deaf` does not stop."""
    made = Path(shutil.copytree(EXAMPLES / "checkpoint", folder, ignore=MADE))
    for old, new in SMALL.items():
        replace(made / "config" / "experiment_configuration.yml", old, new)
    replace(made / "run.py", STEP, STEP + NOTED + more.replace("DEAF", str(deaf)))
    return made


def noted(folder: Path) -> list[Sweep]:
    file = folder / "sweeps.log"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(int(row), int(attempt), int(number)) for row, attempt, number in map(str.split, lines)]


def lengths(folder: Path) -> list[tuple[float, int, float]]:
    """What was found, by keyfields."""
    with sqlite3.connect(folder / "checkpoint.db") as connection:
        found = connection.execute("SELECT temperature, seed, length FROM annealing ORDER BY 1, 2").fetchall()
    connection.close()
    return found


def outcomes(folder: Path) -> Counter[tuple[int, str]]:
    """How the attempts ended that were not the last, by row."""
    with sqlite3.connect(folder / "checkpoint.db") as connection:
        found = connection.execute("SELECT experiment_id, outcome FROM annealing_attempts").fetchall()
    connection.close()
    return Counter(found)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, int, float]]:
    """What the example finds when nobody disturbs it."""
    folder = copy(tmp_path_factory.mktemp("undisturbed") / "checkpoint")
    run(folder)
    assert Counter(noted(folder)) == Counter(expected({}))
    assert not list((folder / "checkpoints").iterdir())
    return lengths(folder)


def expected(from_checkpoint: dict[int, int], still_at: int = STILL_AT) -> list[Sweep]:
    """All sweeps of all attempts, if those rows stood still, and went on from that sweep in a second attempt."""
    made = []
    for row in range(1, ROWS + 1):
        first = still_at if row in from_checkpoint else SWEEPS
        made += [(row, 1, number) for number in range(1, first + 1)]
        if row in from_checkpoint:
            made += [(row, 2, number) for number in range(from_checkpoint[row] + 1, SWEEPS + 1)]
    return made


def soon(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.01)


def stand_still(folder: Path, rows: set[int]) -> None:
    """Returns when these rows do."""
    soon(lambda: {row for row, _, number in noted(folder) if number == STILL_AT} == rows)


def family(job: subprocess.Popen[str]) -> list[psutil.Process]:
    leader = psutil.Process(job.pid)
    return [leader, *leader.children(recursive=True)]


def kill(job: subprocess.Popen[str]) -> None:
    """SIGKILL to every process of the job, as SLURM sends it."""
    for process in family(job):
        with suppress(psutil.NoSuchProcess):  # a child goes when its worker does
            process.kill()
    job.communicate(timeout=90)
    assert job.returncode == -signal.SIGKILL


def goes_on(folder: Path) -> None:
    """Started again it ends well, and before any lease could be over."""
    began = time.monotonic()
    out, _ = run(folder)
    assert time.monotonic() - began < 50
    assert f"Experiments: 0 added, {ROWS} were there already." in out
    assert statuses(folder / "checkpoint.db", "annealing") == {"done": ROWS}
    assert not list((folder / "checkpoints").iterdir())


def test_a_preempted_job_goes_on_exactly_where_it_was(
    tmp_path: Path, undisturbed: list[tuple[float, int, float]]
) -> None:
    folder = copy(tmp_path / "checkpoint", STANDS_STILL)
    with start(folder) as job:
        try:
            stand_still(folder, {1, 2})
            processes = family(job)
            job.terminate()
            out, _ = job.communicate(timeout=90)
            _, left = psutil.wait_procs(processes, timeout=30)
        finally:
            job.kill()
    assert not left  # nothing that SIGKILL would find
    assert job.returncode == os.EX_TEMPFAIL
    assert out.splitlines()[-1] == f"Stopped by SIGTERM: {ROWS} left. Start it again to go on."
    assert statuses(folder / "checkpoint.db", "annealing") == {"created": ROWS}

    goes_on(folder)
    assert Counter(noted(folder)) == Counter(expected({1: STILL_AT, 2: STILL_AT}))
    assert len(noted(folder)) == ROWS * SWEEPS
    assert outcomes(folder) == {(1, "created"): 1, (2, "created"): 1}
    assert lengths(folder) == undisturbed


def test_a_job_killed_after_the_grace_goes_on_where_its_checkpoints_were(
    tmp_path: Path, undisturbed: list[tuple[float, int, float]]
) -> None:
    folder = copy(tmp_path / "checkpoint", STANDS_STILL, deaf=1)
    with start(folder) as job:
        try:
            stand_still(folder, {1, 2})
            job.terminate()
            soon(lambda: statuses(folder / "checkpoint.db", "annealing") == {"running": 1, "created": ROWS - 1})
            kill(job)
        finally:
            job.kill()

    goes_on(folder)
    assert Counter(noted(folder)) == Counter(expected({1: STILL_AT - AGAIN, 2: STILL_AT}))
    assert len(noted(folder)) == ROWS * SWEEPS + AGAIN
    assert outcomes(folder) == {(1, "lost"): 1, (2, "created"): 1}
    assert lengths(folder) == undisturbed


def test_a_job_killed_without_a_word_goes_on_where_its_checkpoints_were(
    tmp_path: Path, undisturbed: list[tuple[float, int, float]]
) -> None:
    folder = copy(tmp_path / "checkpoint", STANDS_STILL)
    with start(folder) as job:
        try:
            stand_still(folder, {1, 2})
            kill(job)
        finally:
            job.kill()
    assert statuses(folder / "checkpoint.db", "annealing") == {"running": 2, "created": ROWS - 2}

    goes_on(folder)
    assert Counter(noted(folder)) == Counter(expected({1: STILL_AT - AGAIN, 2: STILL_AT - AGAIN}))
    assert len(noted(folder)) == ROWS * SWEEPS + 2 * AGAIN
    assert outcomes(folder) == {(1, "lost"): 1, (2, "lost"): 1}
    assert lengths(folder) == undisturbed


def test_a_job_killed_while_it_saves_goes_on_where_its_checkpoints_before_were(
    tmp_path: Path, undisturbed: list[tuple[float, int, float]]
) -> None:
    folder = copy(tmp_path / "checkpoint")
    replace(folder / "run.py", DUMP, HALF + DUMP)
    with start(folder) as job:
        try:
            soon(lambda: len(list(folder.glob("*.half.log"))) == 2)
            kill(job)
        finally:
            job.kill()
    assert len(list((folder / "checkpoints").iterdir())) == 4  # of each row a whole one, and half of the next

    goes_on(folder)
    assert Counter(noted(folder)) == Counter(expected({1: EVERY, 2: EVERY}, 2 * EVERY))
    assert lengths(folder) == undisturbed


def test_a_checkpoint_of_another_table_is_not_taken(
    tmp_path: Path, undisturbed: list[tuple[float, int, float]]
) -> None:
    folder = copy(tmp_path / "checkpoint", STANDS_STILL)
    with start(folder) as job:
        try:
            stand_still(folder, {1, 2})
            kill(job)
        finally:
            job.kill()
    assert len(list((folder / "checkpoints").iterdir())) == 2
    check_ignored(folder)
    for file in folder.glob("checkpoint.db*"):
        file.unlink()
    replace(folder / "run.py", STANDS_STILL.replace("DEAF", "0"), "")
    (folder / "sweeps.log").unlink()

    run(folder)
    assert Counter(noted(folder)) == Counter(expected({}))
    assert lengths(folder) == undisturbed


def test_the_script_for_slurm_puts_a_stopped_job_into_the_queue_again(
    tmp_path: Path, undisturbed: list[tuple[float, int, float]]
) -> None:
    folder = copy(tmp_path / "checkpoint", STANDS_STILL)
    cluster = commands(tmp_path / "bin", f'exec "{sys.executable}" "$@"', "RUNNING")
    with submit(folder, cluster) as job:
        try:
            stand_still(folder, {1, 2})
            job.terminate()  # as `--signal=B:TERM@60` does it: the script alone
            job.communicate(timeout=90)
        finally:
            job.kill()
    assert job.returncode == os.EX_TEMPFAIL
    assert (tmp_path / "queue.txt").read_text() == "requeue 4711\n"
    assert statuses(folder / "checkpoint.db", "annealing") == {"created": ROWS}

    with submit(folder, cluster) as job:
        out, _ = job.communicate(timeout=120)
    assert job.returncode == 0, out
    assert (tmp_path / "queue.txt").read_text() == "requeue 4711\n"
    assert len(noted(folder)) == ROWS * SWEEPS
    assert lengths(folder) == undisturbed


@pytest.mark.parametrize(
    ("status", "state", "again"),
    [(75, "RUNNING", True), (75, "COMPLETING", False), (75, "", False), (1, "RUNNING", False), (0, "RUNNING", False)],
)
def test_the_script_for_slurm_asks_for_a_job_again_only_if_it_was_stopped_and_not_cancelled(
    tmp_path: Path, status: int, state: str, again: bool
) -> None:
    with submit(EXAMPLES / "checkpoint", commands(tmp_path / "bin", f"exit {status}", state)) as job:
        out, _ = job.communicate(timeout=90)
    assert (job.returncode, out) == (status, "")
    assert (tmp_path / "queue.txt").exists() == again


def commands(folder: Path, python: str, state: str) -> Path:
    """What a node of a cluster has on its PATH: Python, and SLURM, which knows the job's state and notes requests."""
    folder.mkdir()
    queue = folder.parent / "queue.txt"
    for name, line in {"python": python, "squeue": f"echo {state}", "scontrol": f'echo "$@" >> "{queue}"'}.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return folder


def submit(folder: Path, cluster: Path) -> subprocess.Popen[str]:
    path = f"{cluster}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", "job.sh"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "4711"},
    )
