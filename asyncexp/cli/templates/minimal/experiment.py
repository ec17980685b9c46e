"""Estimates pi by throwing darts: the more darts, the closer."""

from __future__ import annotations

import random
from math import pi
from typing import Any

from asyncexp import SyncResultProcessor


def run_experiment(keyfields: dict[str, Any], results: SyncResultProcessor, custom: dict[str, Any]) -> None:
    """Runs for each row of the table; what it reports goes into that row.

    Args:
        keyfields: the row's parameters, as the configuration names them.
        results: takes results and log lines.
        custom: the configuration's section `Custom`, the same for all rows.
    """
    random.seed(keyfields["seed"])
    darts = keyfields["darts"]
    hits = sum(random.random() ** 2 + random.random() ** 2 < 1 for _ in range(darts))
    estimate = custom["squares_per_circle"] * hits / darts
    results.process_results({"pi": estimate, "deviation": abs(estimate - pi)})
