"""`asyncexp workers`: who works on the table, and what becomes of what the lost ones ran."""

from __future__ import annotations

import asyncio
import os

import pytest

from asyncexp.db.base import Target
from tests.cli.conftest import MakeShell
from tests.cli.shell import Shell
from tests.cli.support import KEYFIELDS, running, some_ran
from tests.contract import sql

sqlite_only = pytest.mark.parametrize("provider", ["sqlite"])


@pytest.fixture
def odd_shell(shell_in: MakeShell) -> Shell:
    return shell_in(keyfields=KEYFIELDS)


async def test_live_workers_are_told_and_stopped_ones_if_asked_for(odd_shell: Shell) -> None:
    async with odd_shell.experimenter(name="first") as experimenter:
        await some_ran(experimenter)
    async with odd_shell.experimenter(name="[red]second") as experimenter, running(experimenter, 2):
        live = await asyncio.to_thread(odd_shell.json, "workers")
        both = await asyncio.to_thread(odd_shell.json, "workers", "--all")
        told = (await asyncio.to_thread(odd_shell.run, "workers", "--all")).stdout
        few = (await asyncio.to_thread(odd_shell.run, "workers")).stdout
    [worker] = live
    assert (worker["state"], worker["name"], worker["running"], worker["pid"]) == (
        "live",
        "[red]second",
        2,
        os.getpid(),
    )
    assert {"heartbeat", "git_commit", "git_dirty", "slurm_job_id", "command_line", "lease"} <= worker.keys()
    assert [(each["state"], each["ended_done"], each["ended_error"]) for each in both[1:]] == [("stopped", 1, 3)]
    head, second, first, *rest = told.splitlines()
    assert head.split()[:6] == ["state", "id", "name", "machine", "pid", "since"]
    assert second.split()[:3] == ["live", str(worker["id"]), "[red]second"]
    assert first.split()[0] == "stopped"
    assert not rest
    assert few.splitlines()[-1] == "1 more have stopped: `asyncexp workers --all`"


async def test_a_lost_worker_tells_when_others_take_over(odd_shell: Shell, target: Target) -> None:
    async with odd_shell.experimenter() as experimenter:
        await some_ran(experimenter)
    assert "No worker is live; 1 were there before" in odd_shell.run("workers").stdout
    await sql.execute(target, 'UPDATE "experiments_workers" SET "stopped" = NULL, "lease" = -1')
    assert "is lost: nothing of it is left to take over" in odd_shell.run("workers").stdout
    await sql.execute(target, 'UPDATE "experiments" SET "status" = \'running\' WHERE "ID" IN (4, 5)')
    told = odd_shell.run("workers").stdout
    assert "is lost: its 2 experiments will be taken over as soon as a worker runs: `asyncexp run" in told
    [worker] = odd_shell.json("workers")
    assert (worker["state"], worker["running"], worker["rescued"]) == ("lost", 2, None)


async def test_a_lost_worker_whose_rows_were_taken_over_is_told_for_a_day(odd_shell: Shell, target: Target) -> None:
    async with odd_shell.experimenter() as experimenter:
        await some_ran(experimenter)
    await sql.execute(target, 'UPDATE "experiments_workers" SET "stopped" = NULL, "rescued" = "heartbeat"')
    assert "is lost: others took over what it ran, 0:" in odd_shell.run("workers").stdout
    await sql.execute(target, 'UPDATE "experiments_workers" SET "rescued" = \'2024-01-01 00:00:00\'')
    assert odd_shell.json("workers") == []
    assert len(odd_shell.json("workers", "--all")) == 1


@sqlite_only
def test_nobody_yet_is_said(shell: Shell) -> None:
    asyncio.run(_created(shell))
    assert shell.run("workers").stdout == "No worker yet: `asyncexp run module:function`\n"
    assert shell.json("workers") == []


async def _created(shell: Shell) -> None:
    async with shell.experimenter() as experimenter:
        await experimenter.create_table()


@sqlite_only
@pytest.mark.parametrize("columns", [80, 120])
async def test_workers_fit_their_terminal(odd_shell: Shell, target: Target, columns: int) -> None:
    async with odd_shell.experimenter(name="a name that is not short " * 3) as experimenter:
        await some_ran(experimenter)
    await sql.execute(target, 'UPDATE "experiments_workers" SET "slurm_array_job_id" = 12, "slurm_array_task_id" = 3')
    await sql.execute(target, 'UPDATE "experiments_workers" SET "git_commit" = \'abcdef0123\', "git_dirty" = 1')
    terminal = odd_shell.terminal("workers", "--all", columns=columns)
    terminal.end()
    assert max(map(len, terminal.all_lines)) <= columns
    assert "abcdef0+" in terminal.text
    assert "SLURM 12_3" in terminal.text
    assert "done 1, error 3" in terminal.text
