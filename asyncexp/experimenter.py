"""`Experimenter`: the facade. It opens, closes and delegates; what it promises stands in its docstrings."""

from __future__ import annotations

import asyncio
import inspect
import logging
import operator
import os
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack, overload

from asyncexp import attach, config, html, logs, provenance
from asyncexp.attach import Attachment
from asyncexp.db import connect
from asyncexp.db.base import Database, T
from asyncexp.db.whole import immortal, shielded
from asyncexp.errors import (
    DatabaseCreationError,
    DatabaseError,
    InvalidConfigError,
    MissingLogTableError,
    NoPausedExperimentsException,
    ParameterCombinationError,
    unknown,
)
from asyncexp.execution import Call, perform
from asyncexp.experiment import ExperimentId, ExperimentStatus, Snapshot, Summary
from asyncexp.pools.base import check_function, lineage
from asyncexp.results import ResultProcessor, SyncResultProcessor
from asyncexp.schema import RANDOM_INDEX, Schema, Table
from asyncexp.session import Session
from asyncexp.store import detail, life, lines, look, migrate, read, rights, rows, server, setup
from asyncexp.store import workers as worker_rows
from asyncexp.store.claim import Wanted
from asyncexp.store.fill import Filled, KeyRow, Preview, preview
from asyncexp.store.rows import fill_rows
from asyncexp.store.study import Condition, Study, statuses
from asyncexp.tables import frame
from asyncexp.worker import Options

if TYPE_CHECKING:
    import pandas as pd

    from asyncexp.config.models import Configuration, ExecutionConfig, SshConfig
    from asyncexp.store.detail import Detail
    from asyncexp.store.lines import LogMark
    from asyncexp.store.look import Overview
    from asyncexp.store.read import ErrorGroup, PastAttempt
    from asyncexp.store.rights import Rights
    from asyncexp.store.server import ServerInfo
    from asyncexp.store.workers import WorkerInfo
    from asyncexp.tunnel import Tunnel

Status = ExperimentStatus | str
PathLike = str | os.PathLike[str]
ExperimentFunction = Callable[..., Any]
"""`(keyfields, result_processor, custom_fields) -> None | ExperimentStatus`, `def` or `async def`."""


class ExecutionKeywords(TypedDict, total=False):
    """What the configuration's `Execution` section holds, as keywords of a call; times in seconds."""

    timeout: float | None
    stall_timeout: float | None
    max_attempts: int
    retries: int
    retry_delay: float
    retry_on: Sequence[type[BaseException] | str] | None
    max_errors: int | None
    grace: float
    heartbeat_interval: float
    lease: float
    on_outage: Literal["continue", "stop"]
    database_wait: float
    poll_interval: float
    max_tasks_per_child: int | None
    worker_env: Mapping[str, str | Sequence[str]]


class SelectionKeywords(ExecutionKeywords, total=False):
    """Further keywords of calls that run one experiment."""

    n_jobs: int | None
    pool: Literal["task", "process"] | None
    progress: bool | Callable[[Summary], None] | None
    handle_signals: bool | None


class Experimenter:
    """Runs a table of experiments; one open `Experimenter` in one process is one worker.

    Use it as `async with Experimenter() as experimenter:`, or close it by `aclose()`. The constructor reads the
    configuration and does no other I/O. It pickles, without connection or password, and works from any
    process and event loop: each gets its own connections.

    Args:
        experiment_configuration_file_path: YAML or `.cfg`; by default the first that exists of
            `config/experiment_configuration.{yml,yaml,cfg}`.
        database_credential_file_path: likewise `config/database_credentials.{yml,yaml,cfg}`; needed only for
            a server database.
        use_ssh_tunnel: whether to reach a server database through SSH; None: as the configuration says.
        database_name: instead of the configuration's.
        table_name: instead of the configuration's; log tables follow.
        use_codecarbon: whether energy is to be tracked.
        name: written into each row that this worker runs; a SLURM job id fits here.
        logger_name: an existing logger of this name is used as it is, and `log_file` ignored.
        log_level: of a logger made here.
        log_file: of a logger made here; its folder is made.

    Raises:
        NoConfigFileError: no configuration at the path, or at any default place.
        ConfigError: the configuration is wrong; the message says where, and what to write.
    """

    def __init__(
        self,
        experiment_configuration_file_path: PathLike | None = None,
        database_credential_file_path: PathLike | None = None,
        *,
        use_ssh_tunnel: bool | None = None,
        database_name: str | None = None,
        table_name: str | None = None,
        use_codecarbon: bool = True,
        name: str = "PyExperimenter",
        logger_name: str = "py-experimenter",
        log_level: int | str = logging.INFO,
        log_file: PathLike | None = "py-experimenter.log",
    ) -> None:
        self._arguments: dict[str, Any] = {
            "database_credential_file_path": _absolute(database_credential_file_path),
            "use_ssh_tunnel": use_ssh_tunnel,
            "database_name": database_name,
            "table_name": table_name,
            "use_codecarbon": use_codecarbon,
            "name": name,
            "logger_name": logger_name,
            "log_level": log_level,
            "log_file": _absolute(log_file),
        }
        self._configuration: Configuration = config.load(
            experiment_configuration_file_path,
            database_name=database_name,
            table_name=table_name,
            use_ssh_tunnel=use_ssh_tunnel,
            credentials=self._arguments["database_credential_file_path"],
        )
        self._schema = Schema.from_config(self._configuration.database)
        self._logger = logs.logger(logger_name, log_level, self._arguments["log_file"])
        self._sessions: dict[int, Session] = {}
        self._attachments: set[Attachment] = set()
        self._tunnels: dict[tuple[int, bool], Tunnel] = {}
        """By event loop, and whether it is that of attached workers alone."""
        self._tables_are_right = False
        self._pid = os.getpid()

    @property
    def configuration(self) -> Configuration:
        """The configuration in force, overrides included."""
        return self._configuration

    def __repr__(self) -> str:
        if not hasattr(self, "_configuration"):  # its constructor failed, and its frame is looked at
            return "Experimenter()"
        database = self._configuration.database
        return f"Experimenter(table={database.table.name!r}, {database.provider} database {database.database!r})"

    def _repr_html_(self) -> str:
        database = self._configuration.database
        facts = [
            ("database", f"{database.provider}, {database.database}"),
            ("keyfields", ", ".join(self._schema.key_names)),
            ("resultfields", ", ".join(column.name for column in self._schema.resultfields)),
            ("log tables", ", ".join(self._schema.logs)),
            ("configuration", self._configuration.path),
        ]
        return html.table(f"Experimenter of table {database.table.name}", [fact for fact in facts if fact[1]])

    def __getstate__(self) -> dict[str, Any]:
        arguments = dict(self._arguments)
        if self._configuration.database.provider == "sqlite":
            arguments["database_name"] = config.target(self._configuration).database
        return {"path": self._configuration.path, "arguments": arguments}

    def __setstate__(self, state: dict[str, Any]) -> None:
        credentials = state["arguments"].pop("database_credential_file_path")
        Experimenter.__init__(self, state["path"], credentials, **state["arguments"])

    # --------------------------------------------------------------------------------- open and close

    async def __aenter__(self) -> Self:
        try:
            await self._session(tables=False)
        except DatabaseCreationError:
            # Without the database `create_table(create_database=True)` can still be called; all else will say so.
            return self
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stops what runs, writes what is left, and closes every connection and thread; twice is no error.

        A cancellation that comes meanwhile is raised when all is closed.
        """
        self._forget_strangers()
        session = self._sessions.pop(id(asyncio.get_running_loop()), None)
        await shielded(self._close(session))
        logs.release(self._logger)

    async def _close(self, session: Session | None) -> None:
        try:
            await asyncio.gather(*(attachment.close() for attachment in self._attached_here()))
        finally:
            try:
                if session is not None:
                    await session.close()
            finally:
                await self.close_ssh_tunnel()

    async def close_ssh_tunnel(self) -> None:
        """Closes the SSH tunnel, if one was opened. A later call that needs it opens it again."""
        self._forget_strangers()
        loop = asyncio.get_running_loop()
        for tunnel in [tunnel for tunnel in self._tunnels.values() if tunnel.loop is loop]:
            await tunnel.close()

    close_ssh = close_ssh_tunnel

    async def _session(
        self,
        *,
        make: bool = False,
        tables: bool = True,
        again: bool = False,
        create_database: bool = False,
        wait_seconds: float = 0.0,
    ) -> Session:
        """What this process and event loop have open, opened if need be; see `Session.prepare` for the rest."""
        self._forget_strangers()
        loop = asyncio.get_running_loop()
        session = self._sessions.get(id(loop))
        if session is None:
            session = self._sessions[id(loop)] = self._new_session()
        await session.open(create_database=create_database, wait_seconds=wait_seconds)
        if tables:
            await session.prepare(make=make, again=again, wait_seconds=wait_seconds)
        return session

    def _new_session(self) -> Session:
        name: str = self._arguments["name"]
        wanted = self._arguments["use_codecarbon"]
        codecarbon = self._configuration.codecarbon if wanted else None
        return Session(self._connecting(), self._schema, self._logger, name, self._configuration.custom, codecarbon)

    def _connecting(self, *, attached: bool = False) -> Callable[[], Database]:
        """What makes connections to the database, for this worker or for one that joins an experiment."""
        credentials = self._arguments["database_credential_file_path"]
        target = config.target(self._configuration, credentials)
        ssh = config.ssh(self._configuration, credentials)
        return partial(connect, target, None if ssh is None else self._tunnel(ssh, attached=attached))

    def _tunnel(self, ssh: SshConfig, *, attached: bool) -> Tunnel:
        """That of this event loop. Who joins an experiment takes the worker's, or one that begins at any free port."""
        from asyncexp.tunnel import Tunnel

        loop = id(asyncio.get_running_loop())
        attached = attached and (loop, False) not in self._tunnels
        if (loop, attached) not in self._tunnels:
            self._tunnels[loop, attached] = Tunnel(ssh, self._logger, any_port=attached)
        return self._tunnels[loop, attached]

    def _forget_strangers(self) -> None:
        """Drops what belongs to another process or to a loop that was closed."""
        if self._pid != os.getpid():
            strangers: list[Session | Attachment] = [*self._sessions.values(), *self._attachments]
            for stranger in strangers:
                stranger.abandon()
                immortal(stranger)  # else its tasks, which wait on the parent's event loop, would complain
            self._sessions.clear()
            self._attachments.clear()
            self._tunnels.clear()
            self._pid = os.getpid()
        for key, session in list(self._sessions.items()):
            if session.loop.is_closed():
                del self._sessions[key]
                session.discard()
        for attachment in list(self._attachments):
            if attachment.loop.is_closed():
                self._attachments.discard(attachment)
                attachment.abandon()
        for whose, tunnel in list(self._tunnels.items()):
            if tunnel.loop.is_closed():
                del self._tunnels[whose]
                tunnel.end()

    async def _reading(self, *, again: bool = False) -> Study:
        return await (await self._session(again=again)).reading()

    # -------------------------------------------------------------------------------------- the tables

    async def create_table(self, create_database: bool = False) -> None:
        """Makes what is missing: the tables, and the database itself if asked to.

        Raises:
            TableHasWrongStructureError: the table has another structure; the difference is named.
            DatabaseCreationError: the database does not exist or may not be made.
        """
        await self._session(make=True, create_database=create_database)

    async def migrate(self) -> None:
        """Adds to the tables what the configuration has and they lack; never drops or retypes.

        Resultfields and log columns are NULL in old rows; a keyfield takes its `default:` there. A table
        that PyExperimenter made gets its bookkeeping.

        Raises:
            TableHasWrongStructureError: what cannot be mended by adding.
        """
        session = await self._session(tables=False)
        await migrate.migrate(session.study, self._configuration.database.table.keyfields, self._logger)
        session.unprepared()
        await session.prepare(make=True)

    async def preview_migration(self) -> dict[str, list[str]]:
        """What `migrate` would add: table -> columns; a table that is missing would be made with all of its own.

        Raises:
            TableHasWrongStructureError: as `migrate`.
        """
        if self._file_is_missing():
            return {table.name: [column.name for column in table.columns] for table in self._schema.tables}
        study = (await self._session(tables=False)).study
        lacking = await migrate.missing(study, self._configuration.database.table.keyfields)
        made = {table.name: list(table.columns) for table in study.schema.tables if table.name not in lacking}
        return {name: [column.name for column in columns] for name, columns in {**lacking, **made}.items() if columns}

    async def check_rights(self) -> Rights:
        """Tries what this user may do to the tables and to make some, each by a statement that changes nothing."""
        return await rights.tried((await self._session(tables=False)).study)

    async def server(self) -> ServerInfo:
        """Which server this is, how it was reached, how its clock goes, and how many connections it has left."""
        return await server.asked((await self._session(tables=False)).study)

    async def delete_table(self) -> None:
        """Drops everything that belongs to the table."""
        session = await self._session(tables=False)
        await setup.drop(session.study)
        session.unprepared()
        session.unregistered()

    # ------------------------------------------------------------------------------------------ filling

    async def fill_table_from_config(self, *, progress: Callable[[Filled], None] = rows.silent) -> Filled:
        """Adds every combination of the keyfields' values that is not there yet.

        Args:
            progress: hears after each 10,000 rows what was added so far.

        Returns:
            How many rows were added, and how many existed.

        Raises:
            InvalidValuesInConfiguration: a keyfield has no values.
        """
        values = rows.configured(self._configuration.database.table.keyfields)
        study = (await self._session(make=True, again=True)).study
        return self._filled(await rows.fill(study, rows.Rows(study).product(values), progress))

    async def preview_fill(
        self,
        shown: int = 5,
        *,
        rows: Iterable[Mapping[str, Any]] | pd.DataFrame | None = None,
        create_database: bool = False,
    ) -> Preview:
        """What `fill_table_from_config` would do, and the first few rows; nothing is made or written.

        Args:
            shown: so many of the first rows are shown.
            rows: what `fill_table_with_rows` would do with these.
            create_database: a database that does not exist is no error, but empty.

        Raises:
            InvalidValuesInConfiguration: a keyfield has no values.
            ParameterCombinationError: a row has a missing, unknown or impossible keyfield.
            TableHasWrongStructureError: the table is not what the configuration describes.
        """
        study, exists = await self._as_it_is(create_database)
        return await preview(study, self._to_add(study, rows), shown, exists=exists)

    def _to_add(self, study: Study, given: Iterable[Mapping[str, Any]] | pd.DataFrame | None) -> Iterable[KeyRow]:
        if given is not None:
            return rows.given(study, given)
        return rows.Rows(study).product(rows.configured(self._configuration.database.table.keyfields))

    async def _as_it_is(self, create_database: bool) -> tuple[Study, bool]:
        """The study, and whether its table is there; nothing is made, not even the file by being opened."""
        if self._file_is_missing():
            return self._unopened(), False
        try:
            study = (await self._session(tables=False)).study
        except DatabaseCreationError:
            if not create_database:
                raise
            return self._unopened(), False
        await setup.check(study, missing_is_error=False)
        return study, await study.db.columns(study.schema.name) is not None

    def _file_is_missing(self) -> bool:
        where = config.target(self._configuration, self._arguments["database_credential_file_path"])
        return where.provider == "sqlite" and not Path(where.database).exists()

    def _unopened(self) -> Study:
        return Study(self._connecting()(), self._schema, self._logger.warning)

    async def fill_table_with_rows(
        self,
        rows: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]] | pd.DataFrame,
        *,
        progress: Callable[[Filled], None] = rows.silent,
    ) -> Filled:
        """Adds rows, each a dict with a value for every keyfield; those that exist are passed over.

        Args:
            rows: any iterable of dicts, or a DataFrame.
            progress: hears after each 10,000 rows what was added so far.

        Raises:
            ParameterCombinationError: a keyfield is missing, unknown or impossible; row and field are named.
            EmptyFillDatabaseCallError: there are no rows.
        """
        session = await self._session(make=True, again=True)
        return self._filled(await fill_rows(session.study, rows, progress))

    async def fill_table_from_combination(
        self,
        fixed_parameter_combinations: Sequence[Mapping[str, Any]] | None = None,
        parameters: Mapping[str, Iterable[Any]] | None = None,
    ) -> Filled:
        """Adds fixed combinations times the Cartesian product of `parameters`.

        Raises:
            ParameterCombinationError: a keyfield is missing, unknown, given twice or impossible.
        """
        session = await self._session(make=True, again=True)
        product = rows.Rows(session.study).product(parameters or {}, fixed_parameter_combinations or [{}])
        return self._filled(await rows.fill(session.study, product))

    def _filled(self, filled: Filled) -> Filled:
        self._logger.info("%d rows successfully added to database. %d rows were skipped.", filled.added, filled.existed)
        return filled

    # ---------------------------------------------------------------------------------------- executing

    async def execute(
        self,
        experiment_function: ExperimentFunction,
        *,
        max_experiments: int = -1,
        random_order: bool = False,
        n_jobs: int | None = None,
        pool: Literal["task", "process"] | None = None,
        where: Mapping[str, Any] | None = None,
        experiment_ids: Iterable[int] | int | None = None,
        until: Literal["empty", "finished"] = "empty",
        from_status: Literal["created", "paused"] = "created",
        progress: bool | Callable[[Summary], None] | None = None,
        handle_signals: bool | None = None,
        **execution: Unpack[ExecutionKeywords],
    ) -> Summary:
        """Claims rows and runs the function for each, until nothing is left to claim.

        The function is called `(keyfields, result_processor, custom_fields)`; `async def` runs as a task, `def` in a
        child process. None or DONE ends the row as done, an exception as error, and the others go on.

        Args:
            max_experiments: attempts that this call starts at most; -1: all.
            random_order: in random order instead of that of the IDs.
            n_jobs: how many at once; None: as configured; -1: the usable cores.
            pool: `"process"`: in child processes, one a slot, `async def` too; `"task"`: in this process, `def` in
                threads.
            where: only rows with these keyfield values; a list means any of them.
            experiment_ids: only these rows.
            until: `"empty"`: until nothing is left to claim; `"finished"`: until no such row runs anywhere either,
                those of dead workers taken over. Paused rows are not waited for.
            from_status: `"paused"` continues paused rows.
            progress: True a bar, None a bar on a terminal and in a notebook, False nothing, or a function of the
                summary.
            handle_signals: None: SIGINT and SIGTERM stop it gracefully when in the main thread and SIGTERM has its
                default action.
            **execution: every key of the configuration's `Execution` section.

        Returns:
            How many attempts ended how, the seconds it took, and what stopped it early, if anything did.

        Raises:
            InvalidConfigError: an unknown or impossible keyword or value.
            DatabaseError: the database refused something that is not the experiments' fault, or it stayed away from
                a call that was told to stop and results could not be stored.
        """
        options, settings = self._options(n_jobs, max_experiments, random_order, execution)
        options = replace(options, until_finished=until == "finished")
        _check_choice("until", until, ("empty", "finished"))
        _check_choice("from_status", from_status, ("created", "paused"))
        session = await self._session(again=True, wait_seconds=settings.database_wait)
        now = partial(_now, session.study)
        wanted = Wanted(
            0,
            from_status,
            session.study.condition(where, self._schema.keyfields),
            None if experiment_ids is None else tuple(_ids(experiment_ids)),
            since=await session.patiently(now, settings.database_wait) if from_status == "paused" else None,
        )
        if random_order:
            index = partial(setup.make_index, session.study, self._schema.main, RANDOM_INDEX)
            await session.patiently(index, settings.database_wait)
        call = Call(experiment_function, wanted, options, settings, pool, progress, handle_signals)
        return (await perform(session, call)).summary()

    async def add_experiment_and_execute(
        self,
        keyfields: Mapping[str, Any],
        experiment_function: ExperimentFunction,
        **keywords: Unpack[SelectionKeywords],
    ) -> ExperimentStatus | None:
        """Adds one row already claimed and runs it; a row that exists and is `created` is claimed and run.

        Returns:
            The row's status afterwards; None if it was deleted meanwhile. The function's own exception is never raised.

        Raises:
            ParameterCombinationError: a keyfield is missing, unknown or impossible.
            DatabaseError: the row exists and is not `created`; its status is named.
        """
        session = await self._session(make=True, again=True)
        row = rows.Rows(session.study).one(keyfields, "keyfields")
        return await self._run_one(session, experiment_function, Wanted(1, add=row), keywords)

    async def unpause_experiment(
        self,
        experiment_id: int,
        experiment_function: ExperimentFunction,
        **keywords: Unpack[SelectionKeywords],
    ) -> ExperimentStatus | None:
        """Claims exactly that paused row and runs the function; results and logs so far are kept.

        Returns:
            The row's status afterwards. The function's own exception is never raised.

        Raises:
            NoPausedExperimentsException: the row is not paused; the message says what it is.
        """
        session = await self._session(again=True)
        await _must_be_paused(session.study, experiment_id)
        since = await _now(session.study)
        wanted = Wanted(1, "paused", ids=(int(experiment_id),), early=True, since=since)
        status = await self._run_one(session, experiment_function, wanted, keywords)
        if status is None:
            await _must_be_paused(session.study, experiment_id)
        return status

    async def _run_one(
        self, session: Session, function: ExperimentFunction, wanted: Wanted, keywords: SelectionKeywords
    ) -> ExperimentStatus | None:
        execution = {k: v for k, v in keywords.items() if k in ExecutionKeywords.__annotations__}
        unknown_keys = keywords.keys() - SelectionKeywords.__annotations__.keys() - execution.keys()
        if unknown_keys:
            raise InvalidConfigError(unknown("no keyword", min(unknown_keys), SelectionKeywords.__annotations__))
        options, settings = self._options(1, -1, False, execution)
        call = Call(
            function,
            wanted,
            options,
            settings,
            keywords.get("pool"),
            keywords.get("progress", False),
            keywords.get("handle_signals"),
        )
        run = await perform(session, call)
        if run.last_id is None:
            return None
        status = await read.status_of(session.study, run.last_id)
        return None if status is None else ExperimentStatus(status)

    @overload
    async def attach(
        self,
        worker_function: Callable[[ResultProcessor], Coroutine[Any, Any, T]],
        experiment_id: int,
        *,
        wait: float = 0.0,
    ) -> T: ...

    @overload
    async def attach(
        self, worker_function: Callable[[SyncResultProcessor], T], experiment_id: int, *, wait: float = 0.0
    ) -> T: ...

    async def attach(self, worker_function: Callable[..., Any], experiment_id: int, *, wait: float = 0.0) -> Any:
        """Runs a function as part of an experiment that runs already, from any process or machine.

        The function is called `(result_processor)`; `async def` runs as a task, `def` in a thread. What it reports
        goes into the experiment's row and logs, over one connection of its own. The experiment's main function
        must not end before: join your workers first.

        Args:
            experiment_id: `result_processor.experiment_id` of the main function joins that very attempt; a bare
                int, the one under way.
            wait: seconds to wait until it runs; only for a bare int.

        Returns:
            What the function returned, once everything that it reported is committed.

        Raises:
            ExperimentLostError: the experiment does not run (the message says what it does instead), or it ended
                before the function did. An `async def` is cancelled then; a `def` hears of it from its next call.
            InvalidConfigError: the function cannot be called so, or `wait` is no time.
            BaseException: whatever the function raised, unchanged.
        """
        check_function("worker_function", worker_function, "result_processor")
        return await attach.perform(await self._attachment(experiment_id, wait), worker_function)

    async def _attachment(self, experiment_id: int, wait: float = 0.0) -> Attachment:
        """Joins a running experiment for somebody who calls the worker function himself, say in another thread.

        Let it report to `processor`, and await `end` on this event loop when it is over, whatever came of it.
        Raises as `attach` does before the function is called.
        """
        wanted = experiment_id if isinstance(experiment_id, ExperimentId) else _id(experiment_id)
        attach.check_wait(wait)
        self._forget_strangers()
        attachment = self._new_attachment()
        self._attachments.add(attachment)
        await attachment.open(wanted, wait, check=not self._tables_are_right)
        self._tables_are_right = True
        return attachment

    def _new_attachment(self) -> Attachment:
        """Over a connection of its own, or that of a session which has nothing to do: a process needs one then."""
        session = self._sessions.get(id(asyncio.get_running_loop()))
        spare = session.spare_connection() if session is not None else None
        lent = spare is not None and not any(other.lent for other in self._attached_here())
        return Attachment(
            spare if spare is not None and lent else self._connecting(attached=True)(),
            self._schema,
            self._logger,
            self._arguments["name"],
            config.execution(self._configuration),
            lent=lent,
            ended=self._attachments.discard,
        )

    def _attached_here(self) -> list[Attachment]:
        """What is attached on this event loop."""
        loop = asyncio.get_running_loop()
        return [attachment for attachment in list(self._attachments) if attachment.loop is loop]

    def _options(
        self, n_jobs: int | None, max_experiments: int, random_order: bool, execution: Mapping[str, Any]
    ) -> tuple[Options, ExecutionConfig]:
        """The keywords of a call over the environment over the configuration, checked."""
        for name in execution.keys() - ExecutionKeywords.__annotations__.keys():
            own = [
                each for each in inspect.signature(Experimenter.execute).parameters if each not in ("self", "execution")
            ]
            raise InvalidConfigError(unknown("no keyword", name, [*own, *ExecutionKeywords.__annotations__]))
        settings = config.execution(self._configuration, **execution)
        _check_count("max_experiments", max_experiments)
        options = Options(
            n_jobs=_jobs(self._configuration, n_jobs),
            max_experiments=max_experiments,
            random_order=random_order,
            retries=settings.retries,
            retry_delay=settings.retry_delay,
            retry_on=_names(config.retry_types(settings)),
            max_errors=settings.max_errors,
            timeout=settings.timeout,
            stall_timeout=settings.stall_timeout,
            grace=settings.grace,
            lease=settings.lease,
            poll_interval=settings.poll_interval,
            stop_on_outage=settings.on_outage == "stop",
        )
        return options, settings

    # ------------------------------------------------------------------------------ the life of a row

    async def reset_experiments(
        self, *which: Status, where: Mapping[str, Any] | None = None, ids: Iterable[int] | int | None = None
    ) -> int:
        """Deletes rows with their logs and creates them anew, without results and under new IDs, in one transaction.

        Args:
            *which: statuses, `"all"` too; running rows are touched only if named so.
            where: only rows with these keyfield values.
            ids: only these rows.

        Returns:
            How many rows.

        Raises:
            InvalidColumnError: no such status.
            ParameterCombinationError: no filter at all, or an unknown keyfield.
        """
        study = await self._reading(again=True)
        return await life.reset(study, self._selected(study, which, where, ids))

    async def delete_experiments(
        self, *which: Status, where: Mapping[str, Any] | None = None, ids: Iterable[int] | int | None = None
    ) -> int:
        """Deletes rows with all that belongs to them, in one transaction; as `reset_experiments`."""
        study = await self._reading()
        return await life.delete(study, self._selected(study, which, where, ids))

    async def retry_errors(self, where: Mapping[str, Any] | None = None, ids: Iterable[int] | int | None = None) -> int:
        """Puts rows in error back under the same ID; attempts so far no longer count. Returns how many."""
        study = await self._reading()
        return await life.retry(study, self._selected(study, ["error"], where, ids))

    async def count_selected(
        self, *which: Status, where: Mapping[str, Any] | None = None, ids: Iterable[int] | int | None = None
    ) -> dict[str, int]:
        """How many rows of each status `reset_experiments` and `delete_experiments` would touch. Raises as they do."""
        study = await self._reading()
        return await read.counts(study, self._selected(study, which, where, ids))

    async def ids(self, *which: Status, where: Mapping[str, Any] | None = None) -> list[int]:
        """The IDs of the rows of these statuses, in their order; of all rows, if no status is named.

        Args:
            where: only rows with these keyfield values.
        """
        study = await self._reading()
        chosen = study.condition(where, self._schema.keyfields)
        return await read.ids(study, life.selection(study, statuses(which or ["all"]), chosen, None))

    def _selected(
        self,
        study: Study,
        which: Sequence[Status],
        where: Mapping[str, Any] | None,
        ids: Iterable[int] | int | None,
    ) -> Condition:
        if not which and where is None and ids is None:
            raise ParameterCombinationError('Name at least one status, `where` or `ids`; "all" means every row.')
        chosen = study.condition(where, self._schema.keyfields)
        return life.selection(study, statuses(which), chosen, None if ids is None else _ids(ids))

    async def cancel(self, ids: Iterable[int] | int) -> list[int]:
        """Asks the workers that run these rows to end them as `error`. Returns the ids asked."""
        return await worker_rows.ask(await self._reading(), _ids(ids), "cancel", self._me())

    async def release(self, ids: Iterable[int] | int) -> list[int]:
        """Asks the workers that run these rows to put them back. Returns the ids asked."""
        return await worker_rows.ask(await self._reading(), _ids(ids), "release", self._me())

    async def stop(self, workers: Iterable[int] | int | None = None) -> list[int]:
        """Asks this worker, or those with these ids, to stop gracefully. Returns the ids asked."""
        session = await self._session()
        wanted = [session.identity.id] if workers is None else _ids(workers)
        # This worker is told directly: a request through the table could still be read when the next run has begun.
        told = [session.identity.id] if session.identity.id in wanted and session.stop(self._me()) else []
        others = [worker for worker in wanted if worker != session.identity.id]
        return told + await worker_rows.ask_to_stop(await session.reading(), others, self._me())

    def _me(self) -> str:
        return f"{self._arguments['name']} on {provenance.machine()} (pid {os.getpid()})"[:255]

    # -------------------------------------------------------------------------------------- reading

    async def counts(self, condition: Mapping[str, Any] | None = None) -> dict[str, int]:
        """How many rows are in each status."""
        study = await self._reading()
        return await read.counts(study, study.condition(condition, study.filter_columns))

    async def overview(self, condition: Mapping[str, Any] | None = None, *, longest: int = 10) -> Overview:
        """How the study stands: counts, workers, rate, what runs longest; by one scan of the table.

        Args:
            condition: as in `get_table`. Workers, their ends and the rate are those of all rows nevertheless; how many
                experiments each runs is of the rows chosen.
            longest: so many of the running experiments are shown one by one, those that run longest.
        """
        study = await self._reading()
        return await look.overview(study, study.condition(condition, study.filter_columns), longest)

    def snapshot(self) -> Snapshot:
        """What the calls of `execute` under way on this event loop are at, from memory: free of charge."""
        session = self._sessions.get(id(asyncio.get_running_loop()))
        return Snapshot((), (), None, None, 0.0) if session is None else session.snapshot()

    async def attempts(self, experiment_id: int) -> list[PastAttempt]:
        """The attempts at one experiment that ended other than done, in their order."""
        return await read.attempts(await self._reading(), _id(experiment_id))

    async def details(self, ids: Iterable[int] | int) -> list[Detail]:
        """All that is known of these experiments, in this order; those that do not exist are left out."""
        return await detail.details(await self._reading(), _ids(ids))

    async def workers(self) -> list[WorkerInfo]:
        """All workers of the table, the latest first: live, lost and stopped."""
        return await worker_rows.listed(await self._reading())

    async def errors(
        self, condition: Mapping[str, Any] | None = None, *, by: Literal["line", "place"] = "line"
    ) -> list[ErrorGroup]:
        """The errors grouped, the most frequent first, with counts and ids.

        Args:
            condition: as in `get_table`.
            by: `"line"`, the last line of the traceback; `"place"`, the exception and the frame that raised it.
        """
        _check_choice("by", by, ["line", "place"])
        study = await self._reading()
        grouping = read.last_line if by == "line" else read.alike
        return await read.errors(study, grouping, study.condition(condition, study.filter_columns))

    async def get_table(
        self, condition: Mapping[str, Any] | None = None, *, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """The table as a DataFrame, by ID; dates are naive UTC.

        Args:
            condition: values that keyfields, `status`, `ID`, … must have; a list means any of them.
            columns: these alone, in this order, which of a large table is quicker than all.

        Raises:
            ParameterCombinationError: no such column; the nearest is named.
        """
        study = await self._reading()
        return await _frame(study, self._schema.main, study.condition(condition, study.filter_columns), columns)

    async def get_logtable(
        self, name: str, condition: Mapping[str, Any] | None = None, *, all_attempts: bool = False
    ) -> pd.DataFrame:
        """A log table as a DataFrame, in the order written.

        Args:
            name: its short name, as in the configuration.
            condition: values that its columns must have, `experiment_id` among them.
            all_attempts: also the lines of attempts that were lost, released or tried again.

        Raises:
            MissingLogTableError: the configuration defines no such log table.
        """
        table = self._log_table(name)
        study = await self._reading()
        chosen = study.condition(condition, read.log_columns(table))
        return await _frame(study, table, chosen if all_attempts else read.visible(study, table, chosen))

    async def log_lines(
        self,
        name: str,
        ids: Iterable[int] | int | None = None,
        *,
        last: int | None = None,
        after: int = 0,
        most: int = 5_000,
        all_attempts: bool = False,
    ) -> list[dict[str, Any]]:
        """Some lines of a log table as dicts, in the order written: the last ones, or the page that follows a line.

        Args:
            name: its short name, as in the configuration.
            ids: only lines of these experiments.
            last: so many of the last; None: a page.
            after: the page follows the line of this `ID`; 0: it is the first.
            most: lines of a page.
            all_attempts: also the lines of attempts that were lost, released or tried again.

        Raises:
            MissingLogTableError: the configuration defines no such log table.
        """
        table, study = self._log_table(name), await self._reading()
        which = lines.chosen(study, table, None if ids is None else _ids(ids), all_attempts=all_attempts)
        if last is not None:
            return await lines.last_lines(study, table, which, last)
        return await lines.lines_after(study, table, which, after, most)

    async def new_log_lines(
        self,
        name: str,
        mark: LogMark | None = None,
        ids: Iterable[int] | int | None = None,
        *,
        all_attempts: bool = False,
    ) -> tuple[list[dict[str, Any]], LogMark]:
        """The lines of a log table that were committed since the call that gave `mark`, and the next mark.

        Each line comes once, also one that is committed after others of higher IDs. It may wait a minute for
        its commit; that no transaction of asyncexp does.

        Args:
            mark: None begins: no lines, and a mark.
            ids, all_attempts: as in `log_lines`.

        Raises:
            MissingLogTableError: the configuration defines no such log table.
        """
        table, study = self._log_table(name), await self._reading()
        if mark is None:
            return [], await lines.begun(study, table)
        which = lines.chosen(study, table, None if ids is None else _ids(ids), all_attempts=all_attempts)
        return await lines.new_lines(study, table, which, mark)

    def _log_table(self, name: str) -> Table:
        tables = self._schema.logs
        table = tables.get(name) or tables.get(name.removeprefix(f"{self._schema.name}__"))
        if table is None:
            raise MissingLogTableError(unknown("no log table", name, tables))
        return table

    async def get_codecarbon_table(self) -> pd.DataFrame:
        """The energy and emissions of the experiments as a DataFrame."""
        return await _frame(await self._reading(), self._schema.codecarbon, Condition())


async def _frame(study: Study, table: Table, which: Condition, columns: Sequence[str] | None = None) -> pd.DataFrame:
    if isinstance(columns, str):
        raise ParameterCombinationError(f"columns is a list of names, not {columns!r}")
    return frame(*await read.rows(study, table, which, columns))


async def _now(study: Study) -> Any:
    [(now,)] = await study.fetch(study.db, f"SELECT {study.dialect.now}")
    return now


async def _must_be_paused(study: Study, experiment_id: int) -> None:
    status = await read.status_of(study, experiment_id)
    if status != "paused":
        what = "does not exist" if status is None else f"is {status!r}"
        raise NoPausedExperimentsException(f"Experiment {experiment_id} {what}; only a paused one can be continued.")


def _jobs(configuration: Configuration, n_jobs: int | None) -> int:
    if n_jobs is not None and (isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or n_jobs < -1 or not n_jobs):
        raise InvalidConfigError(f"n_jobs={n_jobs!r}: a number of experiments at once, or -1 for the usable cores")
    return configuration.slots(n_jobs)


def _names(kinds: Sequence[type[BaseException]] | None) -> frozenset[str] | None:
    return None if kinds is None else frozenset(lineage(kind)[0] for kind in kinds)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < -1:
        raise InvalidConfigError(f"{name}={value!r}: a number from 0 on, or -1 for no limit")


def _check_choice(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise InvalidConfigError(unknown(f"{name}: no choice", value, known))


def _ids(ids: Iterable[int] | int) -> list[int]:
    several = isinstance(ids, Iterable) and not isinstance(ids, str | bytes)
    return [_id(each) for each in (ids if several else [ids])]  # type: ignore[union-attr]


def _id(given: Any) -> int:
    try:
        number = operator.index(given)
    except TypeError:
        number = 2**63
    if abs(number) >= 2**63:
        raise ParameterCombinationError(f"ids are whole numbers of 64 bits, not {given!r}")
    return number


def _absolute(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path).absolute()


__all__ = ["DatabaseError", "Experimenter", "KeyRow"]
