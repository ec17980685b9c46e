"""A claim reads the rows that it takes, and not the table: also before the server has counted anew."""

from __future__ import annotations

from typing import Any

import pytest

from asyncexp import Experimenter, ResultProcessor
from asyncexp.db.base import Target
from tests.contract.conftest import Make
from tests.contract.sql import fetch as sql
from tests.contract.support import Keys, eventually, numbers

pytestmark = pytest.mark.in_process_only("what the server reads is the same whatever runs the functions")
postgres_only = pytest.mark.parametrize("provider", ["postgresql"])
servers_only = pytest.mark.parametrize("provider", ["postgresql", "mysql"])
ROWS, TAKEN = 20_000, 50


async def result(keys: Keys, results: ResultProcessor, _: Keys) -> None:
    await results.process_results({"result": float(keys["number"])})


async def read_by_claims(experimenter: Experimenter, target: Target, **keywords: Any) -> int:
    """Entries of all indexes and rows without one that the server reads while it runs some rows one by one."""
    await experimenter.aclose()  # the server counts what a session read when it ends
    before = await settled(target)
    summary = await experimenter.execute(result, n_jobs=1, max_experiments=TAKEN, progress=False, **keywords)
    assert summary.done == TAKEN
    await experimenter.aclose()
    read = await settled(target) - before
    assert read > TAKEN
    return read


async def settled(target: Target) -> int:
    """What was read by sessions that are gone: PostgreSQL counts for each when it ends, MariaDB at once."""
    others = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

    async def alone() -> bool:
        return target.provider == "mysql" or await sql(target, others) == [(0,)]

    await eventually(alone)
    return await _read(target)


async def _read(target: Target) -> int:
    if target.provider == "mysql":
        named = "Variable_name = 'Handler_icp_attempts' OR Variable_name LIKE 'Handler_read%'"
        rows = await sql(target, f"SHOW GLOBAL STATUS WHERE {named}")
        return sum(int(row[1]) for row in rows)
    [(read,)] = await sql(
        target,
        "SELECT (SELECT COALESCE(SUM(idx_tup_read), 0) FROM pg_stat_user_indexes WHERE relname = 'experiments') "
        "+ (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'experiments')",
    )
    return int(read)


@servers_only
async def test_right_after_a_fill(make: Make, target: Target) -> None:
    experimenter = make(keyfields=numbers(ROWS))
    await experimenter.fill_table_from_config()
    assert await read_by_claims(experimenter, target) < 5 * ROWS


@postgres_only
async def test_with_a_condition_on_an_indexed_keyfield(make: Make, target: Target) -> None:
    kinds = {"kind": {"type": "VARCHAR(20)", "values": ["a", "b"], "index": True}}
    experimenter = make(keyfields=numbers(ROWS // 2) | kinds)
    await experimenter.fill_table_from_config()
    assert await read_by_claims(experimenter, target, where={"kind": "b"}) < 5 * ROWS


@servers_only
async def test_in_random_order(make: Make, target: Target) -> None:
    experimenter = make(keyfields=numbers(ROWS))
    await experimenter.fill_table_from_config()
    assert await read_by_claims(experimenter, target, random_order=True) < 5 * ROWS


@postgres_only
async def test_right_after_a_reset_of_all(make: Make, target: Target) -> None:
    experimenter = make(keyfields=numbers(ROWS))
    await experimenter.fill_table_from_config()
    await sql(target, "UPDATE experiments SET status = 'done'")
    await sql(target, "ANALYZE experiments")
    assert await experimenter.reset_experiments("done") == ROWS
    assert await read_by_claims(experimenter, target) < 5 * ROWS
