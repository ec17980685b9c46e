"""Rows are told apart by what is stored, not by what Python calls equal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from asyncexp.db import connect
from asyncexp.db.base import Target
from asyncexp.schema import Column, Schema
from asyncexp.store.rows import Rows
from asyncexp.store.study import Study
from asyncexp.values import ColumnType

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("JSON", (1,), (True,)),
        ("JSON", (1,), (1.0,)),
        ("TEXT", Decimal("1.0"), Decimal("1.00")),
        ("TEXT", NOON, NOON.astimezone(timezone(timedelta(hours=1)))),
        ("TEXT", 1, True),
        ("TEXT", 1, 1.0),
    ],
)
async def test_values_that_are_equal_but_stored_differently_are_two_rows(
    sqlite_target: Target, kind: str, one: Any, other: Any
) -> None:
    schema = Schema("t", (Column("k", ColumnType.parse(kind)),), (), False, {})
    rows = Rows(Study(connect(sqlite_target), schema, print))
    first, second = rows.many([{"k": one}, {"k": other}])
    assert first.values != second.values
    assert first.hash != second.hash
