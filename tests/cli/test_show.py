"""`asyncexp show`: all that is known of single experiments."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.cli.conftest import MakeShell
from tests.cli.shell import Shell
from tests.cli.support import KEYFIELDS, LONG, ODD, opened, some_ran

sqlite_only = pytest.mark.parametrize("provider", ["sqlite"])


@pytest.fixture
def odd_shell(shell_in: MakeShell) -> Shell:
    """In the folder of a study where `some_ran`."""
    shell = shell_in(keyfields=KEYFIELDS)
    asyncio.run(_ran(shell))
    return shell


async def _ran(shell: Shell) -> None:
    async with opened(shell) as experimenter:
        await some_ran(experimenter)


def test_json_has_all_of_it(odd_shell: Shell) -> None:
    failed, paused = odd_shell.json("show", "2", "5", "--lines", "2")
    assert (failed["id"], failed["status"], failed["keyfields"]) == (2, "error", {"number": 1, "kind": ODD})
    assert failed["results"] == {"result": 0.1 + 0.2, "text": f"{LONG}\n{ODD}"}
    assert (failed["progress"], failed["message"], failed["attempt"]) == (0.5, ODD, 1)
    assert [(each["attempt"], each["outcome"]) for each in failed["attempts"]] == [(1, "error")]
    assert [line["note"] for line in failed["logs"]["steps"]] == [ODD, "1.2"]
    assert "ValueError: bad number 1" in failed["error"]
    assert (failed["worker"]["pid"], failed["worker"]["name"]) == (os.getpid(), "PyExperimenter")
    assert failed["started"] <= failed["ended"]
    assert (paused["status"], paused["error"]) == ("paused", None)


@sqlite_only
def test_people_read_all_of_it(odd_shell: Shell) -> None:
    told = odd_shell.run("show", "2", "6").stdout
    for words in (
        "Experiment 2  error\n",
        "  kind    two\n          lines, [red]no markup[/red], \\x1b[2J🙂\n",
        "  result  0.30000000000000004\n",
        "Log steps, the last of it\n",
        "two\\nlines, [red]no markup[/red], \\x1b[2J🙂\n",
        "  1  error    20",
        "ValueError: bad number 1\\nin [two] lines\n",
        "  │ ValueError: bad number 1\n  │ in [two] lines\n",
        "Experiment 6  created\n",
        f"pid {os.getpid()}\n",
        "asyncexp 0.",
    ):
        assert words in told, told
    assert LONG.strip() in told
    assert "\x1b" not in told


@sqlite_only
def test_the_number_of_log_lines_is_chosen(odd_shell: Shell) -> None:
    assert "0     1.0" not in odd_shell.run("show", "2", "--lines", "2").stdout
    assert "0     1.0" in odd_shell.run("show", "2", "--lines", "3").stdout
    assert "Log steps" not in odd_shell.run("show", "2", "--lines", "0").stdout


@sqlite_only
def test_one_that_does_not_exist_is_a_sentence_and_the_others_are_shown(odd_shell: Shell) -> None:
    done = odd_shell.run("show", "99", "98", "1", code=1)
    assert done.stderr == "error: there is no experiment 98-99 in table 'experiments'\n"
    assert "Experiment 1  done" in done.stdout
    assert odd_shell.json("show", "99", code=1) == []
    assert "'one' is no ID" in odd_shell.run("show", "one", code=2).stderr


@sqlite_only
@pytest.mark.parametrize("columns", [80, 120])
def test_it_fits_its_terminal(odd_shell: Shell, columns: int) -> None:
    terminal = odd_shell.terminal("show", "2", columns=columns, rows=100)
    terminal.end()
    assert max(map(len, terminal.all_lines)) <= columns
    assert any("two\\nlines" in line and line.endswith("…") for line in terminal.lines) == (columns == 80)
    assert b"\x1b[2J" not in terminal.raw


@sqlite_only
def test_long_values_are_cut_on_a_terminal_only(shell_in: MakeShell) -> None:
    shell = shell_in()
    asyncio.run(_long(shell))
    terminal = shell.terminal("show", "1")
    terminal.end()
    assert "… (50,000 characters: --full)" in " ".join(terminal.text.split())
    full = shell.terminal("show", "1", "--full", columns=1_000)
    full.end()
    assert full.text.count("x") >= 50_000
    assert "x" * 50_000 in shell.run("show", "1").stdout


async def _long(shell: Shell) -> None:
    async with opened(shell) as experimenter:
        await experimenter.fill_table_from_config()

        async def run(_: object, results: object, __: object) -> None:
            await results.process_results({"text": "x" * 50_000})  # type: ignore[attr-defined]

        await experimenter.execute(run, max_experiments=1, pool="task", progress=False)
