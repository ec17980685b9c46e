"""`asyncexp errors`: what went wrong, how often, and where."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asyncexp import ExperimentStatus
from tests.cli.conftest import MakeShell
from tests.cli.shell import Shell
from tests.cli.support import fill

sqlite_only = pytest.mark.parametrize("provider", ["sqlite"])


def test_errors_are_grouped_by_exception_and_place(odd_shell: Shell) -> None:
    first, second = odd_shell.json("errors")
    assert (first["exception"], first["message"]) == ("ValueError", "bad number 1\nin [two] lines")
    assert (first["count"], first["ids"]) == (2, [2, 3])
    assert first["frame"].startswith(str(Path(__file__).with_name("support.py")))
    assert first["traceback"].startswith("Traceback")
    assert (second["exception"], second["message"], second["ids"]) == (None, "the function returned ERROR", [4])
    assert "traceback" not in odd_shell.json("errors", "--no-traceback")[0]


def test_people_read_what_went_wrong_and_what_to_do(looked_at: Shell) -> None:
    told = looked_at.run("errors").stdout
    lines = told.splitlines()
    assert lines[0] == "2 × ValueError: bad number 1\\nin [two] lines"
    assert lines[1].endswith(" in run")
    assert lines[2] == "  ID 2-3"
    assert "  │ ValueError: bad number 1\n  │ in [two] lines\n" in told
    assert "1 × the function returned ERROR\n  ID 4\n" in told
    assert lines[-2:] == [
        "3 errors of 2 kinds. When the cause is mended: `asyncexp retry`",
        "Only the first kind: `asyncexp retry 2-3`",
    ]
    assert "│" not in looked_at.run("errors", "--no-traceback").stdout


def test_where_narrows_it_and_is_named_in_what_to_do(looked_at: Shell) -> None:
    told = looked_at.run("errors", "--where", "number=2", "--where", "number=3").stdout
    assert told.endswith(
        "`asyncexp retry --where number=2 --where number=3`\nOnly the first kind: `asyncexp retry 3`\n"
    )
    assert looked_at.run("errors", "--where", "number=0").stdout == "No errors there.\n"
    assert "did you mean 'number'" in looked_at.run("errors", "--where", "numbr=0", code=2).stderr


@sqlite_only
def test_no_errors_is_good_news(shell: Shell) -> None:
    asyncio.run(fill(shell))
    assert shell.run("errors").stdout == "No errors.\n"
    assert shell.json("errors") == []


def _deep(depth: int) -> None:
    if depth:
        _other(depth - 1)
    raise LookupError("deep down " + "and far away " * 20)


def _other(depth: int) -> None:
    _deep(depth)


@sqlite_only
def test_long_tracebacks_and_many_ids_are_cut_on_a_terminal_only(shell_in: MakeShell) -> None:
    shell = shell_in(keyfields={"number": {"type": "INT", "values": {"start": 0, "stop": 60}}})
    asyncio.run(_every_third_fails(shell))
    terminal = shell.terminal("errors", rows=60)
    terminal.end()
    assert max(map(len, terminal.lines)) <= 80
    assert "lines more: --full)" in terminal.text
    assert "  ID 1 4 7 10 13 16 19 22 25 28 … (10 more)" in terminal.lines
    assert " 58" in shell.run("errors", "--all-ids", "--no-traceback").stdout.splitlines()[2]
    whole = shell.terminal("errors", "--full", rows=60)
    whole.end()
    assert "--full" not in whole.text
    assert "Traceback" in shell.run("errors").stdout


async def _every_third_fails(shell: Shell) -> None:
    async with shell.experimenter() as experimenter:
        await experimenter.fill_table_from_config()

        async def run(keyfields: dict[str, int], _: object, __: object) -> ExperimentStatus:
            if keyfields["number"] % 3 == 0:
                _deep(12)
            return ExperimentStatus.DONE

        await experimenter.execute(run, pool="task", progress=False, max_errors=-1)
