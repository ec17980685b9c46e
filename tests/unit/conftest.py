"""What the unit tests of the process pool are given."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asyncexp import Experimenter
from asyncexp.db.base import Target
from tests.contract.shared import Shared
from tests.contract.support import numbers
from tests.studies import experimenter
from tests.unit.children import Study


@pytest.fixture
async def study(sqlite_target: Target, tmp_path: Path) -> AsyncIterator[Study]:
    """Makes experimenters on a table with so many rows; each is closed after the test."""
    made: list[Experimenter] = []

    async def filled(count: int = 1, **settings: Any) -> Experimenter:
        made.append(experimenter(tmp_path, sqlite_target, keyfields=numbers(count), **settings))
        await made[-1].fill_table_from_config()
        return made[-1]

    yield filled
    for each in made:
        await each.aclose()


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    """Makes lists and gates that experiment functions share with their test."""
    return Shared(tmp_path)
