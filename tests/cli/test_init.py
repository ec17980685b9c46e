"""`asyncexp init`: each template makes a project that runs from its beginning to its end; nothing is overwritten."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.cli.shell import Shell

ROWS = {"minimal": 20, "sklearn": 54, "async": 200}
TABLES = {"minimal": "pi", "sklearn": "svm", "async": "primes"}
FILES = {
    "config/experiment_configuration.yml",
    "config/experiment_configuration.schema.json",
    "experiment.py",
    "README.md",
    ".gitignore",
}


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Shell]:
    """In an empty folder."""
    folder = tmp_path / "empty"
    folder.mkdir()
    shell = Shell(folder)
    yield shell
    shell.close()


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("template", ROWS)
def test_a_template_runs_to_its_end(empty: Shell, template: str) -> None:
    told = empty.run("init", "--template", template).stdout
    assert _files(empty.folder) == FILES
    assert "asyncexp run experiment.py:run_experiment" in told
    assert empty.run("fill").stdout == f"✓ {ROWS[template]} rows added to {TABLES[template]}\n"
    empty.run("run", "experiment.py:run_experiment", "--no-energy")
    counts = empty.json("status")["counts"]
    assert counts == {**dict.fromkeys(counts, 0), "done": ROWS[template]}
    with closing(sqlite3.connect(empty.folder / "experiments.db")) as database:
        [(unset,)] = database.execute(f'SELECT COUNT(*) FROM "{TABLES[template]}" WHERE {_first_result(empty)} IS NULL')
    assert unset == 0


def _first_result(shell: Shell) -> str:
    content = yaml.safe_load((shell.folder / "config/experiment_configuration.yml").read_text())
    return f'"{next(iter(content["PY_EXPERIMENTER"]["Database"]["table"]["resultfields"]))}"'


@pytest.mark.parametrize("template", ROWS)
def test_an_editor_finds_the_schema_and_nothing_wrong(empty: Shell, template: str) -> None:
    empty.run("init", "study", "--template", template)
    configuration = empty.folder / "study/config/experiment_configuration.yml"
    first, _, rest = configuration.read_text().partition("\n")
    assert first.startswith("# yaml-language-server: $schema=")
    schema = json.loads((configuration.parent / first.partition("=")[2]).read_text())
    assert not list(Draft202012Validator(schema).iter_errors(yaml.safe_load(rest)))
    assert rest.count("#") > 4, "it is to be commented"


def test_nothing_is_overwritten_unless_forced(empty: Shell) -> None:
    empty.write("README.md", "mine")
    refused = empty.run("init", code=2).stderr
    assert "README.md exists" in refused
    assert "experiment.py" not in refused
    assert _files(empty.folder) == {"README.md"}
    empty.run("init", "--force")
    assert _files(empty.folder) == FILES
    assert (empty.folder / "README.md").read_text() != "mine"


def test_what_it_says_fits_a_narrow_terminal_and_tells_where_to_go(empty: Shell) -> None:
    terminal = empty.terminal("init", "my_study", columns=80, rows=40)
    told = terminal.end()
    for line in ("cd my_study", "asyncexp check", "asyncexp fill", "asyncexp status", "# the whole table"):
        assert line in told
    assert "…" not in told


def test_json_names_what_was_made(empty: Shell) -> None:
    made = empty.json("init", "there")
    assert set(made["files"]) == FILES
    assert Path(made["folder"]) == empty.folder / "there"


def test_a_folder_that_cannot_be_is_a_sentence(empty: Shell) -> None:
    empty.write("taken", "a file")
    assert "cannot be written" in empty.run("init", "taken/study", code=2).stderr


def test_a_wrong_template_is_told_the_right_ones(empty: Shell) -> None:
    said = " ".join(empty.run("init", "--template", "asinc", code=2).stderr.split())
    for name in ROWS:
        assert f"'{name}'" in said
    assert not _files(empty.folder)


def test_the_schema_goes_to_standard_output_or_into_a_file(empty: Shell) -> None:
    printed = empty.run("schema").stdout
    Draft202012Validator.check_schema(json.loads(printed))
    for _ in range(2):  # what is such a schema already is renewed
        empty.run("schema", "config/here.json")
        assert (empty.folder / "config/here.json").read_text() == printed
    empty.write("other.json", "{}")
    assert "nothing was written" in empty.run("schema", "other.json", code=1).stderr
    assert (empty.folder / "other.json").read_text() == "{}"
