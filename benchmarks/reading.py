"""S13: `get_table` against `pandas.read_sql` on the same table."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from asyncexp.db.base import Target
from benchmarks import filling, study
from benchmarks.places import Place
from benchmarks.rounds import Line, Stopwatch, in_turns


def measured(rows: int, rounds: int) -> Line:
    """A table whose rows are done, on SQLite; read_sql leaves dates as texts, get_table does not."""
    with Place("sqlite").empty() as (folder, target):
        study.run(filling.bare_insert(folder, target, rows))
        _finish(target)
        limit, ours = in_turns(
            rounds,
            lambda: rows / _read_sql(target, rows),
            lambda: rows / study.run(_get_table(folder, target, rows)),
        )
    what = "get_table; limit: pandas.read_sql"
    return Line("S13", what, "rows/s", limit, ours, "SQLite", None, 1 / 1.5, 1.0, facts={"rows": rows})


def _finish(target: Target) -> None:
    with closing(sqlite3.connect(target.database)) as connection, connection:
        connection.execute(
            "UPDATE experiments SET status = 'done', start_date = creation_date, end_date = creation_date, "
            "name = 'PyExperimenter', machine = 'somewhere', result = number / 7.0, _attempt = 1, _worker = 4711"
        )


def _read_sql(target: Target, rows: int) -> float:
    import pandas

    watch = Stopwatch()
    with closing(sqlite3.connect(target.database)) as connection, watch.running():
        table = pandas.read_sql("SELECT * FROM experiments ORDER BY ID", connection)
    assert len(table) == rows
    return watch.seconds


async def _get_table(folder: Path, target: Target, rows: int) -> float:
    watch = Stopwatch()
    async with study.experimenter(folder, target, rows) as made:
        await made.counts()  # connects
        with watch.running():
            table = await made.get_table()
    assert len(table) == rows
    assert (table["status"] == "done").all()
    return watch.seconds
