"""`asyncexp run` and `asyncexp unpause`, piped: what is run, exit codes, what is told."""

from __future__ import annotations

import pytest

from tests.cli.conftest import MakeShell
from tests.cli.shell import Shell

sqlite_only = pytest.mark.parametrize("provider", ["sqlite"])

FUNCTIONS = """
import asyncio
from functools import partial

from asyncexp import ExperimentStatus


async def work(keys, results, custom):
    await results.process_results({"result": keys["number"]})


def in_child(keys, results, custom):
    print("prints", keys["number"])
    results.process_results({"result": keys["number"]})


async def fail_some(keys, results, custom):
    if keys["number"] > 2:
        raise ValueError(f"bad number {keys['number']}")


async def pause(keys, results, custom):
    return ExperimentStatus.PAUSED if results.attempt == 1 else None


class Thing:
    async def __call__(self, keys, results, custom):
        pass


thing = Thing()
half = partial(work, custom={})
number = 5
"""


@pytest.fixture
def study(shell: Shell) -> Shell:
    """Ten rows to be filled, and `experiment.py`."""
    shell.write("experiment.py", FUNCTIONS)
    return shell


def test_fills_runs_and_says_what_came_of_it(study: Shell) -> None:
    done = study.run("run", "experiment.py:in_child", "--fill", "--no-energy", "-n", "2")
    assert "10 done in" in done.stdout
    assert done.stdout.count("prints") == 10
    assert "progress: 10 done" in done.stderr
    assert study.json("status")["counts"]["done"] == 10


def test_experiments_in_error_are_one_and_grouped(study: Shell) -> None:
    done = study.run("run", "experiment:fail_some", "--fill", "--no-energy", code=1)
    assert "6 done, 4 error in" in done.stdout
    assert "4 × ValueError: bad number " in done.stdout  # raised at the same place, whatever the number
    assert "10 rows added, 0 existed already" in done.stderr
    assert "asyncexp retry" in done.stdout


@sqlite_only
def test_json_is_the_summary_alone(study: Shell) -> None:
    done = study.json("run", "experiment.py:in_child", "--fill", "--no-energy", "--max", "3")
    assert done["done"] == 3
    assert done["left"] == 7
    assert done["stopped_by"] is None


def test_paused_rows_are_continued_by_id(study: Shell) -> None:
    first = study.run("run", "experiment.py:pause", "--fill", "--no-energy", "--max", "2")
    assert "asyncexp unpause experiment.py:pause" in first.stdout
    refused = study.run("unpause", "experiment.py:pause", "1", "2", "3", code=1)
    assert "Experiment 3 is created" in refused.stderr
    assert study.json("status")["counts"]["paused"] == 2
    assert study.json("unpause", "experiment.py:pause", "--no-energy", "1")["done"] == 1
    assert study.json("status")["counts"]["paused"] == 1
    assert study.json("unpause", "experiment.py:pause", "--no-energy")["done"] == 1
    assert "no such row is paused" in study.run("unpause", "experiment.py:pause").stdout


@sqlite_only
def test_nothing_to_run_says_why(shell_in: MakeShell) -> None:
    shell = shell_in(keyfields={"number": {"type": "INT", "values": {"start": 0, "stop": 10}}})
    shell.write("experiment.py", FUNCTIONS)
    shell.run("run", "experiment.py:work", "--fill", "--no-energy", "--max", "0")
    assert "no row is such" in shell.run("run", "experiment.py:work", "--where", "number=77").stdout
    shell.run("run", "experiment.py:pause", "--ids", "1", "--no-energy")
    shell.run("run", "experiment.py:fail_some", "--no-energy", code=1)
    told = shell.run("run", "experiment.py:work").stdout
    assert "asyncexp retry" in told
    assert "asyncexp unpause experiment.py:work" in told
    assert "all 2 rows are done" in shell.run("run", "experiment.py:work", "--ids", "2,3").stdout


@sqlite_only
def test_a_table_that_is_not_there_is_an_error(shell_in: MakeShell) -> None:
    shell = shell_in()
    shell.write("experiment.py", FUNCTIONS)
    shell.run("run", "experiment.py:work", code=4)
