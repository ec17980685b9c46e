"""The other side of S2: runs under the interpreter that has PyExperimenter 1.4.2, knows nothing of asyncexp.

    python legacy.py <configuration> <rows>

Prints one JSON object.
"""

import json
import logging
import sqlite3
import sys
import time
from importlib.metadata import version
from typing import Any

from py_experimenter.experimenter import PyExperimenter  # type: ignore[import-not-found]

WARM_UP = 2


def no_op(keyfields: dict[str, Any], result_processor: Any, _custom_fields: dict[str, Any]) -> None:
    result_processor.process_results({"result": float(keyfields["number"])})


def main(configuration: str, rows: int) -> None:
    experimenter = PyExperimenter(
        experiment_configuration_file_path=configuration, use_codecarbon=False, log_level=logging.ERROR
    )
    experimenter.fill_table_from_config()
    experimenter.execute(no_op, n_jobs=1, max_experiments=WARM_UP)
    began = time.perf_counter()
    experimenter.execute(no_op, n_jobs=1)
    seconds = time.perf_counter() - began
    table = experimenter.get_table()
    done = int((table["status"] == "done").sum())
    print(
        json.dumps(
            {
                "version": version("py-experimenter"),
                "seconds": seconds,
                "done": done,
                "timed": rows - WARM_UP,
            }
        )
    )
    if done != rows:
        sys.exit(f"{done} of {rows} rows are done; sqlite {sqlite3.sqlite_version}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
