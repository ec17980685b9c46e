"""`asyncexp fill`: what it would do, what it did, rows from files, and nothing half-done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from asyncexp.db.base import Target
from tests.cli.conftest import MakeShell
from tests.cli.shell import Shell
from tests.conftest import PROVIDERS
from tests.contract.sql import fetch as sql
from tests.servers import Server

sqlite_only = pytest.mark.parametrize("provider", ["sqlite"])
on_servers = pytest.mark.parametrize("provider", ["postgresql", "mysql"])
TYPED: dict[str, Any] = {
    "number": {"type": "INT"},
    "rate": {"type": "DOUBLE"},
    "word": {"type": "VARCHAR(20)"},
    "yes": {"type": "BOOLEAN"},
    "day": {"type": "DATETIME"},
    "more": {"type": "JSON"},
}
FILES = [(provider, "rows.csv") for provider in PROVIDERS]
FILES += [("sqlite", f"rows.{kind}") for kind in ("json", "jsonl", "parquet")]
CSV = 'number,rate,word,yes,day,more\n1,1e-3,001,true,2024-02-03,"{""a"": [1]}"\n2,,,0,,\n'


async def _rows(target: Target, table: str = "experiments") -> int:
    [(count,)] = await sql(target, f'SELECT COUNT(*) FROM "{table}"')
    return int(count)


async def test_a_dry_run_tells_and_writes_nothing(shell: Shell, target: Target) -> None:
    told = shell.run("fill", "--dry-run").stdout
    assert told.startswith("10 rows would be added. Nothing was written.\n")
    assert "… and 5 more" in told
    assert shell.json("fill", "--dry-run")["first"][1] == {"number": 0, "kind": "b"}
    assert "There is no table" in shell.run("status", code=4).stderr
    if target.provider == "sqlite":
        assert not list(Path(target.database).parent.glob("*.db*")), "not even the file"


async def test_a_fill_tells_what_was_added_and_what_existed(shell: Shell, target: Target) -> None:
    assert shell.run("fill").stdout == "✓ 10 rows added to experiments\n"
    assert shell.run("fill").stdout == "✓ Nothing to add to experiments: 10 rows exist already\n"
    await sql(target, 'DELETE FROM "experiments" WHERE "number" = 0 AND "kind" = \'a\'')
    assert shell.run("fill", "--dry-run").stdout.startswith("1 row would be added, 9 of 10 rows exist already.")
    assert shell.json("fill") == {"added": 1, "existed": 9}
    assert await _rows(target) == 10


@on_servers
async def test_a_database_that_is_missing_is_made_if_asked(shell: Shell, target: Target, server: Server) -> None:
    server.drop(target.database)
    refused = shell.run("fill", code=4).stderr
    assert "asyncexp fill --create-database" in refused
    assert shell.json("fill", "--dry-run", "--create-database")["existing"] == 0
    shell.run("fill", "--dry-run", code=4)
    assert shell.json("fill", "--create-database") == {"added": 10, "existed": 0}
    assert await _rows(target) == 10


def _write(shell: Shell, name: str) -> None:
    rows = [
        {"number": 1, "rate": 1e-3, "word": "001", "yes": True, "day": "2024-02-03", "more": {"a": [1]}},
        {"number": 2, "rate": None, "word": None, "yes": False, "day": None, "more": None},
    ]
    if name.endswith("csv"):
        shell.write(name, CSV)
    elif name.endswith("json"):
        shell.write(name, json.dumps(rows))
    elif name.endswith("jsonl"):
        shell.write(name, "".join(f"{json.dumps(row)}\n" for row in rows) + "\n")
    else:
        pytest.importorskip("pyarrow")
        pd.DataFrame(rows).drop(columns="more").assign(more=None).to_parquet(shell.folder / name)


@pytest.mark.parametrize(("provider", "name"), FILES)
async def test_rows_of_a_file_are_typed_by_their_columns(shell_in: MakeShell, target: Target, name: str) -> None:
    shell = shell_in(keyfields=TYPED)
    _write(shell, name)
    first, second = shell.json("fill", "--rows", name, "--dry-run")["first"]
    assert (first["number"], first["rate"], first["word"], first["yes"]) == (1, 0.001, "001", True)
    assert first["day"].startswith("2024-02-03T00:00:00")
    assert first["more"] == (None if name.endswith("parquet") else {"a": [1]})
    assert second == {"number": 2, "rate": None, "word": None, "yes": False, "day": None, "more": None}
    assert shell.json("fill", "--rows", name) == {"added": 2, "existed": 0}
    assert shell.json("fill", "--rows", name) == {"added": 0, "existed": 2}
    assert await _rows(target) == 2


@sqlite_only
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "number,knd\n1,a\n", "a.csv: row 1: no keyfield 'knd'; did you mean 'kind'?"),
        ("a.csv", "number,kind\n1,a\nx,b\n", "a.csv: row 2, keyfield 'number': 'x' (str) does not fit INT"),
        ("a.csv", "number\n1\n", "a.csv: row 1: keyfield 'kind' is missing"),
        ("a.csv", "number,kind\n1\n", "a.csv, line 2: has fewer cells than the heading"),
        ("a.csv", "number,kind\n1,a,b\n", "a.csv, line 2: has more cells than the heading"),
        ("a.csv", "number,kind\n", "a.csv: There are no rows"),
        ("a.csv", "", "a.csv: There are no rows"),
        ("a.json", '{"number": 1}', "a.json: a list of rows is wanted"),
        ("a.json", "[1]", "a.json, row 1: a row is an object"),
        ("a.json", "[", "a.json: is no JSON"),
        ("a.jsonl", '{"number": 1, "kind": "a"}\n{"number"', "a.jsonl, line 2: is no JSON"),
        ("a.parquet", "no", "a.parquet: "),
        ("a.cvs", "", "no kind of file '.cvs'; did you mean '.csv'"),
    ],
)
def test_a_file_that_is_wrong_is_told_where_and_nothing_is_written(
    shell: Shell, name: str, content: str, said: str
) -> None:
    shell.write(name, content)
    refused = shell.run("fill", "--rows", name, code=None)
    assert refused.returncode in (2, 3)
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not refused.stdout
    assert not list(shell.folder.rglob("*.db"))


@sqlite_only
def test_a_file_that_is_not_there_is_a_sentence(shell: Shell) -> None:
    assert "none.csv: cannot be read" in shell.run("fill", "--rows", "none.csv", code=2).stderr


@sqlite_only
def test_many_rows_show_how_far_they_are(shell_in: MakeShell) -> None:
    shell = shell_in(keyfields={"number": {"type": "INT", "values": {"start": 0, "stop": 40_000}}})
    terminal = shell.terminal("fill", columns=80)
    assert "✓ 40,000 rows added to experiments" in terminal.end()
    assert b"/40000" in terminal.raw


@sqlite_only
def test_a_fill_that_is_stopped_says_how_far_it_came_and_goes_on(shell_in: MakeShell) -> None:
    shell = shell_in(keyfields={"number": {"type": "INT", "values": {"start": 0, "stop": 300_000}}})
    terminal = shell.terminal("fill")
    terminal.wait_for("0000/300000")
    terminal.type("\x03")
    told = terminal.end(130)
    added = int(told.partition("Stopped behind ")[2].partition(" rows and those under way")[0].replace(",", ""))
    filled = shell.json("fill")
    assert added <= filled["existed"] <= added + 10_000, "a batch may have been under way"
    assert filled["added"] == 300_000 - filled["existed"]


@sqlite_only
@pytest.mark.parametrize("columns", [80, 120])
def test_the_first_rows_fit_the_terminal(shell_in: MakeShell, columns: int) -> None:
    long = {"type": "TEXT", "values": ["[red]a long text " * 20]}
    shell = shell_in(keyfields={"number": {"type": "INT", "values": [1, 2]}, "long": long})
    terminal = shell.terminal("fill", "--dry-run", columns=columns)
    told = terminal.end()
    assert "[red]" in told, "text is no markup"
    assert max(map(len, terminal.all_lines)) <= columns
