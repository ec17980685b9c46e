"""`asyncexp create`, `migrate` and `delete-table`: they ask first, and say what they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asyncexp.db import connect
from asyncexp.db.base import Target
from tests.cli.conftest import MakeShell
from tests.cli.shell import Shell
from tests.cli.support import fill
from tests.contract.sql import fetch as sql

sqlite_only = pytest.mark.parametrize("provider", ["sqlite"])
MORE: dict[str, Any] = {"resultfields": {"result": "DOUBLE", "text": "TEXT", "score": "DOUBLE"}}


async def _tables(target: Target) -> list[str]:
    database = connect(target)
    try:
        return sorted(await database.tables("experiments"))
    finally:
        await database.close()


async def _columns(target: Target) -> set[str]:
    database = connect(target)
    try:
        return {name for name, _ in await database.columns("experiments") or ()}
    finally:
        await database.close()


async def test_create_makes_the_tables_and_no_rows(shell: Shell, target: Target) -> None:
    made = shell.json("create")
    assert await _tables(target) == sorted(made["tables"])
    assert await sql(target, 'SELECT COUNT(*) FROM "experiments"') in ([(0,)], [[0]])
    shell.run("create")


async def test_migrate_tells_asks_and_adds(shell_in: MakeShell, target: Target) -> None:
    await fill(shell_in())
    shell = shell_in(**MORE)
    assert "asyncexp migrate" in shell.run("status", code=4).stderr
    told = shell.run("migrate", "--dry-run").stdout
    assert "score" in told
    assert "Nothing was changed" in told
    assert "add --yes" in shell.run("migrate", code=2).stderr
    assert shell.json("migrate", "--dry-run") == {"migrated": False, "lacking": {"experiments": ["score"]}}
    assert "score" not in await _columns(target)
    assert shell.json("migrate", "--yes") == {"migrated": True, "lacking": {"experiments": ["score"]}}
    assert "score" in await _columns(target)
    assert shell.run("migrate").stdout == "✓ The tables of experiments lack nothing\n"


@sqlite_only
@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1)])
async def test_somebody_on_a_terminal_is_asked(shell_in: MakeShell, target: Target, answer: str, code: int) -> None:
    await fill(shell_in())
    terminal = shell_in(**MORE).terminal("migrate")
    terminal.wait_for("Add this to the tables?")
    terminal.type(answer)
    terminal.end(code)
    assert ("score" in await _columns(target)) == (code == 0)


@sqlite_only
def test_a_dry_run_of_migrate_makes_no_file(shell: Shell, target: Target) -> None:
    assert "experiments__steps" in shell.run("migrate", "--dry-run").stdout
    assert not Path(target.database).exists()


async def test_delete_table_deletes_all_of_it(shell: Shell, target: Target) -> None:
    await fill(shell)
    assert "add --yes" in shell.run("delete-table", code=2).stderr
    assert await _tables(target)
    assert shell.json("delete-table", "--yes") == {"table": "experiments", "rows": 10}
    assert not await _tables(target)
    assert "There is no table" in shell.run("delete-table", "--yes", code=4).stderr


@sqlite_only
@pytest.mark.parametrize(("answer", "code"), [("experiments\r", 0), ("y\r", 1), ("\r", 1)])
async def test_the_name_of_the_table_must_be_typed(shell: Shell, target: Target, answer: str, code: int) -> None:
    await fill(shell)
    terminal = shell.terminal("delete-table")
    terminal.wait_for("Type the table's name")
    terminal.type(answer)
    told = terminal.end(code)
    assert ("Nothing was deleted." in told) == (code == 1)
    assert bool(await _tables(target)) == (code == 1)


@sqlite_only
def test_looking_makes_no_file(shell: Shell, target: Target) -> None:
    for words in (("status",), ("delete-table", "--yes")):
        assert "fill it first (`asyncexp fill`)" in shell.run(*words, code=4).stderr
        assert not Path(target.database).exists()
