"""Run by PyExperimenter 1.4.2, in its own environment: makes a table as a study under way leaves it.

    python make.py CONFIGURATION CREDENTIALS PORT      (of which the last two may be empty)

IDs 1 to 6 are the grid, 7 and 8 two more rows that are alike. 1 is done, 2 in error, 3 paused, 4 running (its
worker ended without a word), the others created.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

from py_experimenter import database_connector_mysql  # type: ignore[import-not-found]
from py_experimenter.experiment_status import ExperimentStatus  # type: ignore[import-not-found]
from py_experimenter.experimenter import PyExperimenter  # type: ignore[import-not-found]


def run(keyfields: dict[str, Any], results: Any, _: Any) -> Any:
    results.process_logs({"steps": {"step": 1, "loss": 0.5}})
    if keyfields["seed"] == 1:
        raise ValueError("bad seed")
    results.process_results({"accuracy": 0.75, "note": "Ünï"})
    return ExperimentStatus.PAUSED if keyfields["seed"] == 2 else None


def end_without_a_word(*_: Any) -> None:
    os._exit(0)


def main() -> None:
    configuration, credentials, port = sys.argv[1:]
    if port:  # it knows no other port than 3306
        database_connector_mysql.connect = functools.partial(database_connector_mysql.connect, port=int(port))
    filler = PyExperimenter(configuration, credentials)
    filler.fill_table_from_config()
    filler.fill_table_with_rows([{"dataset": "more", "seed": 1, "rate": 0.5} for _ in range(2)])
    # It cannot read what today's CodeCarbon gives.
    worker = PyExperimenter(configuration, credentials, use_codecarbon=False)
    worker.execute(run, max_experiments=3)
    worker.execute(end_without_a_word, max_experiments=1)


if __name__ == "__main__":
    main()
