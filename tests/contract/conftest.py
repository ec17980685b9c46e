"""What the contract suite needs of a database: an empty one, and how to get in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from asyncexp import Experimenter
from asyncexp.db.base import Target
from tests.contract.modes import CLASSES, MODES, Mode
from tests.contract.shared import Shared
from tests.studies import experimenter

Make = Callable[..., Experimenter]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Mode:
    """Where experiment functions run."""
    chosen: Mode = request.param
    only = request.node.get_closest_marker("in_process_only")
    if only is not None and chosen != "task":
        pytest.skip(f"in this process only: {only.args[0]}")
    return chosen


@pytest.fixture
async def make(target: Target, tmp_path: Path, mode: Mode) -> AsyncIterator[Make]:
    """Makes experimenters on the database under test; each is closed after the test.

    Keywords are those of `tests.studies.write_configuration`.
    """
    made: list[Experimenter] = []

    def new(**study: Any) -> Experimenter:
        made.append(experimenter(tmp_path, target, CLASSES[mode], **study))
        return made[-1]

    yield new
    for each in made:
        await each.aclose()


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    """Makes lists and gates that experiment functions share with their test, also from a child process."""
    return Shared(tmp_path)
