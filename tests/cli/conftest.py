"""A shell in the folder of a study, on each database in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncexp.db.base import Target
from tests.cli.shell import Shell
from tests.studies import write_configuration, write_credentials

MakeShell = Callable[..., Shell]


@pytest.fixture
def shell_in(tmp_path: Path, target: Target) -> Iterator[MakeShell]:
    """Makes a study's folder, with configuration and credentials where `asyncexp` looks for them.

    Keywords are those of `tests.studies.write_configuration`.
    """
    made: list[Shell] = []

    def make(**study: Any) -> Shell:
        folder = tmp_path / "study"
        (folder / "config").mkdir(parents=True, exist_ok=True)
        write_configuration(folder / "config", target, name="experiment_configuration.yml", **study)
        if (credentials := write_credentials(folder / "config", target)) is not None:
            credentials.rename(folder / "config" / "database_credentials.yml")
        made.append(Shell(folder))
        return made[-1]

    yield make
    for shell in made:
        shell.close()


@pytest.fixture
def shell(shell_in: MakeShell) -> Shell:
    """In the folder of a study of 10 rows: `number` from 0 to 4 times `kind` a and b; see `tests.studies`."""
    return shell_in()
