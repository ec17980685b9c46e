"""What all commands share: help, errors in a sentence, exit codes, JSON."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess

import pytest

from tests.cli.conftest import MakeShell
from tests.cli.shell import COMMAND, Shell, environment

sqlite_only = pytest.mark.parametrize("provider", ["sqlite"])


@sqlite_only
def test_help_fits_eighty_columns_and_names_what_to_do_first(shell: Shell) -> None:
    terminal = shell.terminal("--help", columns=80, rows=60)
    told = terminal.end()
    assert "asyncexp init" in told
    assert max(map(len, terminal.all_lines)) <= 80


@sqlite_only
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("stauts",), 2, "status"),
        (("status", "--tabel", "x"), 2, "--table"),
        (("status", "--config", "nothing.yml"), 3, "nothing.yml"),
    ],
)
def test_a_wrong_word_gets_the_nearest_right_one_and_an_exit_code(
    shell: Shell, words: tuple[str, ...], code: int, said: str
) -> None:
    done = shell.run(*words, code=code)
    assert said in done.stderr
    assert not done.stdout


def test_a_table_that_is_not_there_is_a_sentence(shell: Shell) -> None:
    done = shell.run("status", code=4)
    assert done.stderr.startswith("error: There is no table 'experiments'")
    assert done.stderr.count("\n") == 1


@sqlite_only
@pytest.mark.parametrize(("words", "code"), [(("status",), 4), (("status", "-c", "x.yml"), 3), (("show", "x"), 2)])
def test_debug_shows_where_it_happened_and_ends_alike(shell: Shell, words: tuple[str, ...], code: int) -> None:
    told = shell.run(*words, "--debug", code=code).stderr
    assert told.startswith("Traceback")
    assert told.splitlines()[-1] == shell.run(*words, code=code).stderr.strip()


async def some_rows(shell: Shell) -> None:
    async with shell.experimenter() as experimenter:
        await experimenter.fill_table_from_config()


def in_shell(shell: Shell, line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command with what the shell makes of its standard streams."""
    command = " ".join(map(shlex.quote, COMMAND))
    return subprocess.run(
        ["/bin/bash", "-c", line.replace("asyncexp", command, 1)],
        cwd=shell.folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
    )


@sqlite_only
@pytest.mark.parametrize(
    "words", ["status", "status --json", "export -", "export - --json", "show 1", "logs", "check", "fill --dry-run"]
)
async def test_a_full_disk_behind_standard_output_is_a_sentence(shell: Shell, words: str) -> None:
    await some_rows(shell)
    done = in_shell(shell, f"asyncexp {words} > /dev/full")
    assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")


@sqlite_only
async def test_standard_streams_that_are_closed_lead_nowhere(shell: Shell) -> None:
    await some_rows(shell)
    shell.write("experiment.py", "def work(keys, results, custom):\n    print('said')\n")
    assert in_shell(shell, "asyncexp status >&-").returncode == 0
    assert "created      10" in in_shell(shell, "asyncexp status 2>&-").stdout
    assert "add --yes" in in_shell(shell, "asyncexp delete 1 <&-").stderr
    assert "add --yes" in in_shell(shell, "asyncexp delete-table <&-").stderr
    assert in_shell(shell, "asyncexp run experiment.py --no-energy <&- >&- 2>&-").returncode == 0
    assert shell.json("status")["counts"]["done"] == 10


@sqlite_only
@pytest.mark.parametrize("behind", ["2>&1 | head -1", "2> /dev/full", "> /dev/full"])
async def test_streams_that_take_no_more_cost_no_experiment_that_prints(shell: Shell, behind: str) -> None:
    await some_rows(shell)
    said = "async def work(keys, results, custom):\n    for file in (sys.stdout, sys.stderr):\n"
    shell.write("experiment.py", f"import sys\n{said}        print('said', file=file, flush=True)\n")
    in_shell(shell, f"asyncexp run experiment.py --no-energy {behind}")
    assert shell.json("status")["counts"]["done"] == 10


@sqlite_only
def test_a_folder_that_is_gone_is_a_sentence(shell: Shell) -> None:
    done = in_shell(shell, "mkdir gone; cd gone; rmdir ../gone; asyncexp status")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "the folder that this shell is in" in done.stderr


@sqlite_only
async def test_what_no_encoding_has_is_written_all_the_same(shell_in: MakeShell) -> None:
    shell = shell_in(keyfields={"kind": {"type": "VARCHAR(20)", "values": ["日本"]}})
    await some_rows(shell)
    latin = {"PYTHONIOENCODING": "latin-1"}
    assert "日本" in in_shell(shell, "asyncexp export -", **latin).stdout
    assert json.loads(in_shell(shell, "asyncexp export - --json", **latin).stdout)[0]["kind"] == "日本"
    name = "asyncexp export $'a\\xff.csv'"
    assert json.loads(in_shell(shell, f"{name} --json").stdout)["rows"] == 1
    assert "1 row" in in_shell(shell, name).stdout
    assert in_shell(shell, "asyncexp status --table $'a\\xff'").stderr.startswith("error: ")


@sqlite_only
async def test_ctrl_c_at_a_question_ends_the_command_and_changes_nothing(shell: Shell) -> None:
    await some_rows(shell)
    for words, question in ((("delete", "1"), "[y/N]"), (("delete-table",), "to delete it")):
        terminal = shell.terminal(*words)
        terminal.wait_for(question)
        terminal.type("\x03")
        await asyncio.to_thread(terminal.end, 130)
        terminal = shell.terminal(*words)
        terminal.wait_for(question)
        terminal.type("\x04")
        assert "Nothing was" in await asyncio.to_thread(terminal.end, 1)
    assert shell.json("status")["total"] == 10


def completed(shell: Shell, *words: str) -> set[str]:
    """What bash would offer for the last of these words."""
    line = " ".join(["asyncexp", *words])
    done = shell.run(code=None, _ASYNCEXP_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words)))
    return set(done.stdout.split())


@sqlite_only
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("sta",), {"status"}),
        (("reset", "--st"), {"--status"}),
        (("reset", "--status", "e"), {"error"}),
        (("reset", "--where", "k"), {"kind="}),
        (("reset", "--where", "kind="), {"kind=a", "kind=b"}),
        (("reset", "--config", "nowhere.yml", "--where", "k"), set[str]()),
    ],
)
def test_the_shell_completes_commands_options_and_values(
    shell: Shell, words: tuple[str, ...], offered: set[str]
) -> None:
    assert completed(shell, *words) == offered
