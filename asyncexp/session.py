"""What an open `Experimenter` holds on one event loop: connections, writer, service thread, runs."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from asyncexp import provenance, signals
from asyncexp.db.base import Database, MissingTable, Outage, T
from asyncexp.energy import Energy
from asyncexp.errors import DatabaseConnectionError, DatabaseError, SshTunnelError
from asyncexp.experiment import Running, Snapshot
from asyncexp.lease import Callbacks, Service
from asyncexp.rescue import Look, Rescuer
from asyncexp.schema import Schema
from asyncexp.store import life, read, setup, workers
from asyncexp.store.claim import Wanted, Worker
from asyncexp.store.fate import fates
from asyncexp.store.flush import End, Ended, Key
from asyncexp.store.rescue import Place
from asyncexp.store.study import Condition, Study, utc
from asyncexp.store.workers import Request
from asyncexp.worker import Live, Run
from asyncexp.writer import Writer

FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 5.0
CLOSE_LIMIT_SECONDS = 30.0
WORKER = '"_worker"'
TELLING_SECONDS = 2.0
"""So long a session that ends waits for what it has to say of lost rows."""


class Session:
    """One worker: an `Experimenter` in one process on one event loop."""

    def __init__(
        self,
        connect: Callable[[], Database],
        schema: Schema,
        logger: logging.Logger,
        name: str,
        custom: Mapping[str, Any],
        codecarbon: Mapping[str, Any] | None = None,
    ) -> None:
        self.logger = logger
        self.custom = custom
        self.energy: Energy | None = None
        self._codecarbon = codecarbon
        """Settings of the tracker; None: energy is not recorded."""
        self.live: dict[Key, Live] = {}
        self.early: dict[Key, Request] = {}
        self.runs: set[Run] = set()
        self.identity = Worker(secrets.randbits(62) + 1, name, provenance.machine())
        self.totals = {"done": 0, "error": 0}
        self._connect = connect
        self._database = connect()
        self.study = Study(self._database, schema, logger.warning)
        self._reader: Study | None = None
        self._opened = False
        self._prepared = False
        self._registered = False
        self._closed = False
        self._lease = (0.0, 0.0)
        self._max_attempts = 0
        self._writer: Writer | None = None
        self._service: Service | None = None
        self._starting = asyncio.Lock()
        self.loop = asyncio.get_running_loop()
        self._robbed_of: list[Key] = []
        self._telling: asyncio.Task[None] | None = None
        self._end_service: weakref.finalize[..., Session] | None = None
        self._connections = [self._database]
        # Whoever forgets to close: what the drivers would do with a closed loop is no way to end.
        self._drop = weakref.finalize(self, _abandon, self._connections)

    # --------------------------------------------------------------------------------------- opening

    async def open(self, *, create_database: bool = False, wait_seconds: float = 0.0) -> None:
        """Connects; tries again for `wait_seconds` while the database is away.

        Raises:
            DatabaseConnectionError, DatabaseCreationError: what is wrong, and what to check.
        """
        async with self._starting:
            if not self._opened:
                await self.patiently(lambda: self._connect_first(create_database), wait_seconds)
                await self.patiently(self.study.set_clock, wait_seconds)
                self._opened = True

    async def _connect_first(self, create_database: bool) -> None:
        self._must_be_open()
        try:
            await self._database.open(create_database=create_database)
        finally:
            if self._closed:  # meanwhile, and maybe before there was anything to close
                await self._database.close()
        self._must_be_open()

    def _must_be_open(self) -> None:
        if self._closed:
            raise DatabaseConnectionError("The experimenter was closed while a call began.")

    async def prepare(self, *, make: bool, again: bool = False, wait_seconds: float = 0.0) -> None:
        """Sees to it that the tables are there and as configured: once, or `again` for what adds or takes rows.

        Somebody may have migrated them meanwhile, and rows without a new keyfield would be other rows.

        Raises:
            MissingTable: they are not there, and were not to be made.
            TableHasWrongStructureError: they are not what the configuration describes.
        """
        if self._prepared and not again:
            return
        await self.patiently(lambda: self._look(make), wait_seconds)
        self._prepared = True

    async def _look(self, make: bool) -> None:
        if make:
            await setup.create(self.study)
        else:
            await check_tables(self.study)

    def unprepared(self) -> None:
        """The tables were dropped or changed: look again at the next call."""
        self._prepared = False

    def unregistered(self) -> None:
        """The tables were dropped, and this worker's row with them."""
        self._registered = False

    async def patiently(self, attempt: Callable[[], Coroutine[Any, Any, T]], wait_seconds: float) -> T:
        """See the function of this name."""
        return await patiently(attempt, wait_seconds, self.logger)

    def spare_connection(self) -> Database | None:
        """The connection while no worker writes over it: whoever attaches may share it, for its calls queue."""
        return self._database if self._opened and self._writer is None else None

    async def reading(self) -> Study:
        """The study for reading and for upkeep: over a connection of its own while experiments run."""
        if not self.runs:
            return self.study
        if self._reader is None:
            self._reader = self.study.sibling(self._connect())
            self._connections.append(self._reader.db)
        return self._reader

    # ---------------------------------------------------------------------------------------- worker

    async def start_worker(
        self, interval_seconds: float, lease_seconds: float, *, max_attempts: int, wait_seconds: float = 0.0
    ) -> None:
        """Registers this worker and starts its sign of life and its writer, once; looks for dead workers' rows."""
        async with self._starting:
            self._max_attempts = max_attempts
            await self.patiently(lambda: self._sign_in(lease_seconds), wait_seconds)
            self._must_be_open()
            if self._writer is not None:
                self._keep_lease(interval_seconds, lease_seconds)
                self.look()
                return
            self._lease = (interval_seconds, lease_seconds)
            self._writer = Writer(
                self.study,
                self.identity,
                self.logger,
                lost=self._lost,
                away=self._away,
                longest_wait_seconds=interval_seconds,
            )
            self._start_service()
            if self._codecarbon is not None:
                self.energy = Energy(self._codecarbon, self.study, self._writer, self.logger)

    async def _sign_in(self, lease_seconds: float) -> None:
        if self._registered and not self.runs:
            await workers.forget_stop(self.study, self.identity.id)
        if not self._registered:
            await workers.register(self.study, self.identity, lease_seconds, provenance.here())
            self._registered = True

    def _start_service(self) -> None:
        self._service = self._new_service(*self._lease)
        self._service.start()
        # At the interpreter's end, or when nobody holds this any more, the worker's row is marked stopped.
        self._end_service = weakref.finalize(self, _end, self._service)

    def _keep_lease(self, interval_seconds: float, lease_seconds: float) -> None:
        if self._service is not None and not self._service.alive:  # it broke, and the calls of that time raised
            self._start_service()
        if (interval_seconds, lease_seconds) != self._lease:
            self.logger.warning(
                "heartbeat_interval and lease stay %g and %g s: a worker keeps those of its first call", *self._lease
            )

    def _new_service(self, interval_seconds: float, lease_seconds: float) -> Service:
        me = weakref.ref(self)

        def here(call: Callable[[Session], Any]) -> Callable[[], Any]:
            return lambda: call(session) if (session := me()) is not None else None

        totals, max_attempts = self.totals, self._max_attempts
        callbacks = Callbacks(
            totals=lambda: (totals["done"], totals["error"]),
            busy=lambda: bool(session.live) if (session := me()) else False,
            owes=lambda: session._owes() if (session := me()) else True,
            stalled=lambda seconds, what: session._stalled(seconds, what) if (session := me()) else {},
            ended=lambda ended: session._ended(ended) if (session := me()) else None,
            robbed=here(Session._robbed),
            asked=lambda requests: session._asked(requests) if (session := me()) else None,
            stop=lambda by: session.stop(by) if (session := me()) else None,
            woken=here(Session._woken),
            broken=lambda failure: session._broken(failure) if (session := me()) else None,
        )
        return Service(
            self.study,
            self._connect,
            self.identity,
            interval_seconds,
            lease_seconds,
            callbacks,
            provenance.git,
            Rescuer(
                self.identity.id,
                _here(self.identity.machine),
                interval_seconds,
                lambda: session._max_attempts if (session := me()) else max_attempts,
                self.logger,
            ),
            self.logger,
        )

    def look(self) -> asyncio.Future[Look]:
        """A look for dead workers' rows; it waits while the database is away."""
        assert self._service is not None, "start_worker() comes first"
        return self._service.look()

    @property
    def writer(self) -> Writer:
        assert self._writer is not None, "start_worker() comes first"
        return self._writer

    def ended(self, outcome: str) -> None:
        """Counts an end for the totals that the beat carries."""
        if outcome in self.totals:
            self.totals[outcome] += 1

    def stop(self, by: str) -> bool:
        """Asks every run of this worker to stop gracefully; whether there is a worker at all."""
        if self.runs:
            self.logger.warning("Stop asked for by %s", by)
        for run in list(self.runs):
            run.stop("stop")
        return self._registered

    def _lost(self, key: Key) -> None:
        self._robbed_of.append(key)
        if self._telling is None:
            self._telling = self.loop.create_task(self._tell_of_losses(), name="asyncexp losses")
        live = self.live.get(key)
        if live is not None:
            live.run.lost(live)

    async def _tell_of_losses(self) -> None:
        """Says in the log what was lost, why, and to whom, as far as the database tells."""
        while self._robbed_of:
            await asyncio.sleep(0)  # those lost by one flush are told together
            keys, self._robbed_of = self._robbed_of, []
            try:
                found = await fates(await self.reading(), keys)
            except DatabaseError:
                found = {}
            for key in keys:
                self.logger.warning(
                    "Experiment %d (attempt %d) was taken away from this worker: %s. What it sends is refused.",
                    *key,
                    found.get(key, "what became of it is unknown"),
                )
        self._telling = None

    def _away(self) -> None:
        for run in list(self.runs):
            if run.options.stop_on_outage:
                run.stop("outage")

    def _asked(self, requests: Sequence[Request]) -> None:
        for request in requests:
            live = self.live.get(request.key)
            if live is not None:
                live.run.asked(request, live)
            else:
                self.early[request.key] = request

    async def unfinished(self, wanted: Wanted, of: Sequence[int] | None) -> float | None:
        """Whether rows of this selection run in the name of these workers; if None, of any, and open ones count, too.

        The seconds that it took to see; None if there are none.
        """
        try:
            study = await self.reading()
            began = time.monotonic()
            names = ["running", *(["created"] if of is None and wanted.status == "created" else [])]
            chosen = life.selection(study, names, wanted.where, wanted.ids)
            if of is not None:
                params = {**chosen.params, "workers": study.integers(of)}
                chosen = Condition(f"{chosen.sql} AND {study.member(WORKER, ':workers')}", params)
            found = await read.any_of(study, chosen)
        except Outage:
            return 0.0
        return time.monotonic() - began if found else None

    def _robbed(self) -> None:
        """Rows may have been taken away: whatever is sent for them tells."""
        if self._writer is not None:
            for key in list(self.live):
                self._writer.mention(key, {})

    def _owes(self) -> bool:
        return self._writer is not None and bool(self._writer.known)

    def _stalled(self, seconds: float, what: str) -> dict[Key, End | None]:
        """Called in the service's thread, while this one is blocked."""
        return {key: live.run.stalled(seconds, what) for key, live in list(self.live.items())}

    def _ended(self, ended: Mapping[Key, tuple[End, Ended]]) -> None:
        for key, (end, how) in ended.items():
            live = self.live.get(key)
            if live is not None:
                live.run.ended_elsewhere(live, end, how)

    def _woken(self) -> None:
        for run in list(self.runs):
            run.woken()

    def _broken(self, failure: BaseException) -> None:
        for run in list(self.runs):
            run.fail(failure)

    def snapshot(self) -> Snapshot:
        """What the runs are at, from memory."""
        now, utc_now = time.monotonic(), utc()
        beaten = None if self._service is None else self._service.beaten
        since = None if self._writer is None else self._writer.away_since
        found = sorted(self.live.values(), key=lambda live: live.began or now)
        return Snapshot(
            tuple(_seen(live, self.identity.id, now, utc_now) for live in found if not live.over),
            tuple(failure for run in self.runs for failure in run.failures),
            None if since is None else now - since,
            None if beaten is None else now - beaten,
            self._lease[1],
        )

    # --------------------------------------------------------------------------------------- closing

    async def close(self) -> None:
        """Stops what runs, writes what is left, and closes every connection and thread of its own."""
        self._closed = True
        for run in list(self.runs):
            run.stop_now("stop")
        await asyncio.gather(*(run.finished.wait() for run in self.runs))
        try:
            if self.energy is not None:
                await self.energy.close()
            if self._writer is not None:
                await self._writer.close(CLOSE_LIMIT_SECONDS)
        finally:
            await self._close_rest()

    async def _close_rest(self) -> None:
        if (telling := self._telling) is not None:
            await asyncio.wait([telling], timeout=TELLING_SECONDS)
            telling.cancel()
        if self._service is not None:
            self._service.close()
            await self._service.closed()
        if self._end_service is not None:
            self._end_service.detach()
        self._drop.detach()
        for database in self._connections:
            await database.close()

    def discard(self) -> None:
        """Drops everything without a loop: its own was closed."""
        for run in self.runs:
            run.abandon()
        signals.abandon(self.loop)
        if self.energy is not None:
            self.energy.discard()
        if self._service is not None:
            self._service.close()
            self._service.join(LONGEST_WAIT_SECONDS)
        self.abandon()

    def abandon(self) -> None:
        """Drops the connections without a byte sent: after a fork."""
        self._drop()


def _seen(live: Live, worker: int, now: float, utc_now: datetime) -> Running:
    begun = live.began is not None
    report = live.report
    return Running(
        live.key[0],
        live.experiment.keyfields,
        live.key[1],
        worker,
        utc_now - timedelta(seconds=now - live.began) if live.began is not None else None,
        utc_now - timedelta(seconds=now - live.last_sign) if begun else None,
        None if report is None else report.progress,
        None if report is None else report.message,
    )


async def check_tables(study: Study) -> None:
    """Compares the tables with the configuration.

    Raises:
        MissingTable: they are not there.
        TableHasWrongStructureError: they are not what the configuration describes.
    """
    if await study.db.columns(study.schema.name) is None:
        raise MissingTable(
            f"There is no table {study.schema.name!r} in this database yet: fill it first "
            "(`fill_table_from_config()`), or call `create_table()`."
        )
    await setup.check(study)


async def patiently(attempt: Callable[[], Coroutine[Any, Any, T]], wait_seconds: float, logger: logging.Logger) -> T:
    """What `attempt` gives, made anew for `wait_seconds` while the database is away.

    Raises:
        DatabaseConnectionError, SshTunnelError: it, or the way to it, stayed away.
    """
    until = time.monotonic() + wait_seconds
    wait = FIRST_WAIT_SECONDS
    while True:
        try:
            return await attempt()
        except Outage as outage:
            if time.monotonic() + wait > until:
                lasting = SshTunnelError if isinstance(outage, SshTunnelError) else DatabaseConnectionError
                raise lasting(str(outage)) from None
            if wait == FIRST_WAIT_SECONDS:
                logger.warning("Trying for %g s to reach the database: %s", wait_seconds, outage)
        await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # or else many would come back together
        wait = min(LONGEST_WAIT_SECONDS, wait * 2)


def _here(machine: str) -> Place:
    facts = provenance.here()
    return Place(machine, facts["boot_id"], facts["pid_namespace"])


def _abandon(connections: list[Database]) -> None:
    for database in connections:
        database.abandon()


def _end(service: Service) -> None:
    service.close()
    service.join(LONGEST_WAIT_SECONDS)
