"""Which rows of the energy stand for an experiment."""

from __future__ import annotations

import pandas as pd

from asyncexp.cli.source import _of_latest


def test_energy_is_that_of_the_attempt_that_counts() -> None:
    energy = pd.DataFrame({"experiment_id": [1, 1, 2, 3, 9], "_attempt": [1, 2, 1, 1, 1], "joules": range(5)})
    found = _of_latest(energy, pd.Series([1, 2, 3]), pd.Series([2, 1, 4]))
    assert list(found["joules"]) == [1, 2]
