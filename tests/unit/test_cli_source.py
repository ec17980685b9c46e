"""Which rows of the energy stand for an experiment, which colours for a status, and where whiskers end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from asyncexp.cli.figures import Series, _group
from asyncexp.cli.pictures import COLOURS, _colours
from asyncexp.cli.source import _of_latest


def test_energy_is_that_of_the_attempt_that_counts() -> None:
    energy = pd.DataFrame({"experiment_id": [1, 1, 2, 3, 9], "_attempt": [1, 2, 1, 1, 1], "joules": range(5)})
    found = _of_latest(energy, pd.Series([1, 2, 3]), pd.Series([2, 1, 4]))
    assert list(found["joules"]) == [1, 2]


def test_a_status_has_its_own_colour_whatever_its_place() -> None:
    def colours(*labels: str) -> list[Any]:
        figure: Any = SimpleNamespace(series=[Series(label) for label in labels], hue_is_ordered=False, kind="bar")
        return _colours(figure)

    assert colours("error", "done") == list(reversed(colours("done", "error")))
    assert colours("error", "rbf") == list(COLOURS[:2])


def test_a_whisker_never_points_into_its_box() -> None:
    group = _group(np.array([0.0, 9.8, 10.0, 10.0]), few=0)
    low, _, high = group.quartiles
    assert (group.whiskers[0], group.whiskers[1]) == (low, high)
    assert group.values == (0.0,)
