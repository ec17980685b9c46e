"""Studies with results in them, for the commands that take results out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from asyncexp import ResultProcessor
from tests.cli.shell import Shell

Experiment = Callable[[dict[str, Any], ResultProcessor, dict[str, Any]], Awaitable[None]]

KEYFIELDS: Mapping[str, Any] = {
    "kernel": {"type": "VARCHAR(30)", "values": ["rbf", "50% of x_1 & y"]},
    "seed": {"type": "INT", "values": {"start": 0, "stop": 4}},
    "c": {"type": "DOUBLE", "values": [0.01, 100]},
}
RESULTFIELDS = {
    "accuracy": "DOUBLE",
    "large": "BIGINT",
    "exact": "NUMERIC(10,2)",
    "flag": "BOOLEAN",
    "moment": "DATETIME",
    "words": "LONGTEXT",
    "tree": "JSON",
    "never": "DOUBLE",
}
LOGTABLES = {"steps": {"step": "INT", "loss": "DOUBLE", "seed_used": "TEXT"}}
BIG = 9_007_199_254_740_993
"""No float has this value."""
WORDS = '=1+1, "naïve" 😀\nsecond; NA'
TREE = {"ü": [1, 2.5, None], "a": {"b": True}}
MOMENT = datetime(2024, 5, 6, 7, 8, 9, 123456)


async def odd(keyfields: dict[str, Any], result_processor: ResultProcessor, _: dict[str, Any]) -> None:
    """Reports values of every type; of seed 2 all of them NULL, and seed 3 fails."""
    seed = keyfields["seed"]
    for step in range(3):
        await result_processor.process_logs({"steps": {"step": step, "loss": 1 / (step + 1), "seed_used": str(seed)}})
    if seed == 3:
        raise ValueError("singular")
    values = {"large": BIG, "exact": 1.25, "flag": seed == 1, "moment": MOMENT, "words": WORDS, "tree": TREE}
    told = values | {"accuracy": 0.5 + seed / 10}
    await result_processor.process_results(dict.fromkeys(told) if seed == 2 else told)


ODD_STUDY: Mapping[str, Any] = {"keyfields": KEYFIELDS, "resultfields": RESULTFIELDS, "logtables": LOGTABLES}


async def run(
    shell: Shell, experiment: Experiment = odd, rows: list[dict[str, Any]] | None = None, **more: Any
) -> None:
    """Fills the table of the shell's study and runs the experiment for each row.

    Args:
        rows: instead of the configuration's.
    """
    energy = more.pop("use_codecarbon", False)
    async with shell.experimenter(use_codecarbon=energy, log_level="CRITICAL") as experimenter:
        await (experimenter.fill_table_from_config() if rows is None else experimenter.fill_table_with_rows(rows))
        await experimenter.execute(experiment, pool="task", progress=False, max_errors=-1, **more)


def files_left(folder: Path) -> set[str]:
    """Names in the folder, hidden ones too, but for the study's own."""
    return {path.name for path in folder.iterdir()} - {"config"}
