"""How long a look at a large table takes: `python -m benchmarks.overview --rows 1000000`.

What `Experimenter.overview` does, and so `asyncexp status`: beside counts of a large table, at one with long
tracebacks, and at one of which thousands of rows run.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asyncexp import Experimenter
from asyncexp.db import connect
from asyncexp.db.base import Target
from asyncexp.schema import quote, render
from benchmarks import study
from benchmarks.places import PROVIDERS, Place, places

ROUNDS = 5
FILL_SECONDS = 900.0
WORKERS = 100
SERIES = {
    "sqlite": "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {rows}) SELECT {what} FROM s",
    "postgresql": "SELECT {what} FROM generate_series(1, CAST({rows} AS bigint)) AS s(n)",
    "mysql": "SELECT {what} FROM (SELECT seq AS n FROM seq_1_to_{rows}) AS s",
}
DIGEST = {"sqlite": "randomblob(16)", "postgresql": "uuid_send(gen_random_uuid())", "mysql": "RANDOM_BYTES(16)"}


def _noise(provider: str, letters: int) -> str:
    """SQL for letters that no compression makes few."""
    if provider == "sqlite":
        return f"hex(randomblob({letters // 2}))"
    digests = [f"md5(concat(n, '-', {part}))" for part in range(letters // 32)]
    groups = [f"concat({', '.join(digests[start : start + 50])})" for start in range(0, len(digests), 50)]
    return f"concat({', '.join(groups)})"


@dataclass(frozen=True)
class Shape:
    """What a table is like."""

    name: str
    running: int = 100
    errors: int = 1_000
    traceback: int = 500
    """Letters of each."""


def shapes(rows: int) -> tuple[Shape, ...]:
    """The usual, and what makes a look harder."""
    many = rows // 10
    return (
        Shape("the usual"),
        Shape("long tracebacks", errors=many, traceback=8_000),
        Shape("tracebacks of a page", errors=many, traceback=1_500),
        Shape("many running", running=rows // 100),
    )


async def fill(target: Target, folder: Path, shape: Shape, rows: int) -> None:
    """The rows are made by the database itself."""
    async with study.experimenter(folder, target, rows) as made:
        await made.create_table()
    db = connect(target)
    columns = _columns(target.provider, db.dialect.now, shape, rows)
    chosen = SERIES[target.provider].format(rows=rows, what=", ".join(columns.values()))
    text = f"INSERT INTO {quote(study.TABLE)} ({', '.join(map(quote, columns))}) {chosen}"
    try:
        await db.execute(render(text, db.dialect.placeholder, db.dialect.quote)[0], limit_seconds=FILL_SECONDS)
    finally:
        await db.close()


def _columns(provider: str, now: str, shape: Shape, rows: int) -> dict[str, str]:
    """Column -> SQL of its value in row `n`."""
    status = _status({"error": shape.errors, "running": shape.running, "done": rows // 2}, rows)
    return {
        "number": "n",
        "kind": "'a'",
        "creation_date": now,
        "status": status,
        "start_date": now,
        "name": "'PyExperimenter'",
        "machine": "'node17'",
        "error": f"CASE WHEN {status} = 'error' THEN {_noise(provider, shape.traceback)} END",
        "_worker": f"CASE WHEN {status} = 'created' THEN NULL ELSE MOD(n, {WORKERS}) END",
        "_key_hash": DIGEST[provider],
    }


def _status(numbers: Mapping[str, int], rows: int) -> str:
    """So many rows of each, everywhere in the table; the others are `created`."""
    cases, until = "", 0
    for name, number in numbers.items():
        cases += f" WHEN MOD((n * 7919), {rows}) BETWEEN {until} AND {until + number - 1} THEN '{name}'"
        until += number
    return f"(CASE{cases} ELSE 'created' END)"


async def looks(experimenter: Experimenter) -> tuple[list[float], list[float]]:
    """Seconds of looks, and of counts alone."""
    ours, counts = [], []
    for _ in range(ROUNDS):
        began = time.monotonic()
        await experimenter.overview()
        ours.append(time.monotonic() - began)
        began = time.monotonic()
        await experimenter.counts()
        counts.append(time.monotonic() - began)
    return ours, counts


async def measured(place: Place, shape: Shape, rows: int) -> str:
    with place.empty() as (folder, target):
        await fill(target, folder, shape, rows)
        async with study.experimenter(folder, target, rows) as made:
            ours, counts = await looks(made)
    figures = f"{max(ours):.2f} {statistics.median(ours):.2f} {statistics.median(counts):.2f}"
    return f"{place.shown:15} {shape.name:22} {rows:>9,} rows  longest, median, counts alone (s): {figures}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.overview", description="A look at a large table")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--databases", default=",".join(PROVIDERS))
    given = parser.parse_args(arguments)
    with places(given.databases.split(",")) as ready:
        for place in ready:
            for shape in shapes(given.rows):
                print(asyncio.run(measured(place, shape, given.rows)), flush=True)


if __name__ == "__main__":
    main()
