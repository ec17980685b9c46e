"""One call that runs experiments, from the pool to the last word: what goes on around a `Run`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from asyncexp.config.models import ExecutionConfig
from asyncexp.db.base import Outage
from asyncexp.errors import DatabaseError, InvalidConfigError
from asyncexp.experiment import Summary
from asyncexp.pools.base import Pool, check_function, is_async
from asyncexp.pools.task import TaskPool, ThreadPool
from asyncexp.progress import reporter
from asyncexp.schema import Column
from asyncexp.session import Session
from asyncexp.signals import Hearing, handled
from asyncexp.store import life, read, workers
from asyncexp.store.claim import Wanted
from asyncexp.values import ColumnType
from asyncexp.worker import Options, Run, supervise

RECOUNT_SECONDS = 5.0
RECOUNT_SHARE = 10
"""Counting the open rows again waits at least so many times what the last count took."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a call of `execute` and its like was asked for."""

    function: Callable[..., Any]
    wanted: Wanted
    options: Options
    settings: ExecutionConfig
    pool: str | Pool | None
    """Its name, or one that is ready."""
    progress: bool | Callable[[Summary], None] | None
    handle_signals: bool | Hearing | None


async def perform(session: Session, call: Call) -> Run:
    """Runs experiments on a session and says in the log what came of it.

    Raises:
        InvalidConfigError: the function cannot be called as an experiment, or the pool does not exist.
        DatabaseError: the database refused something that is not the experiments' fault.
    """
    pool = _pool(session, call)
    if not (call.progress is None or isinstance(call.progress, bool) or callable(call.progress)):
        raise InvalidConfigError(f"progress={call.progress!r}: True, False, None or a function of the summary")
    settings = call.settings
    await session.start_worker(
        settings.heartbeat_interval,
        settings.lease,
        max_attempts=settings.max_attempts,
        wait_seconds=settings.database_wait,
    )
    if session.energy is not None:
        session.energy.begin()
    with reporter(call.progress) as report:
        run = Run(session, call.function, pool, call.options, call.wanted, report=report)
        session.runs.add(run)
        try:
            async with _counting(session, run, call.wanted, report is not None):
                with handled(run, call.handle_signals):
                    await supervise(run)
        finally:
            session.runs.discard(run)
            if session.energy is not None:
                await session.energy.settle()
        counted = await _count_left(session, run, call.wanted)
    await _say(session, run, counted)
    return run


def _pool(session: Session, call: Call) -> Pool:
    function, settings = call.function, call.settings
    check_function("experiment_function", function, "keyfields", "result_processor", "custom_fields")
    if call.pool is not None and not isinstance(call.pool, str):
        return call.pool
    kind = call.pool or settings.pool or ("task" if is_async(function) else "process")
    if kind == "task":
        if settings.worker_env or settings.max_tasks_per_child:
            session.logger.warning(
                "worker_env and max_tasks_per_child are for child processes; these experiments run in this one."
            )
        return TaskPool() if is_async(function) else ThreadPool()
    if kind == "process":
        return _process_pool(session, call)
    raise InvalidConfigError(f"pool={kind!r}: 'task' or 'process'")


def _process_pool(session: Session, call: Call) -> Pool:
    if sys.platform == "win32":  # before the import, which needs what only Unix has
        raise InvalidConfigError('Child processes do not work on Windows: use WSL, or pool="task"')
    from asyncexp.pools.process import ProcessPool, planned

    schema = session.study.schema
    fields = (
        _types(schema.resultfields),
        {name: _types(columns) for name, columns in schema.logtables.items()},
        session.study.db.max_value_bytes,
    )
    plan = planned(
        call.function,
        session.custom,
        fields,
        slots=call.options.n_jobs,
        env=call.settings.worker_env,
        max_calls=call.settings.max_tasks_per_child,
        warn=session.logger.warning,
    )
    return ProcessPool(plan)


def _types(columns: Iterable[Column]) -> dict[str, ColumnType]:
    return {column.name: column.type for column in columns if isinstance(column.type, ColumnType)}


# ---------------------------------------------------------------------------------------- counting


@asynccontextmanager
async def _counting(session: Session, run: Run, wanted: Wanted, shown: bool) -> AsyncIterator[None]:
    """While somebody looks on, counts the open rows now and then: other workers take some, too."""
    if not shown or wanted.add is not None:
        yield
        return
    with suppress(Outage):  # for which the run itself waits
        run.left_is(*await _open(session, wanted))
    counter = asyncio.create_task(_recount(session, run, wanted), name="asyncexp count")
    try:
        yield
    finally:
        counter.cancel()
        await asyncio.wait([counter])


async def _recount(session: Session, run: Run, wanted: Wanted) -> None:
    took = 0.0
    while True:
        await asyncio.sleep(max(RECOUNT_SECONDS, RECOUNT_SHARE * took))
        began = time.monotonic()
        try:
            run.left_is(*await _open(session, wanted))
        except Outage:
            continue
        except DatabaseError:  # the run hears of it from its own statements
            return
        took = time.monotonic() - began


async def _open(session: Session, wanted: Wanted) -> tuple[int, int]:
    """Rows that a run could take, and rows of its selection that are running."""
    study = await session.reading()
    chosen = life.selection(study, [wanted.status, "running"], wanted.where, wanted.ids)
    found = await read.counts(study, chosen)
    return found[wanted.status], found["running"]


# ------------------------------------------------------------------------------------ the last word


async def _count_left(session: Session, run: Run, wanted: Wanted) -> tuple[int, int] | None:
    """As `_open`, at the end, while somebody still looks on; None if it cannot be told."""
    if wanted.add is not None:
        return None
    try:
        counted = await _open(session, wanted)
    except Outage as away:
        session.logger.warning("What is left could not be counted: %s", away)
        return None
    run.left_is(*counted)
    return counted


async def _say(session: Session, run: Run, counted: tuple[int, int] | None) -> None:
    left, elsewhere = counted or (0, 0)
    if counted is not None:
        run.left_is(left, elsewhere, final=True)
    if elsewhere:
        with suppress(Outage):
            await _warn_of_lost_workers(session)
    session.logger.info("%s", told(run.summary(), elsewhere))


async def _warn_of_lost_workers(session: Session) -> None:
    for worker in await workers.listed(await session.reading(), lost_only=True):
        if worker.running:
            session.logger.warning(
                "%d rows still run in the name of a worker last seen at %s UTC (%s, pid %d). If it gives no more sign, "
                "the next call of `execute` takes them over.",
                worker.running,
                f"{worker.heartbeat:%Y-%m-%d %H:%M:%S}",
                worker.machine,
                worker.pid,
            )


def told(summary: Summary, elsewhere: int = 0) -> str:
    """A run in one line."""
    names = ("done", "error", "paused", "released", "lost", "retried")
    counted = [f"{count} {name}" for name in names if (count := getattr(summary, name))]
    parts = [f"{', '.join(counted) or 'nothing to do'} in {summary.seconds:.1f} s"]
    if summary.stopped_by:
        parts.append(f"stopped by {summary.stopped_by}")
    if summary.left:
        parts.append(f"{summary.left} rows still open")
    if elsewhere:
        parts.append(f"{elsewhere} running elsewhere")
    if summary.errors:
        [(line, _)] = Counter(summary.errors).most_common(1)
        parts.append(f"see errors() and retry_errors(), for instance {line}")
    return "; ".join(parts)
