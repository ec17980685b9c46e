"""`asyncexp status`: once, and for as long as somebody watches."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from typing import Any

import pytest

from asyncexp.db.base import Target
from tests.cli.conftest import MakeShell
from tests.cli.shell import Shell, Terminal
from tests.cli.support import KEYFIELDS, LONG, fill, running, some_ran
from tests.contract import sql
from tests.servers import Server

sqlite_only = pytest.mark.parametrize("provider", ["sqlite"])
servers_only = pytest.mark.parametrize("provider", ["postgresql", "mysql"])
LOST = 'UPDATE "experiments_workers" SET "stopped" = NULL, "lease" = -1'


async def some(shell: Shell) -> None:
    async with shell.experimenter() as experimenter:
        await some_ran(experimenter)


@pytest.fixture
def odd_shell(shell_in: MakeShell) -> Shell:
    """In the folder of a study whose keyfields take long texts."""
    return shell_in(keyfields=KEYFIELDS)


async def on(terminal: Terminal, seen: Callable[[str], bool]) -> None:
    """Until the screen is like that; this process's event loop goes on."""
    async with asyncio.timeout(60):
        while not seen("\n".join(terminal.lines)):
            assert terminal.process.poll() is None, terminal.text
            await asyncio.sleep(0.02)


# ------------------------------------------------------------------------------------------- one look


async def test_a_look_tells_of_counts_workers_and_what_runs(odd_shell: Shell) -> None:
    await some(odd_shell)
    async with odd_shell.experimenter(name="busy") as experimenter, running(experimenter, 2):
        found = await asyncio.to_thread(odd_shell.json, "status")
        told = (await asyncio.to_thread(odd_shell.run, "status")).stdout
    assert found["counts"] == {"created": 0, "running": 2, "done": 1, "error": 3, "paused": 1}
    assert (found["table"], found["total"], found["eta_seconds"]) == ("experiments", 7, None)
    states = [(worker["state"], worker["name"], worker["running"]) for worker in found["workers"]]
    assert states == [("live", "busy", 2), ("stopped", "PyExperimenter", 0)]
    assert [(each["id"], each["keyfields"]["kind"], each["progress"]) for each in found["oldest"]] == [
        (6, "b", 0.25),
        (7, "c", 0.25),
    ]
    assert "workers: 1 live, 1 stopped" in told
    assert "What went wrong: `asyncexp errors`" in told
    assert "number=5 kind=b  two\\nlines, [red]no markup[/red], \\x1b[2J🙂" in told
    assert "\x1b" not in told
    assert [line for line in told.splitlines() if line.split()[:2] == ["error", "3"]]


async def test_rows_of_lost_workers_are_told_and_what_becomes_of_them(odd_shell: Shell, target: Target) -> None:
    await some(odd_shell)
    await sql.execute(target, LOST)
    await sql.execute(target, 'UPDATE "experiments" SET "status" = \'running\' WHERE "ID" = 5')
    told = odd_shell.run("status").stdout
    assert "workers: 1 lost" in told
    assert "1 of those that run belong to lost workers; they wait for a worker: `asyncexp run" in told


async def test_where_narrows_the_look(looked_at: Shell) -> None:
    found = looked_at.json("status", "--where", "number=1", "--where", "number=0", "--where", "status=error")
    assert (found["counts"]["error"], found["total"], found["eta_seconds"]) == (1, 1, None)
    assert looked_at.json("status", "--where", "kind='null'")["counts"]["error"] == 1
    assert "No row is like that." in looked_at.run("status", "--where", "number=77").stdout
    assert "did you mean 'number'" in looked_at.run("status", "--where", "numbr=1", code=2).stderr


@sqlite_only
async def test_who_has_nothing_yet_is_told_what_to_do(shell: Shell) -> None:
    assert "`asyncexp fill`" in shell.run("status", code=4).stderr
    async with shell.experimenter() as experimenter:
        await experimenter.create_table()
        assert "The table is empty: fill it with `asyncexp fill`." in shell.run("status").stdout
        await experimenter.fill_table_from_config()
    told = shell.run("status").stdout
    assert "Nobody works: `asyncexp run module:function`" in told
    assert "created      10  100.0 %" in told


@sqlite_only
@pytest.mark.parametrize("columns", [80, 120])
async def test_a_look_fits_its_terminal_whatever_the_values(odd_shell: Shell, columns: int) -> None:
    async with odd_shell.experimenter() as experimenter:
        rows = [{"number": number, "kind": LONG} for number in range(20)]
        await experimenter.fill_table_with_rows(rows)
        async with running(experimenter, 15):
            terminal = odd_shell.terminal("status", columns=columns, rows=60)
            await asyncio.to_thread(terminal.end)
    lines = terminal.all_lines
    assert max(map(len, lines)) == columns
    assert sum(LONG[:20] in line and line.endswith("…") for line in lines) == 10
    assert "… and 5 more" in lines
    assert any("\\x1b[2J" in line and "[red]no markup[/red]" in line for line in lines)


@pytest.mark.parametrize(
    ("variables", "bar", "colours"),
    [({}, "█", True), ({"NO_COLOR": "1"}, "█", False), ({"TERM": "dumb"}, "#", False)],
)
async def test_a_terminal_gets_what_it_can_show(
    looked_at: Shell, variables: dict[str, Any], bar: str, colours: bool
) -> None:
    terminal = looked_at.terminal("status", **variables)
    terminal.end()
    assert f"error         3   42.9 %  {bar * 17}" in terminal.lines
    assert (b"\x1b[31m" in terminal.raw) == colours
    assert (b"\x1b" in terminal.raw) == (variables.get("TERM") != "dumb")


# ------------------------------------------------------------------------------------------- watching


@sqlite_only
async def test_watching_repaints_in_place_until_ctrl_c(odd_shell: Shell) -> None:
    await some(odd_shell)
    terminal = odd_shell.terminal("status", "--watch", "--interval", "0.1")
    await on(terminal, lambda text: "paused        1" in text)
    async with odd_shell.experimenter() as experimenter:
        assert await experimenter.delete_experiments("paused") == 1
        await on(terminal, lambda text: "paused        0" in text)
    terminal.type("\x03")
    terminal.end(0)
    assert terminal.text.count("total") == 1
    assert max(map(len, terminal.all_lines)) <= 80


@sqlite_only
async def test_a_screen_too_small_shows_the_first_lines(odd_shell: Shell) -> None:
    async with odd_shell.experimenter() as experimenter:
        await experimenter.fill_table_with_rows([{"number": number, "kind": LONG} for number in range(20)])
        async with running(experimenter, 15):
            terminal = odd_shell.terminal("status", "--watch", rows=24)
            await on(terminal, lambda text: "longest running" in text)
            assert terminal.lines[0].startswith("every 2.0 s")
            await on(terminal, lambda text: text.endswith("… and 12 more"))
            terminal.type("\x03")
            await asyncio.to_thread(terminal.end, 0)


@sqlite_only
@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {}])
async def test_lines_follow_where_nothing_can_be_repainted(shell: Shell, variables: dict[str, Any]) -> None:
    await fill(shell)
    words = ["status", "--watch", "--interval", "0.1", *([] if variables else ["--json"])]
    terminal = shell.terminal(*words, columns=2_000, **variables)
    await on(terminal, lambda text: text.count("\n") >= 2)
    terminal.type("\x03")
    terminal.end(0)
    first, second, *_ = terminal.all_lines
    if variables:
        assert first.endswith("UTC  10 created, 0 running, 0 done, 0 error, 0 paused, 0")
        assert second == "workers, 0/s"
    else:
        assert json.loads(first)["counts"] == json.loads(second)["counts"]
        assert json.loads(first)["at"] < json.loads(second)["at"]


@servers_only
async def test_a_database_that_goes_away_is_told_in_place_and_tried_again(shell: Shell, server: Server) -> None:
    await fill(shell)
    terminal = shell.terminal("status", "--watch", "--interval", "0.1")
    await on(terminal, lambda text: "created      10" in text)
    server.stop()
    try:
        await on(terminal, lambda text: "As it was; for 0:0" in text and "created      10" in text)
    finally:
        server.start()
    await on(terminal, lambda text: "As it was" not in text and "created      10" in text)
    terminal.type("\x03")
    terminal.end(0)


@pytest.mark.parametrize("provider", ["postgresql"])
async def test_ctrl_c_ends_the_watching_of_a_database_that_does_not_answer(shell: Shell, server: Server) -> None:
    await fill(shell)
    terminal = shell.terminal("status", "--watch", "--interval", "0.1")
    await on(terminal, lambda text: "created      10" in text)
    server.freeze()
    try:
        await on(terminal, lambda text: "waiting for the database for " in text)
        terminal.signal(signal.SIGINT)
        terminal.end(0, seconds=20)
        assert terminal.raw.endswith(b"\x1b[?25h") or b"\x1b[?25h" in terminal.raw[-200:]
    finally:
        server.thaw()


@sqlite_only
def test_a_first_look_that_fails_ends_the_watching(shell: Shell) -> None:
    assert "There is no table" in shell.run("status", "--watch", code=4).stderr
