"""PostgreSQL through pgbouncer in transaction mode: the main job, and tests of other files once more, by that way.

All clients share three connections to the server, so that whatever one leaves on a connection meets another.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asyncexp.db import connect
from asyncexp.db.base import Database, Outage, Target
from asyncexp.errors import DatabaseConnectionError, DatabaseCreationError
from tests.certificates import Authority
from tests.contract.conftest import Make
from tests.contract.functions import Gated, nothing, short
from tests.contract.shared import Shared
from tests.contract.support import audit, eventually, numbers
from tests.contract.test_attach import (  # noqa: F401
    test_from_a_subprocess_with_the_id_through_a_pickle,
    test_what_a_worker_reports_lands_in_the_row_and_logs_of_that_attempt,
)
from tests.contract.test_fill import (  # noqa: F401
    test_a_bad_row_names_index_and_field_and_earlier_batches_stay,
    test_eight_processes_fill_the_same_grid_at_once_from_an_empty_database,
)
from tests.contract.test_reading import (  # noqa: F401
    test_a_condition_is_met_to_the_byte,
    test_errors_are_grouped_by_their_last_line,
    test_log_lines_by_experiment_and_by_value,
)
from tests.contract.test_requests import (  # noqa: F401
    test_another_experimenter_stops_a_worker_gracefully,
    test_cancel_ends_running_rows_as_error_and_says_who_asked,
    test_release_puts_running_rows_back_and_the_worker_does_not_take_them_at_once,
)
from tests.contract.test_rescue import (  # noqa: F401
    test_a_worker_killed_elsewhere_is_waited_for_until_its_lease_and_two_intervals_are_over,
    test_a_worker_killed_on_this_machine_gives_its_rows_back_at_once,
    test_until_finished_takes_over_what_it_asked_for_of_a_worker_that_dies,
)
from tests.pgbouncer import POOL, Pgbouncer, pgbouncer
from tests.servers import PostgresServer
from tests.studies import experimenter

FORGOTTEN = "pgbouncer, or a pooler like it, .*set `pgbouncer: true` in `Database`"
SETTINGS = "idle_in_transaction_session_timeout, statement_timeout, lock_timeout"


@pytest.fixture
def provider() -> str:
    return "postgresql"


@pytest.fixture
def direct(postgres_target: Target) -> Target:
    """The database, without pgbouncer."""
    return postgres_target


@pytest.fixture
def bouncer(postgres_server: PostgresServer, direct: Target) -> Iterator[Pgbouncer]:
    with pgbouncer(postgres_server) as bouncer:
        yield bouncer


@pytest.fixture
def target(bouncer: Pgbouncer, direct: Target) -> Target:
    return bouncer.target(direct.database)


@asynccontextmanager
async def opened(target: Target) -> AsyncIterator[Database]:
    database = connect(target)
    try:
        yield database
    finally:
        await database.close()


async def refusal(target: Target, kind: type[DatabaseConnectionError | DatabaseCreationError], match: str) -> None:
    async with opened(target) as database:
        with pytest.raises(kind, match=match) as caught:
            await database.open()
    assert not isinstance(caught.value, Outage)


# ---------------------------------------------------------------------------------------- the main job


async def test_fifty_at_once_with_logs_over_three_connections(make: Make, direct: Target) -> None:
    """More workers than the server gives connections to, each with fifty slots or, in processes, four."""
    workers = [make(keyfields=numbers(200)) for _ in range(3)]
    await workers[0].fill_table_from_config()
    jobs = 50 if make_mode(workers[0]) == "task" else 4
    summaries = await asyncio.gather(*(each.execute(short, n_jobs=jobs) for each in workers))
    assert sum(each.done for each in summaries) == 200
    assert await audit(direct) == {"done": 200}
    table, lines = await workers[0].get_table(), await workers[0].get_logtable("steps")
    assert list(table["result"]) == [2.0 * number for number in table["number"]]
    assert Counter(lines["experiment_id"]) == dict.fromkeys(table["ID"], 2)


def make_mode(worker: Any) -> str:
    return str(getattr(worker, "POOL", "task"))


async def test_it_keeps_no_more_connections_than_pgbouncer_gives(
    postgres_server: PostgresServer, make: Make, direct: Target, shared: Shared
) -> None:
    started, go_on = shared.seen(), shared.gate()
    workers = [make(keyfields=numbers(8)) for _ in range(4)]
    await workers[0].fill_table_from_config()
    runs = [asyncio.create_task(each.execute(Gated(started, go_on), n_jobs=2)) for each in workers]
    await eventually(lambda: len(started) == 8)
    assert len(postgres_server.sessions(direct.database)) <= POOL
    go_on.open()
    assert sum(each.done for each in await asyncio.gather(*runs)) == 8


@pytest.mark.in_process_only("what happens on the connection is the same whatever runs the functions")
async def test_a_restart_of_pgbouncer_costs_time_and_nothing_else(
    make: Make, bouncer: Pgbouncer, direct: Target, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    started, go_on = shared.seen(), shared.gate()
    worker = make(keyfields=numbers(12), execution={"heartbeat_interval": 0.2, "lease": 60})
    await worker.fill_table_from_config()
    run = asyncio.create_task(worker.execute(Gated(started, go_on), n_jobs=6))
    await eventually(lambda: len(started) == 6)
    bouncer.stop()
    go_on.open()
    await eventually(lambda: "The database is away" in caplog.text)
    bouncer.start()
    assert (await run).done == 12
    assert await audit(direct) == {"done": 12}
    assert Counter(started) == dict.fromkeys(range(12), 1)
    assert len(await worker.get_logtable("steps")) == 12


@pytest.mark.in_process_only("what happens on the connection is the same whatever runs the functions")
async def test_a_restart_of_the_server_behind_costs_time_and_nothing_else(
    make: Make,
    postgres_server: PostgresServer,
    direct: Target,
    shared: Shared,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pgbouncer keeps its clients waiting meanwhile: how long is the limit of the call."""
    monkeypatch.setattr("asyncexp.writer.FLUSH_LIMIT_SECONDS", 1.5)
    started, go_on = shared.seen(), shared.gate()
    worker = make(keyfields=numbers(12), execution={"heartbeat_interval": 0.2, "lease": 60})
    await worker.fill_table_from_config()
    run = asyncio.create_task(worker.execute(Gated(started, go_on), n_jobs=6))
    await eventually(lambda: len(started) == 6)
    postgres_server.stop()
    go_on.open()
    await eventually(lambda: "The database is away" in caplog.text)
    postgres_server.start()
    assert (await run).done == 12
    assert await audit(direct) == {"done": 12}
    assert Counter(started) == dict.fromkeys(range(12), 1)


@pytest.mark.in_process_only("a run waits, and runs next to nothing")
async def test_until_finished_polls(make: Make, shared: Shared) -> None:
    """There is no NOTIFY; `poll_interval` is how often it looks."""
    started, go_on = shared.seen(), shared.gate()
    execution = {"heartbeat_interval": 15, "lease": 60, "poll_interval": 0.1}
    one, other = (make(keyfields=numbers(2), execution=execution) for _ in range(2))
    await one.fill_table_from_config()
    run = asyncio.create_task(one.execute(Gated(started, go_on)))
    await eventually(lambda: len(started) == 2)
    waiting = asyncio.create_task(other.execute(nothing, until="finished"))
    await eventually(lambda: waits(other))
    assert not waiting.done()
    go_on.open()
    assert (await waiting).done == 0
    assert (await run).done == 2


async def waits(other: Any) -> bool:
    return len([each for each in await other.workers() if each.state == "live"]) == 2


# ---------------------------------------------------------------------------- what a transaction may set


async def test_what_a_transaction_sets_holds_in_it_and_meets_nobody_else(target: Target, direct: Target) -> None:
    names = ("enable_hashjoin", "enable_bitmapscan", "jit", "statement_timeout", "lock_timeout")
    asked = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)
    async with opened(target) as database:
        assert await database.run(lambda tx: tx.fetch(asked), limit_seconds=10) == [("off", "off", "off", "8s", "4s")]
    usual = [("on", "on", "on", "0", "0")]
    async with opened(replace(direct, port=target.port, pgbouncer=True)) as other:
        for _ in range(2 * POOL):
            # by itself, which `fetch` is not here
            assert other._driver.only_transactions  # type: ignore[attr-defined]
            link = await other._ready()  # type: ignore[attr-defined]
            assert await link.fetch(asked, ()) == usual


async def test_the_servers_limit_on_a_statement_holds(target: Target) -> None:
    async with opened(target) as database:
        with pytest.raises(Outage, match="longer than the server's limit"):
            await database.run(lambda tx: tx.fetch("SELECT pg_sleep(20)"), limit_seconds=1)


# ----------------------------------------------------------------------------------- what goes wrong


async def test_without_the_key_the_error_names_it(target: Target, bouncer: Pgbouncer, tmp_path: Path) -> None:
    """Refused by pgbouncer as it is installed; or taken, where its `ignore_startup_parameters` lets it through."""
    forgotten = replace(target, pgbouncer=False)
    await refusal(forgotten, DatabaseConnectionError, FORGOTTEN + ".*idle_in_transaction_session_timeout")
    study = experimenter(tmp_path, forgotten, execution={"database_wait": 3600})
    with pytest.raises(DatabaseConnectionError, match=FORGOTTEN):
        await study.execute(nothing)
    bouncer.stop()
    bouncer.start(ignore_startup_parameters=SETTINGS)
    for _ in range(2 * POOL):
        await refusal(forgotten, DatabaseConnectionError, FORGOTTEN)
    with pytest.raises(DatabaseConnectionError, match=FORGOTTEN):
        await study.execute(nothing)
    await study.aclose()


async def test_the_key_does_no_harm_where_there_is_no_pgbouncer(direct: Target, tmp_path: Path) -> None:
    async with experimenter(tmp_path, replace(direct, pgbouncer=True)) as study:
        await study.fill_table_from_config()
        assert (await study.execute(nothing)).done == 10


async def test_wrong_words_at_its_door(target: Target) -> None:
    for changed in (replace(target, password="another"), replace(target, user="nobody")):
        await refusal(changed, DatabaseConnectionError, "not let in; check user and password")
    await refusal(replace(target, database="absent"), DatabaseCreationError, "does not exist; make it, or call")


async def test_a_database_is_made_through_it(target: Target, postgres_server: PostgresServer, tmp_path: Path) -> None:
    made = replace(target, database=f"{target.database}_made")
    try:
        async with experimenter(tmp_path, made) as study:
            pass
    except DatabaseCreationError:
        study = experimenter(tmp_path, made)
        await study.create_table(create_database=True)
        await study.fill_table_from_config()
        assert (await study.execute(nothing)).done == 10
        await study.aclose()
    finally:
        postgres_server.drop(made.database)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncpg and a failed handshake
async def test_tls_up_to_pgbouncer(target: Target, bouncer: Pgbouncer, tmp_path: Path) -> None:
    folder = bouncer.folder
    authority, other = Authority(folder), Authority(folder, "stranger")
    bouncer.speak_tls(authority.issue())
    async with experimenter(tmp_path, replace(target, tls="verify-full", tls_ca=str(authority.path))) as study:
        await study.fill_table_from_config()
        assert (await study.execute(nothing)).done == 10
    distrusting = replace(target, tls="verify-full", tls_ca=str(other.path))
    await refusal(distrusting, DatabaseConnectionError, "signed by nobody whom tls_ca")
    await refusal(replace(target, tls="disable"), DatabaseConnectionError, "wants TLS; set `tls`")
