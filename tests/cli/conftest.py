"""A shell in the folder of a study, on each database in turn."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncexp.db.base import Target
from tests.cli.shell import Shell
from tests.cli.support import KEYFIELDS, some_ran
from tests.studies import write_configuration, write_credentials

MakeShell = Callable[..., Shell]


def _written(folder: Path, target: Target, **study: Any) -> Shell:
    (folder / "config").mkdir(parents=True, exist_ok=True)
    write_configuration(folder / "config", target, name="experiment_configuration.yml", **study)
    if (credentials := write_credentials(folder / "config", target)) is not None:
        credentials.rename(folder / "config" / "database_credentials.yml")
    return Shell(folder)


@pytest.fixture(autouse=True, scope="session")
def _compiled_once(_own_temporary_folder: None) -> Iterator[None]:
    """What one process has compiled, the next need not compile again."""
    folder = Path(tempfile.gettempdir()) / "compiled"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPYCACHEPREFIX", str(folder))
        yield


@pytest.fixture
def shell_in(tmp_path: Path, target: Target) -> Iterator[MakeShell]:
    """Makes a study's folder, with configuration and credentials where `asyncexp` looks for them.

    Keywords are those of `tests.studies.write_configuration`.
    """
    made: list[Shell] = []

    def make(**study: Any) -> Shell:
        made.append(_written(tmp_path / "study", target, **study))
        return made[-1]

    yield make
    for shell in made:
        shell.close()


@pytest.fixture
def shell(shell_in: MakeShell) -> Shell:
    """In the folder of a study of 10 rows: `number` from 0 to 4 times `kind` a and b; see `tests.studies`."""
    return shell_in()


@pytest.fixture
def odd_shell(shell_in: MakeShell) -> Shell:
    """In the folder of a study where `some_ran`."""
    shell = shell_in(keyfields=KEYFIELDS)
    asyncio.run(_some_ran(shell))
    return shell


async def _some_ran(shell: Shell) -> None:
    async with shell.experimenter() as experimenter:
        await some_ran(experimenter)


@pytest.fixture(scope="session")
def _one_for_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("looked_at")
    shell = _written(folder, Target("sqlite", str(folder / "experiments.db")), keyfields=KEYFIELDS)
    asyncio.run(_some_ran(shell))
    return folder


@pytest.fixture
def looked_at(_one_for_all: Path) -> Iterator[Shell]:
    """In the folder of a study on SQLite where `some_ran`, made once: for tests that change nothing."""
    shell = Shell(_one_for_all)
    yield shell
    shell.close()
