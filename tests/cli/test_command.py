"""What all commands share: help, errors in a sentence, exit codes, JSON."""

from __future__ import annotations

import pytest

from tests.cli.shell import Shell

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
def test_debug_shows_where_it_happened(shell: Shell) -> None:
    assert "Traceback" in shell.run("status", "--debug", code=None).stderr


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
