"""`check_rights` and `server`: what users may do is really tried, nothing is changed, and the mend mends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asyncexp.db import connect
from asyncexp.db.base import Target
from tests.accounts import account
from tests.contract import sql
from tests.contract.conftest import Make
from tests.servers import PostgresServer, Server
from tests.studies import experimenter as study

pytestmark = pytest.mark.executes_nothing
on_servers = pytest.mark.parametrize("provider", ["postgresql", "mysql"])
TABLES = {f"experiments{name}" for name in ("", "__steps", "_codecarbon", "_workers", "_attempts")}
ROWS = {"SELECT", "INSERT", "UPDATE", "DELETE"}


async def _all(target: Target) -> dict[str, Any]:
    """Every table of the study and of our own making, and what is in it."""
    database = connect(target)
    try:
        names = [*await database.tables("experiments"), *await database.tables("asyncexp")]
    finally:
        await database.close()
    return {name: await sql.fetch(target, f'SELECT * FROM "{name}"') for name in sorted(names)}


async def test_who_may_do_all_is_told_so_and_nothing_is_changed(make: Make, target: Target) -> None:
    experimenter = make()
    await experimenter.fill_table_from_config()
    before = await _all(target)
    rights = await experimenter.check_rights()
    assert await _all(target) == before
    assert not rights.refused
    assert not rights.grants
    assert not rights.grants_to_make
    assert set(rights.tables) == TABLES
    assert {(right.table, right.action) for right in rights.tried} == {
        *((table, action) for table in TABLES for action in ROWS),
        (None, "CREATE"),
    }


async def test_before_there_are_tables_only_making_them_is_tried(make: Make, target: Target) -> None:
    rights = await make().check_rights()
    assert not rights.tables
    assert not rights.refused
    assert "CREATE" in {right.action for right in rights.tried}
    assert await _all(target) == {}


@on_servers
@pytest.mark.parametrize("lacking", [{"INSERT"}, {"UPDATE", "DELETE"}])
async def test_what_a_user_may_not_is_told_for_each_table(
    make: Make, target: Target, server: Server, tmp_path: Path, lacking: set[str]
) -> None:
    await make().fill_table_from_config()
    with account(server, target, *sorted(ROWS - lacking)) as limited:
        async with study(tmp_path, limited) as experimenter:
            before = await _all(target)
            rights = await experimenter.check_rights()
            assert await _all(target) == before
            refused = {(right.table, right.action) for right in rights.refused}
            assert refused == {*((table, action) for table in TABLES for action in lacking), (None, "CREATE")}
            assert rights.user is not None
            assert str(limited.user) in rights.user
            assert all("denied" in (right.refusal or "") for right in rights.refused)


@on_servers
async def test_the_grants_give_what_is_lacking(make: Make, target: Target, server: Server, tmp_path: Path) -> None:
    await make().fill_table_from_config()
    with account(server, target, "SELECT") as limited:
        async with study(tmp_path, limited) as experimenter:
            rights = await experimenter.check_rights()
            assert not any("CREATE" in statement for statement in rights.grants), "rows need no more"
            for statement in (*rights.grants, *rights.grants_to_make):
                server.sql(statement, target.database)
        async with study(tmp_path, limited) as experimenter:
            assert not (await experimenter.check_rights()).refused


@on_servers
async def test_who_may_make_no_tables_is_told_before_there_are_any(
    target: Target, server: Server, tmp_path: Path
) -> None:
    with account(server, target) as limited:
        async with study(tmp_path, limited) as experimenter:
            rights = await experimenter.check_rights()
            assert rights.refused
            for statement in (*rights.grants, *rights.grants_to_make):
                server.sql(statement, target.database)
        async with study(tmp_path, limited) as experimenter:
            refused = (await experimenter.check_rights()).refused
            # Who may do nothing in MariaDB does not even learn that a table is missing.
            assert {right.table for right in refused} <= {None} or not isinstance(server, PostgresServer)
            assert not [right for right in refused if right.table is None]
        assert await _all(target) == {}


async def test_the_server_tells_of_itself(make: Make, target: Target) -> None:
    info = await make().server()
    name = {"sqlite": "SQLite 3", "postgresql": "PostgreSQL ", "mysql": "MariaDB "}[target.provider]
    assert info.version.startswith(name)
    assert abs(info.clock_seconds) < 5
    assert info.tls is None
    if target.provider == "sqlite":
        assert info.free_connections is None
    else:
        assert info.connections is not None
        assert info.most_connections is not None
        assert 1 <= info.connections < info.most_connections
        assert info.free_connections == info.most_connections - info.connections
