"""Rows of the table of energy and emissions, many in one statement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from asyncexp.db.base import Transaction
from asyncexp.schema import BIGINT, DOUBLE, INT, Column, declared, quote
from asyncexp.store.claim import EXPERIMENT
from asyncexp.store.study import Study

Columns = Sequence[Any]
"""Rows by column, as a list or as the one value that all have: IDs (always a list), attempts, seconds; and, a second:
kWh of CPU, GPU and RAM, kg of CO2 equivalent, None where not measured."""
SIZES = (256, 64, 16, 4, 1)
"""Rows of one statement: of few sizes, for each is a text of its own. Where rows are arrays it is the same for all."""
_MEASURED = {
    "experiment_id": "{0}",
    "_attempt": "{1}",
    "duration_seconds": "{2}",
    "cpu_energy_kw": "{3} * {2}",
    "gpu_energy_kw": "{4} * {2}",
    "ram_energy_kw": "{5} * {2}",
    "energy_consumed_kw": "({3} + {4} + {5}) * {2}",
    "cpu_power_watt": "{3} * 3600000.0",
    "gpu_power_watt": "{4} * 3600000.0",
    "ram_power_watt": "{5} * 3600000.0",
    "emissions_kg": "{6} * {2}",
    "emissions_rate_kg_sec": "{6}",
}
"""Column -> what is written, of the values of a row."""
_TYPES = (BIGINT, INT, DOUBLE, DOUBLE, DOUBLE, DOUBLE, DOUBLE)


def chunks(study: Study, columns: Columns) -> Iterator[Columns]:
    """Rows in parts, each for one call of `record`."""
    columns = _sorted(columns)
    sizes = SIZES[:1] if study.dialect.batch == "unnest" else SIZES
    start, count = 0, len(columns[0])
    while start < count:
        end = start + next((size for size in sizes if size <= count - start), sizes[-1])
        yield [each[start:end] if isinstance(each, list) else each for each in columns]
        start = end


def _sorted(columns: Columns) -> Columns:
    """By ID, as every statement locks rows that locks several: no deadlock among ourselves."""
    ids: list[int] = columns[0]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return [[each[place] for place in order] if isinstance(each, list) else each for each in columns]


async def record(
    study: Study, tx: Transaction, columns: Columns, facts: Mapping[str, Any], *, again: bool = False
) -> None:
    """Adds a row for each of these attempts whose experiment still exists.

    An attempt is one worker's alone: nobody else writes for it, whatever has become of the experiment since, and no ID
    is used twice. But it may have been reset or deleted. So experiments are locked: who deletes one takes its
    rows along, or nothing is written for it.

    Args:
        facts: what the rows have in common, by column.
        again: it may have been done already: leave out what is there.
    """
    sent = quote(f"{study.schema.name}_sent")  # which no table of this study is called
    # Brief experiments differ in their ID and duration alone: the rest is sent once.
    differing = [place for place, cells in enumerate(columns) if isinstance(cells, list)]
    source, values = _source(study, sent, differing, columns)
    facts = {**facts, "codecarbon_timestamp": study.now()}
    shared = [column for column in study.schema.codecarbon.columns if column.name in facts]
    names = ", ".join(map(quote, (*_MEASURED, *(column.name for column in shared))))
    cells = [f'{sent}."v{place}"' for place in differing]
    cells = [cells[differing.index(place)] if place in differing else _once(study, place) for place in range(7)]
    values |= {f"v{place}": columns[place] for place in range(7) if place not in differing}
    measured = (expression.format(*cells) for expression in _MEASURED.values())
    text = (
        f"INSERT INTO {quote(study.schema.codecarbon.name)} ({names}) "
        f"SELECT {', '.join((*measured, *(_bound(study, column) for column in shared)))} "
        f'FROM {source} JOIN {study.main} ON {study.main}."ID" = {cells[0]}'
        f"{_unless_there(study, *cells[:2]) if again else ''}{_lock(study)}"
    )
    await study.execute(tx, text, **values, **{f"f_{column.name}": facts[column.name] for column in shared})


def _bound(study: Study, column: Column) -> str:
    return _cast(study, f":f_{column.name}", column)


def _once(study: Study, place: int) -> str:
    return _cast(study, f":v{place}", Column("_", _TYPES[place]))


def _cast(study: Study, marked: str, column: Column) -> str:
    # PostgreSQL would take a parameter of a SELECT for a text.
    return f"CAST({marked} AS {declared(column, study.dialect)})" if study.dialect.batch == "unnest" else marked


def _unless_there(study: Study, experiment_id: str, attempt: str) -> str:
    table = quote(study.schema.codecarbon.name)
    same = f'{table}.{EXPERIMENT} = {experiment_id} AND {table}."_attempt" = {attempt}'
    return f" WHERE NOT EXISTS (SELECT 1 FROM {table} WHERE {same})"


def _lock(study: Study) -> str:
    clause = study.dialect.for_update
    if study.dialect.batch == "unnest":
        clause += f" OF {study.main}"
    return f' ORDER BY {study.main}."ID"{clause}' if study.dialect.for_update else ""


def _source(
    study: Study, name: str, places: Sequence[int], columns: Sequence[Sequence[Any]]
) -> tuple[str, dict[str, Any]]:
    """These columns of the rows as a source of a FROM clause, and its parameters; they are called v and their place."""
    if study.dialect.batch == "unnest":
        types = [declared(Column("_", _TYPES[place]), study.dialect) for place in places]
        arrays = ", ".join(f"CAST(:a{place} AS {kind}[])" for place, kind in zip(places, types, strict=True))
        names = ", ".join(f'"v{place}"' for place in places)
        return f"unnest({arrays}) AS {name}({names})", {f"a{place}": list(columns[place]) for place in places}
    count = len(columns[0])
    values = {f"r{row}_{place}": columns[place][row] for place in places for row in range(count)}
    lines = [", ".join(f":r{row}_{place}" for place in places) for row in range(count)]
    if study.dialect.batch == "many":
        named = ", ".join(f'column{number} AS "v{place}"' for number, place in enumerate(places, 1))
        return f"(SELECT {named} FROM (VALUES ({'), ('.join(lines)}))) AS {name}", values
    lines[0] = ", ".join(f':r0_{place} AS "v{place}"' for place in places)
    return f"(SELECT {' UNION ALL SELECT '.join(lines)}) AS {name}", values
