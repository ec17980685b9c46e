"""The study that is measured: two keyfields, one result, one log table."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from asyncexp import Experimenter, ResultProcessor, config
from asyncexp.db import connect
from asyncexp.db.base import Target
from asyncexp.schema import Schema, quote, render
from tests.studies import write_configuration, write_credentials

T = TypeVar("T")
Keys = dict[str, Any]
TABLE = "experiments"
KINDS = ("a", "b")


def grid(rows: int, *, indexed: bool = False) -> dict[str, Any]:
    """Keyfields whose Cartesian product has so many rows, an even number; `number` with an index or without."""
    index = {"index": True} if indexed else {}
    return {
        "number": {"type": "INT", **index, "values": {"start": 0, "stop": rows // len(KINDS)}},
        "kind": {"type": "VARCHAR(20)", "values": list(KINDS)},
    }


def experimenter(
    folder: Path, target: Target, rows: int, *, indexed: bool = False, energy: bool = False
) -> Experimenter:
    """Our side, as a user would make it; its files are in `folder`."""
    write_configuration(
        folder,
        target,
        table=TABLE,
        keyfields=grid(rows, indexed=indexed),
        resultfields={"result": "DOUBLE"},
        logtables={"steps": {"step": "INT", "loss": "DOUBLE"}},
        n_jobs=1,
    )
    write_credentials(folder, target)
    return joined(folder, energy=energy)


def joined(folder: Path, *, energy: bool = False) -> Experimenter:
    """One more on the files that are in `folder` already."""
    credentials = folder / "credentials.yml"
    return Experimenter(
        folder / "configuration.yml",
        credentials if credentials.exists() else None,
        use_codecarbon=energy,  # what that costs is a line of its own
        logger_name="asyncexp-benchmarks",
        log_level="WARNING",
        log_file=folder / "benchmark.log",
    )


def target(folder: Path) -> Target:
    """The database that the files in `folder` name."""
    credentials = folder / "credentials.yml"
    return config.target(joined(folder).configuration, credentials if credentials.exists() else None)


def schema(made: Experimenter) -> Schema:
    return Schema.from_config(made.configuration.database)


async def no_op(keyfields: dict[str, Any], results: ResultProcessor, _: dict[str, Any]) -> None:
    """The experiment: one result, nothing else."""
    await results.process_results({"result": float(keyfields["number"])})


def prepared(folder: Path, target: Target, rows: int, *, indexed: bool = False) -> None:
    """Makes and fills the table; who runs it afterwards finds the very same one on either side."""

    async def fill() -> None:
        async with experimenter(folder, target, rows, indexed=indexed) as made:
            filled = await made.fill_table_from_config()
        assert filled.added == rows, filled

    run(fill())


async def ask(target: Target, sql: str) -> list[tuple[Any, ...]]:
    """One statement in standard quoting, over a connection of its own."""
    database = connect(target)
    try:
        text, _ = render(sql, database.dialect.placeholder, database.dialect.quote)
        return await database.fetch(text)
    finally:
        await database.close()


async def prove(target: Target, rows: int) -> None:
    """Sees that every row was run once, has its own result and all that is written beside it.

    Raises:
        AssertionError: one of them was not, so that the figure is worth nothing.
    """
    wanted = (
        '"status" = \'done\' AND "_attempt" = 1 AND "result" = "number" AND "start_date" <= "end_date" '
        'AND "name" IS NOT NULL AND "machine" IS NOT NULL AND "_worker" IS NOT NULL'
    )
    [(right,)] = await ask(target, f"SELECT COUNT(*) FROM {quote(TABLE)} WHERE {wanted}")
    assert right == rows, f"only {right} of {rows} rows of {target} are done as they should be"


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on an event loop of its own."""
    return asyncio.run(work)
