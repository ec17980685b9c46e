"""Scripts written for PyExperimenter run with their import lines changed, and leave the same tables as with it.

With the import lines of old they run with PyExperimenter 1.4.2 itself, wherever its environment can be made.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from tests import legacy
from tests.examples.test_examples import EXAMPLES, MADE, ROOT, check_ignored

FOLDER = EXAMPLES / "migrating"
OLD_IMPORTS = {
    "PyExperimenter": "from py_experimenter.experimenter import PyExperimenter",
    "ResultProcessor": "from py_experimenter.result_processor import ResultProcessor",
    "ExperimentStatus": "from py_experimenter.experiment_status import ExperimentStatus",
}


class Example(NamedTuple):
    """What a script leaves in its database."""

    table: str
    keyfields: tuple[str, ...]
    results: tuple[str, ...]
    statuses: dict[str, int]
    logs: dict[str, int]
    said: str


EXPECTED = {
    "general": Example(
        "curves",
        ("curve", "degree", "seed"),
        ("train_error", "test_error", "polynomial"),
        {"created": 3, "done": 18},
        {},
        r"done +17\nerror +3\nstatus\ncreated +3\ndone +17\n[^~]*step +1 +NaN +NaN\n",
    ),
    "general_cfg": Example(
        "curves",
        ("curve", "degree", "seed"),
        ("train_error", "test_error", "polynomial"),
        {"done": 15, "error": 3},
        {},
        r"sine +1 +0.143 +0.157\n",
    ),
    "logtables": Example(
        "descent",
        ("rate", "seed"),
        ("best_step", "best_loss"),
        {"done": 6},
        {"steps": 48, "improvements": 48},
        r"0.1 +16 +0.162548\n[^~]*great +32\nsmall +16\n",
    ),
    "conditional": Example(
        "smoothing",
        ("kernel", "width", "exponent", "seed"),
        ("deviation",),
        {"done": 16},
        {},
        r"mean +-1.0 +-1 +3 +0.651\n",
    ),
    "attach": Example("sums", ("upper",), ("total", "parts"), {"done": 3}, {"parts": 9}, r"1000 +done +499500 +3\n"),
    "pause": Example(
        "training",
        ("seed",),
        ("loss_half_way", "loss"),
        {"done": 2, "paused": 1},
        {"epochs": 11},
        r"1 paused first_part\n +2 paused first_part\n +3 +done first_part\n",
    ),
    "codecarbon": Example("primes", ("upper",), ("primes",), {"done": 3}, {}, r"20000 +2262\n"),
}
NOT_THERE = {
    "general_cfg": "yaml.parser.ParserError",
    "attach": "ValueError: Attaching is not supported for sqlite databases",
}
"""What PyExperimenter 1.4.2 itself says to those it cannot run."""


def copy(name: str, to: Path) -> Path:
    return Path(shutil.copytree(FOLDER / name, to / name, ignore=MADE))


def run(python: Path | str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script from its folder, as its user would."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [python, "-W", "default", "run.py"],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


def run_here(folder: Path) -> str:
    """Runs a script with this project; what it printed."""
    done = run(sys.executable, folder, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()
    return done.stdout


def run_there(folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script with PyExperimenter 1.4.2, whose import lines it gets."""
    script = folder / "run.py"
    text, changed = re.subn(r"from asyncexp\.sync import (.*)", _old_lines, script.read_text())
    assert changed == 1
    assert "asyncexp" not in text
    script.write_text(text)
    return run(legacy.python(), folder, HOME=str(folder))


def _old_lines(line: re.Match[str]) -> str:
    return "\n".join(OLD_IMPORTS[name] for name in line[1].split(", "))


def rows(database: Path, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(statement).fetchall()


def written(folder: Path, example: Example) -> pd.DataFrame:
    """What the script wrote into the columns that both know, whatever the order of the rows; each row once."""
    names = ("status", *example.keyfields, *example.results, "name", "machine", "error")
    found = rows(folder / f"{folder.name}.db", f"SELECT {', '.join(names)} FROM {example.table}")
    frame = pd.DataFrame(found, columns=list(names))
    frame["error"] = frame["error"].str.strip().str.split("\n").str[-1]
    return frame.drop_duplicates(list(example.keyfields)).sort_values(list(example.keyfields), ignore_index=True)


def logged(folder: Path, example: Example, log: str) -> list[tuple[Any, ...]]:
    """The lines of a log table, with the keyfields of their experiment instead of its ID, in order."""
    database = folder / f"{folder.name}.db"
    table = f"{example.table}__{log}"
    names = [name for _, name, *_ in rows(database, f"PRAGMA table_info({table})")]
    own = [f"log.{name}" for name in names if name not in ("ID", "experiment_id", "timestamp", "_attempt")]
    columns = ", ".join([*example.keyfields, *own])
    statement = f"SELECT {columns} FROM {table} log JOIN {example.table} row ON row.ID = log.experiment_id"
    return rows(database, f"{statement} ORDER BY {', '.join(example.keyfields)}, log.ID")


@pytest.mark.parametrize("name", EXPECTED)
def test_a_script_of_the_predecessor_runs_with_its_import_lines_changed(name: str, tmp_path: Path) -> None:
    example = EXPECTED[name]
    folder = copy(name, tmp_path / FOLDER.name)
    printed = run_here(folder)
    assert re.search(example.said, printed), printed

    database = folder / f"{name}.db"
    assert dict(rows(database, f"SELECT status, COUNT(*) FROM {example.table} GROUP BY status")) == example.statuses
    for log, lines in example.logs.items():
        assert len(logged(folder, example, log)) == lines
    tables = {table for (table,) in rows(database, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert {example.table, *(f"{example.table}__{log}" for log in example.logs)} <= tables
    check_ignored(folder.parent)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXPECTED.keys() - NOT_THERE.keys()))
def test_it_leaves_the_tables_that_the_predecessor_leaves(name: str, tmp_path: Path) -> None:
    example = EXPECTED[name]
    here, there = copy(name, tmp_path / "here"), copy(name, tmp_path / "there")
    for file in there.rglob("*.yml"):  # on SQLite 1.4.2 runs rows twice when it runs several at once
        file.write_text(file.read_text().replace("n_jobs: 2", "n_jobs: 1"))
    run_here(here)
    done = run_there(there)
    assert done.returncode == 0, done.stderr
    theirs = written(there, example)
    assert len(theirs) == sum(example.statuses.values())
    pd.testing.assert_frame_equal(written(here, example), theirs, check_dtype=False)
    for log, lines in example.logs.items():
        found = logged(there, example, log)
        assert len(found) == lines
        assert sorted(logged(here, example, log)) == sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOT_THERE)
def test_the_predecessor_cannot_run_the_others(name: str, tmp_path: Path) -> None:
    """So there is nothing to compare with: that they run is an improvement."""
    done = run_there(copy(name, tmp_path))
    assert NOT_THERE[name] in done.stderr
    table = EXPECTED[name].table
    database = tmp_path / name / f"{name}.db"
    assert not database.exists() or rows(database, f"SELECT COUNT(*) FROM {table} WHERE status = 'done'") == [(0,)]


def test_every_example_of_the_folder_is_run() -> None:
    assert {path.parent.name for path in FOLDER.glob("*/run.py")} == EXPECTED.keys()
