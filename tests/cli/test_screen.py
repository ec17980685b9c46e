"""The screen of `asyncexp run`, on real terminals: what it shows, how it ends, what it costs no experiment."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import MakeShell
from tests.cli.shell import COMMAND, PATIENCE_SECONDS, Shell, Terminal, environment
from tests.servers import Server

sqlite_only = pytest.mark.parametrize("provider", ["sqlite"])
RUN = ("run", "experiment.py:held", "--fill", "--no-energy")

FUNCTIONS = """
import asyncio
import os
import time
from pathlib import Path

go = Path("go")


async def held(keys, results, custom):
    print("begins", keys["number"], "[red]word[/red]", "long " * 30)
    await results.heartbeat(0.5, "half [bold]way[/bold]")
    while not go.exists():
        await asyncio.sleep(0.01)
    print("ends", keys["number"])


async def beats(keys, results, custom):
    while not go.exists():
        await results.heartbeat(0.25, "a quarter")
        await asyncio.sleep(0.01)


async def fails_but_one(keys, results, custom):
    if keys["number"]:
        raise ValueError(f"bad \\x1b[2J number {keys['number']}")
    await held(keys, results, custom)


def in_child(keys, results, custom):
    print("begins", keys["number"], "as child", os.getpid())
    while not go.exists():
        time.sleep(0.01)
    print("ends", keys["number"])


def quick(keys, results, custom):
    print("quick", keys["number"])
"""


@pytest.fixture
def study(shell_in: MakeShell) -> Shell:
    """Four rows, to be filled; its experiments wait for the file `go`."""
    return made(shell_in)


def made(shell_in: MakeShell, rows: int = 4, **study: object) -> Shell:
    shell = shell_in(keyfields={"number": {"type": "INT", "values": {"start": 0, "stop": rows}}}, **study)
    shell.write("experiment.py", FUNCTIONS)
    return shell


def go(shell: Shell) -> None:
    shell.write("go", "")


def eventually(look: Callable[[], object], told: Callable[[], object] = str, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < until, told()
        time.sleep(0.02)


def left_clean(terminal: Terminal) -> None:
    """The cursor is back, and nothing of the screen is left."""
    assert terminal.raw.rfind(b"\x1b[?25h") > terminal.raw.rfind(b"\x1b[?25l")
    assert "ago, lease" not in terminal.text
    assert "━" not in terminal.text


def counts(shell: Shell) -> dict[str, int]:
    found = shell.json("status")["counts"]
    return {status: number for status, number in found.items() if number}


@sqlite_only
@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (120, 40)])
def test_it_shows_what_runs_and_leaves_an_account(study: Shell, columns: int, rows: int) -> None:
    terminal = study.terminal(*RUN, "-n", "3", columns=columns, rows=rows)
    terminal.wait_for("lease 60 s")
    eventually(lambda: sum("half [bold]way[/bold]" in line for line in terminal.lines) == 3)
    shown = "\n".join(terminal.lines)
    for words in ("0 done  0 failed", "table experiments in sqlite experiments.db", "number=2", " 50%  ", "s ago"):
        assert words in shown, shown
    assert "number=3" not in shown
    assert shown.index("begins 2 [red]word[/red]") < shown.index("0 done")
    whole = "".join(line.ljust(columns) for line in terminal.all_lines)
    assert "begins 0 [red]word[/red] " + "long " * 30 in whole
    go(study)
    told = terminal.end()
    assert "4 done in" in told
    assert told.count("ends") == 4
    assert max(map(len, terminal.all_lines)) <= columns
    left_clean(terminal)


@sqlite_only
def test_more_than_fit_are_counted_and_a_tiny_terminal_is_enough(shell_in: MakeShell) -> None:
    shell = made(shell_in, rows=30)
    terminal = shell.terminal(*RUN, "-n", "30", columns=40, rows=10)
    eventually(lambda: "… and " in "\n".join(terminal.lines))
    assert sum("number=" in line for line in terminal.lines) <= 4
    terminal.resize(120, 40)
    eventually(lambda: any(line.startswith("… and 13 more") for line in terminal.lines), lambda: terminal.lines)
    terminal.resize(30, 5)
    eventually(lambda: "30 left" in terminal.lines[-1], lambda: terminal.lines)
    go(shell)
    assert "30 done in" in terminal.end().replace("\n", " ")
    left_clean(terminal)


@sqlite_only
def test_failures_are_shown_as_they_come(study: Shell) -> None:
    terminal = study.terminal("run", "experiment.py:fails_but_one", "--fill", "--no-energy")
    terminal.wait_for("3 failed")
    terminal.wait_for("failed  4  ValueError: bad \\x1b[2J number 3")
    go(study)
    told = terminal.end(1)
    assert "1 done, 3 error in" in told
    assert "asyncexp retry" in told
    left_clean(terminal)


@sqlite_only
def test_a_ctrl_c_is_graceful_and_says_so(study: Shell) -> None:
    terminal = study.terminal(*RUN, "-n", "2")
    terminal.wait_for("begins 1")
    terminal.type("\x03")
    terminal.wait_for("stopping: 2 still run, up to")
    terminal.wait_for("Ctrl-C again to stop now")
    go(study)
    told = terminal.end(130)
    assert "2 done in" in told
    assert "2 rows left, stopped by Ctrl-C" in told
    left_clean(terminal)
    assert counts(study) == {"created": 2, "done": 2}


@sqlite_only
@pytest.mark.parametrize("function", ["held", "in_child"])
def test_a_second_ctrl_c_stops_now(study: Shell, function: str) -> None:
    terminal = study.terminal("run", f"experiment.py:{function}", "--fill", "--no-energy", "-n", "2")
    terminal.wait_for("begins 1")
    terminal.type("\x03")
    terminal.wait_for("stopping: 2 still run")
    terminal.type("\x03")
    assert "2 released in" in terminal.end(130)
    left_clean(terminal)
    assert counts(study) == {"created": 4}


@sqlite_only
def test_sigterm_is_as_a_ctrl_c(study: Shell) -> None:
    terminal = study.terminal(*RUN, "-n", "2")
    terminal.wait_for("begins 1")
    terminal.signal(signal.SIGTERM)
    terminal.wait_for("stopping: 2 still run")
    terminal.signal(signal.SIGTERM)
    assert "2 released in" in terminal.end(143)
    left_clean(terminal)
    assert counts(study) == {"created": 4}


@sqlite_only
def test_sigterm_before_anything_runs_ends_it_cleanly(study: Shell) -> None:
    """While it still waits for a database that is away, say."""
    study.write(
        "slow.py",
        "from asyncexp import Experimenter as E\nimport asyncio\n"
        "async def execute(*_, **__):\n    print('waits')\n    await asyncio.Event().wait()\n"
        "E.execute = execute\ndef f(a, b, c): ...\n",
    )
    terminal = study.terminal("run", "slow.py:f", "--fill", "--no-energy")
    terminal.wait_for("waits")
    terminal.signal(signal.SIGTERM)
    terminal.end(143)
    left_clean(terminal)


@sqlite_only
@pytest.mark.parametrize("function", ["held", "in_child"])
@pytest.mark.parametrize("plain", [[], ["--plain"]])
def test_a_closed_terminal_stops_the_run_in_good_order(study: Shell, function: str, plain: list[str]) -> None:
    log = study.folder / "run.log"
    words = ("run", f"experiment.py:{function}", "--fill", "--no-energy", "-n", "2", "--log-file", "run.log")
    terminal = study.terminal(*words, *plain)
    terminal.wait_for("begins 0")
    terminal.wait_for("begins 1")
    terminal.hang_up()
    eventually(lambda: "SIGTERM: no more experiments are started" in output(log))
    go(study)
    assert terminal.process.wait(PATIENCE_SECONDS) == 143
    assert counts(study) == {"created": 2, "done": 2}, "what an experiment prints to a closed terminal ends no row"


@sqlite_only
def test_nohup_is_respected(study: Shell) -> None:
    command = ["nohup", *COMMAND, *RUN, "-n", "2"]
    terminal = Terminal(command, study.folder, 80, 24, environment())
    eventually(lambda: "begins 1" in output(study.folder / "nohup.out"))
    terminal.hang_up()
    go(study)
    assert terminal.process.wait(PATIENCE_SECONDS) == 0
    assert "4 done in" in output(study.folder / "nohup.out")
    terminal.close()


def output(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@sqlite_only
def test_a_child_that_is_killed_costs_its_experiment_alone(study: Shell) -> None:
    terminal = study.terminal("run", "experiment.py:in_child", "--fill", "--no-energy", "-n", "1")
    terminal.wait_for("as child ")
    pid = re.search(r"as child (\d+)", terminal.text)
    assert pid is not None
    psutil.Process(int(pid[1])).kill()
    terminal.wait_for("killed by SIGKILL")
    go(study)
    assert "3 done, 1 error in" in terminal.end(1)
    left_clean(terminal)


@pytest.mark.parametrize("provider", ["postgresql"])
def test_a_database_that_is_away_is_shown_and_costs_nothing(study: Shell, server: Server) -> None:
    terminal = study.terminal("run", "experiment.py:beats", "--fill", "--no-energy")
    terminal.wait_for("a quarter")
    server.stop()
    try:
        terminal.wait_for("database away since")
    finally:
        server.start()
    eventually(lambda: "sign of life" in "\n".join(terminal.lines))
    go(study)
    assert "4 done in" in terminal.end()
    left_clean(terminal)


@pytest.mark.parametrize("provider", ["postgresql"])
def test_a_database_that_is_away_at_the_beginning_is_waited_for(study: Shell, server: Server) -> None:
    study.run("run", "experiment.py:quick", "--fill", "--max", "0", "--no-energy")
    server.stop()
    try:
        terminal = study.terminal("run", "experiment.py:quick", "--no-energy")
        terminal.wait_for("Trying for 60 s to reach the database")
    finally:
        server.start()
    assert "4 done in" in terminal.end()
    left_clean(terminal)


@pytest.mark.parametrize("provider", ["postgresql"])
def test_an_outage_that_stops_it_is_four(study: Shell, server: Server) -> None:
    words = ("run", "experiment.py:beats", "--fill", "--no-energy", "--on-outage", "stop")
    terminal = study.terminal(*words)
    terminal.wait_for("a quarter")
    server.stop()
    try:
        terminal.wait_for("stopping, the database is away: 4 still run")
    finally:
        server.start()
    go(study)
    assert "stopped: the database is away" in terminal.end(4).replace("\n", " ")
    left_clean(terminal)


@pytest.mark.parametrize("provider", ["sqlite", "postgresql"])
def test_a_stop_that_somebody_asks_for_is_well(shell_in: MakeShell) -> None:
    study = made(shell_in, execution={"heartbeat_interval": 0.2, "lease": 30})
    terminal = study.terminal(*RUN, "-n", "2")
    terminal.wait_for("begins 1")
    study.run("stop", "--all")
    terminal.wait_for("stopping, as somebody asked: 2 still run")
    go(study)
    assert "2 rows left, stopped, as somebody asked" in terminal.end(0).replace("\n", " ")
    left_clean(terminal)


@sqlite_only
def test_the_first_failures_all_alike_stop_it(shell_in: MakeShell) -> None:
    shell = made(shell_in, rows=60)
    shell.write("fails.py", "async def f(keys, results, custom):\n    raise ValueError('alike')\n")
    terminal = shell.terminal("run", "fails.py", "--fill", "--no-energy")
    told = terminal.end(1)
    assert "stopped: too many errors" in told
    assert "× ValueError: alike  (ID 1, 2, 3, 4, 5, …)" in told
    left_clean(terminal)


@sqlite_only
def test_a_dumb_terminal_gets_lines(study: Shell) -> None:
    terminal = study.terminal("run", "experiment.py:quick", "--fill", "--no-energy", TERM="dumb")
    told = terminal.end()
    assert "progress: 4 done, 0 failed" in told
    assert b"\x1b" not in terminal.raw


@sqlite_only
def test_plain_lines_and_none_if_asked_for(study: Shell) -> None:
    terminal = study.terminal("run", "experiment.py:quick", "--fill", "--no-energy", "--plain")
    assert "progress: 4 done, 0 failed" in terminal.end()
    assert b"\x1b[?25l" not in terminal.raw
    quiet = study.run("run", "experiment.py:quick", "--quiet", "--no-energy")
    assert quiet.stderr == ""
    assert "all 4 rows are done" in quiet.stdout


@sqlite_only
def test_without_colour_there_is_none(study: Shell) -> None:
    terminal = study.terminal(*RUN, NO_COLOR="1")
    terminal.wait_for("sign of life")
    go(study)
    terminal.end()
    assert not re.search(rb"\x1b\[(3\d|9\d|4\d)(;\d+)*m", terminal.raw)
    left_clean(terminal)


@sqlite_only
def test_results_in_a_file_leave_the_bar_on_the_terminal(study: Shell) -> None:
    script = f"{' '.join(COMMAND)} run experiment.py:quick --fill --no-energy > out.txt"
    terminal = Terminal(["/bin/sh", "-c", script], study.folder, 80, 24, environment())
    told = terminal.end()
    terminal.close()
    assert "4 done  0 failed" in told
    assert "quick" not in told
    written = (study.folder / "out.txt").read_text()
    assert written.count("quick") == 4
    assert "4 done in" in written
    assert os.linesep + "progress" not in written
