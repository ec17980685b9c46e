"""What the contract suite needs of a database: an empty one, and how to get in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from asyncexp import Experimenter
from asyncexp.db.base import Target
from tests.contract.modes import CLASSES, LEFT_OUT, MODES, ExecutesNothing, Mode
from tests.contract.shared import Shared
from tests.studies import experimenter

Make = Callable[..., Experimenter]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "mode" in metafunc.fixturenames:
        metafunc.parametrize("mode", _modes(metafunc.definition), indirect=True)


def _modes(test: pytest.Item) -> tuple[Mode, ...]:
    left_out = {each for name, modes in LEFT_OUT.items() if test.get_closest_marker(name) for each in modes}
    return tuple(each for each in MODES if each not in left_out)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The blocking class knows of no database: beside `test_first` one is enough for it."""
    dropped = [item for item in items if _is_blocking_on_a_server(item)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if not _is_blocking_on_a_server(item)]


def _is_blocking_on_a_server(item: pytest.Item) -> bool:
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return params.get("mode") == "blocking" and params.get("provider") != "sqlite" and item.path.stem != "test_first"


@pytest.fixture
def mode(request: pytest.FixtureRequest) -> Mode:
    """Where experiment functions run."""
    chosen: Mode = request.param
    return chosen


@pytest.fixture
async def make(target: Target, tmp_path: Path, mode: Mode, request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    """Makes experimenters on the database under test; each is closed after the test.

    Keywords are those of `tests.studies.write_configuration`.
    """
    made: list[Experimenter] = []
    idle = mode == "task" and request.node.get_closest_marker("executes_nothing") is not None
    kind = ExecutesNothing if idle else CLASSES[mode]

    def new(**study: Any) -> Experimenter:
        made.append(experimenter(tmp_path, target, kind, **study))
        return made[-1]

    yield new
    for each in made:
        await each.aclose()


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    """Makes lists and gates that experiment functions share with their test, also from a child process."""
    return Shared(tmp_path)
