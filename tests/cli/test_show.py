"""`asyncexp show`: all that is known of single experiments."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.cli.conftest import MakeShell
from tests.cli.shell import Shell
from tests.cli.support import LONG, ODD

sqlite_only = pytest.mark.parametrize("provider", ["sqlite"])


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


def test_people_read_all_of_it(looked_at: Shell) -> None:
    told = looked_at.run("show", "2", "6").stdout
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


def test_the_number_of_log_lines_is_chosen(looked_at: Shell) -> None:
    assert "0     1.0" not in looked_at.run("show", "2", "--lines", "2").stdout
    assert "0     1.0" in looked_at.run("show", "2", "--lines", "3").stdout
    assert "Log steps" not in looked_at.run("show", "2", "--lines", "0").stdout


def test_one_that_does_not_exist_is_a_sentence_and_the_others_are_shown(looked_at: Shell) -> None:
    done = looked_at.run("show", "99", "98", "1", code=1)
    assert done.stderr == "error: there is no experiment 98-99 in table 'experiments'\n"
    assert "Experiment 1  done" in done.stdout
    assert looked_at.json("show", "99", code=1) == []
    assert "'one' is no ID" in looked_at.run("show", "one", code=2).stderr


@pytest.mark.parametrize("columns", [80, 120])
def test_it_fits_its_terminal(looked_at: Shell, columns: int) -> None:
    terminal = looked_at.terminal("show", "2", columns=columns, rows=100)
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
    async with shell.experimenter() as experimenter:
        await experimenter.fill_table_from_config()

        async def run(_: object, results: object, __: object) -> None:
            await results.process_results({"text": "x" * 50_000})  # type: ignore[attr-defined]

        await experimenter.execute(run, max_experiments=1, pool="task", progress=False)
