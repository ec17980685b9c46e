"""`asyncexp logs`: the lines of a log table: all, the last, or as they come."""

from __future__ import annotations

import asyncio
import json

import pytest

from asyncexp.db.base import Target
from tests.cli.shell import Shell
from tests.cli.support import ODD, fill, running
from tests.contract import sql
from tests.servers import Server

sqlite_only = pytest.mark.parametrize("provider", ["sqlite"])
EVERY = [ODD if step == 1 else f"{number}.{step}" for number in range(5) for step in range(3)]


def test_lines_come_in_their_order_all_or_the_last(odd_shell: Shell) -> None:
    assert [line["note"] for line in odd_shell.json("logs", "steps")] == EVERY
    assert [line["note"] for line in odd_shell.json("logs", "steps", "2", "4-5", "--lines", "4")] == [
        "3.2",
        "4.0",
        ODD,
        "4.2",
    ]
    head, *lines = odd_shell.run("logs", "experiments__steps", "2").stdout.splitlines()
    assert head.split() == ["ID", "attempt", "time", "(UTC)", "step", "note"]
    assert [line.split()[0] for line in lines] == ["2", "2", "2"]
    assert lines[1].endswith("  1     two\\nlines, [red]no markup[/red], \\x1b[2J🙂")


@sqlite_only
def test_attempts_that_do_not_count_are_shown_if_asked_for(odd_shell: Shell) -> None:
    asyncio.run(_retried(odd_shell))
    assert odd_shell.json("logs", "steps", "2") == []
    assert odd_shell.run("logs", "steps", "2").stderr == "no lines\n"
    assert len(odd_shell.json("logs", "steps", "2", "--all-attempts")) == 3


async def _retried(shell: Shell) -> None:
    async with shell.experimenter() as experimenter:
        assert await experimenter.retry_errors(ids=2) == 1


@sqlite_only
def test_a_wrong_name_gets_the_nearest_and_none_gets_all(shell: Shell) -> None:
    assert shell.run("logs", "setps", code=2).stderr == "error: no log table 'setps'; did you mean 'steps'?\n"
    assert shell.run("logs").stdout == "log table  columns\nsteps      step INT, note TEXT\n"
    assert shell.json("logs") == [{"name": "steps", "columns": {"step": "INT", "note": "TEXT"}}]


@sqlite_only
async def test_many_lines_come_page_by_page(shell: Shell, target: Target) -> None:
    await fill(shell)
    series = "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 12001) SELECT 1, n, 1 FROM s"
    await sql.execute(target, f'INSERT INTO "experiments__steps" ("experiment_id", "step", "_attempt") {series}')
    assert [line["step"] for line in shell.json("logs", "steps")] == list(range(1, 12_002))
    assert [line["step"] for line in shell.json("logs", "steps", "1", "-n", "2")] == [12_000, 12_001]


@pytest.mark.parametrize("columns", [80, 120])
def test_lines_fit_their_terminal(looked_at: Shell, columns: int) -> None:
    terminal = looked_at.terminal("logs", "steps", columns=columns)
    terminal.end()
    assert max(map(len, terminal.all_lines)) <= columns
    assert len(terminal.all_lines) == 1 + len(EVERY)
    assert b"\x1b[2J" not in terminal.raw


# ---------------------------------------------------------------------------------------- following


async def test_following_an_experiment_shows_its_lines_until_it_ends(odd_shell: Shell) -> None:
    async with odd_shell.experimenter() as experimenter:
        async with running(experimenter, 2):
            terminal = odd_shell.terminal("logs", "steps", "6", "--follow", "--json", columns=2_000)
            await asyncio.to_thread(terminal.wait_for, "of 5")
        await asyncio.to_thread(terminal.end, 0)
    assert [json.loads(line)["note"] for line in terminal.all_lines] == ["of 5", "the last"]


@sqlite_only
async def test_following_all_begins_with_the_last_ten_and_ends_by_ctrl_c(odd_shell: Shell) -> None:
    async with odd_shell.experimenter() as experimenter:
        terminal = odd_shell.terminal("logs", "steps", "-f", columns=120)
        await asyncio.to_thread(terminal.wait_for, "4.2")
        async with running(experimenter, 1):
            await asyncio.to_thread(terminal.wait_for, "of 5")
        await asyncio.to_thread(terminal.wait_for, "the last")
    terminal.type("\x03")
    terminal.end(0)
    notes = [line.split(None, 5)[5] for line in terminal.all_lines if line[0] != "^"]
    assert notes[0] == "note"
    assert [note.replace("\\n", "\n").replace("\\x1b", "\x1b") for note in notes[1:11]] == EVERY[-10:]
    assert notes[11:] == ["of 5", "the last"]


def test_following_what_has_ended_or_is_not_there_ends_at_once(looked_at: Shell) -> None:
    assert len(looked_at.run("logs", "steps", "1", "--follow").stdout.splitlines()) == 4
    done = looked_at.run("logs", "steps", "99", "--follow", code=1)
    assert done.stderr == "error: not all of these experiments exist\n"


@pytest.mark.parametrize("provider", ["postgresql", "mysql"])
async def test_following_goes_on_when_the_database_is_back(odd_shell: Shell, server: Server) -> None:
    terminal = odd_shell.terminal("logs", "steps", "--follow", "-n", "1", columns=200)
    await asyncio.to_thread(terminal.wait_for, "4.2")
    server.stop()
    try:
        await asyncio.to_thread(terminal.wait_for, "the database does not answer, trying on")
    finally:
        server.start()
    await asyncio.to_thread(terminal.wait_for, "the database answers again")
    async with odd_shell.experimenter() as experimenter, running(experimenter, 1):
        await asyncio.to_thread(terminal.wait_for, "of 5")
    await asyncio.to_thread(terminal.wait_for, "the last")
    terminal.type("\x03")
    terminal.end(0)
