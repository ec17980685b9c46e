"""The same without asyncio, a drop-in for PyExperimenter: `from asyncexp.sync import PyExperimenter`."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Self, TypeVar, Unpack, cast, overload

from asyncexp import attach, config, signals
from asyncexp.background import Background
from asyncexp.experiment import ExperimentStatus, Snapshot, Summary
from asyncexp.experimenter import ExecutionKeywords, Experimenter, ExperimentFunction, PathLike, SelectionKeywords
from asyncexp.pools.base import check_function, is_async
from asyncexp.pools.caller import CallerPool
from asyncexp.results import SyncResultProcessor as ResultProcessor
from asyncexp.results import from_thread

if TYPE_CHECKING:
    import pandas as pd

    from asyncexp.config.models import Configuration, ExecutionConfig
    from asyncexp.results import ResultProcessor as AsyncResultProcessor

P = ParamSpec("P")
T = TypeVar("T")

__all__ = ["ExperimentStatus", "PyExperimenter", "ResultProcessor"]


def _blocking(
    method: Callable[Concatenate[Experimenter, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[PyExperimenter, P], T]:
    """The same method, which returns when the asynchronous one would."""

    def call(self: PyExperimenter, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._background.wait(lambda: method(self._experimenter, *args, **kwargs))

    functools.update_wrapper(call, method)
    call.__module__, call.__qualname__ = __name__, f"PyExperimenter.{method.__name__}"
    return call


class PyExperimenter:
    """`Experimenter` for programs that block: every method returns when the work is done.

    It needs no closing: use it as a context manager, call `close()`, or leave it; at garbage collection and at the
    interpreter's exit it closes itself. Used again after `close()`, it opens again. Any thread may call it, several at
    once; so may a thread with an event loop of its own, which waits meanwhile. It pickles, and works in a child
    process, forked or not: each process has its own connections.

    Args:
        experiment_configuration_file_path: YAML or `.cfg`; by default the first that exists of
            `config/experiment_configuration.{yml,yaml,cfg}`.
        database_credential_file_path: likewise `config/database_credentials.{yml,yaml,cfg}`; needed only for
            a server database.
        use_ssh_tunnel: None: as the configuration says.
        table_name: instead of the configuration's; log tables follow.
        database_name: instead of the configuration's.
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
        use_ssh_tunnel: bool | None = None,
        table_name: str | None = None,
        database_name: str | None = None,
        use_codecarbon: bool = True,
        name: str = "PyExperimenter",
        logger_name: str = "py-experimenter",
        log_level: int | str = logging.INFO,
        log_file: PathLike | None = "py-experimenter.log",
    ) -> None:
        self._experimenter = Experimenter(
            experiment_configuration_file_path,
            database_credential_file_path,
            use_ssh_tunnel=use_ssh_tunnel,
            database_name=database_name,
            table_name=table_name,
            use_codecarbon=use_codecarbon,
            name=name,
            logger_name=logger_name,
            log_level=log_level,
            log_file=log_file,
        )
        self._have_background()

    def _have_background(self) -> None:
        self._background = Background(self._experimenter.aclose)
        weakref.finalize(self, self._background.end).atexit = False  # see to the exit is what `Background` does

    def __repr__(self) -> str:
        return f"Py{self._experimenter!r}" if hasattr(self, "_experimenter") else "PyExperimenter()"

    def _repr_html_(self) -> str:
        return self._experimenter._repr_html_()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_background"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._have_background()

    @property
    def configuration(self) -> Configuration:
        """The configuration in force, overrides included."""
        return self._experimenter.configuration

    # --------------------------------------------------------------------------------- open and close

    def __enter__(self) -> Self:
        self._background.wait(self._experimenter.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops what runs, writes what is left, and closes every connection and thread; twice is no error."""
        self._background.close()

    close_ssh_tunnel = close_ssh = _blocking(Experimenter.close_ssh_tunnel)

    # ------------------------------------------------------------------------------ as `Experimenter` has it

    create_table = _blocking(Experimenter.create_table)
    migrate = _blocking(Experimenter.migrate)
    delete_table = _blocking(Experimenter.delete_table)
    fill_table_from_config = _blocking(Experimenter.fill_table_from_config)
    fill_table_with_rows = _blocking(Experimenter.fill_table_with_rows)
    fill_table_from_combination = _blocking(Experimenter.fill_table_from_combination)
    reset_experiments = _blocking(Experimenter.reset_experiments)
    delete_experiments = _blocking(Experimenter.delete_experiments)
    retry_errors = _blocking(Experimenter.retry_errors)
    count_selected = _blocking(Experimenter.count_selected)
    ids = _blocking(Experimenter.ids)
    cancel = _blocking(Experimenter.cancel)
    release = _blocking(Experimenter.release)
    stop = _blocking(Experimenter.stop)
    counts = _blocking(Experimenter.counts)
    workers = _blocking(Experimenter.workers)
    overview = _blocking(Experimenter.overview)
    attempts = _blocking(Experimenter.attempts)
    details = _blocking(Experimenter.details)
    log_lines = _blocking(Experimenter.log_lines)
    new_log_lines = _blocking(Experimenter.new_log_lines)
    preview_fill = _blocking(Experimenter.preview_fill)
    preview_migration = _blocking(Experimenter.preview_migration)
    check_rights = _blocking(Experimenter.check_rights)
    server = _blocking(Experimenter.server)
    errors = _blocking(Experimenter.errors)
    get_table = _blocking(Experimenter.get_table)
    get_codecarbon_table = _blocking(Experimenter.get_codecarbon_table)

    # ---------------------------------------------------------------------------------------- executing

    def execute(
        self,
        experiment_function: ExperimentFunction,
        random_order: bool = False,
        n_jobs: int | None = None,
        max_experiments: int = -1,
        *,
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

        The function is called `(keyfields, result_processor, custom_fields)`. None or DONE ends the row as done, an
        exception as error, and the others go on: `max_errors` is -1 here, unless given or configured.

        A `def` with `n_jobs=1` runs in the thread that calls this, unless something is asked for, here or in the
        configuration, that only a pool can do: `pool`, `timeout`, `stall_timeout`, `worker_env`,
        `max_tasks_per_child`. Else, and for `async def`, it runs as with `Experimenter`.

        Args:
            random_order: in random order instead of that of the IDs.
            n_jobs: how many at once; None: as configured; -1: the usable cores.
            max_experiments: attempts that this call starts at most; -1: all.
            pool: `"process"`: in child processes, one a slot, `async def` too; `"task"`: in this process, `def` in
                threads.
            where: only rows with these keyfield values; a list means any of them.
            experiment_ids: only these rows.
            from_status: `"paused"` continues paused rows.
            progress: True a bar, None a bar on a terminal and in a notebook, False nothing, or a function of the
                summary.
            handle_signals: None: SIGINT and SIGTERM stop it gracefully when in the main thread and SIGTERM has its
                default action; a second one, or `grace` seconds, ends what runs. False: Ctrl-C raises
                KeyboardInterrupt here once every row is back.
            **execution: every key of the configuration's `Execution` section.

        Returns:
            How many attempts ended how, the seconds it took, and what stopped it early, if anything did.

        Raises:
            InvalidConfigError: an unknown or impossible keyword or value.
            DatabaseError: the database refused something that is not the experiments' fault.
        """
        options, settings = self._experimenter._options(n_jobs, max_experiments, random_order, execution)
        if "max_errors" not in settings.model_fields_set:
            execution["max_errors"] = -1

        def begin(pool: Any, handle_signals: Any) -> Coroutine[Any, Any, Summary]:
            return self._experimenter.execute(
                experiment_function,
                max_experiments=max_experiments,
                random_order=random_order,
                n_jobs=n_jobs,
                pool=pool,
                where=where,
                experiment_ids=experiment_ids,
                until=until,
                from_status=from_status,
                progress=progress,
                handle_signals=handle_signals,
                **execution,
            )

        here = options.n_jobs == 1 and _may_run_here(experiment_function, pool, settings)
        return self._run(begin, here, pool, handle_signals)

    @overload
    def add_experiment_and_execute(
        self,
        keyfields: Mapping[str, Any],
        experiment_function: ExperimentFunction,
        **keywords: Unpack[SelectionKeywords],
    ) -> ExperimentStatus | None: ...

    @overload
    def add_experiment_and_execute(
        self,
        *,
        keyfield_values: Mapping[str, Any],
        experiment_function: ExperimentFunction,
        **keywords: Unpack[SelectionKeywords],
    ) -> ExperimentStatus | None: ...

    def add_experiment_and_execute(
        self,
        keyfields: Mapping[str, Any] | None = None,
        experiment_function: ExperimentFunction | None = None,
        *,
        keyfield_values: Mapping[str, Any] | None = None,
        **keywords: Unpack[SelectionKeywords],
    ) -> ExperimentStatus | None:
        """Adds one row already claimed and runs it; a row that exists and is `created` is claimed and run.

        The function runs where `execute` would run it. `keyfield_values` is another name of `keyfields`.

        Returns:
            The row's status afterwards; None if it was deleted meanwhile. The function's own exception is never raised.

        Raises:
            ParameterCombinationError: a keyfield is missing, unknown or impossible.
            DatabaseError: the row exists and is not `created`; its status is named.
        """
        row = _one_of("add_experiment_and_execute", keyfields=keyfields, keyfield_values=keyfield_values)
        function = _one_of("add_experiment_and_execute", experiment_function=experiment_function)
        return self._run_one(
            lambda more: self._experimenter.add_experiment_and_execute(row, function, **more), function, keywords
        )

    def unpause_experiment(
        self, experiment_id: int, experiment_function: ExperimentFunction, **keywords: Unpack[SelectionKeywords]
    ) -> ExperimentStatus | None:
        """Claims exactly that paused row and runs the function; results and logs so far are kept.

        The function runs where `execute` would run it.

        Returns:
            The row's status afterwards. The function's own exception is never raised.

        Raises:
            NoPausedExperimentsException: the row is not paused; the message says what it is.
        """
        function = experiment_function
        return self._run_one(
            lambda more: self._experimenter.unpause_experiment(experiment_id, function, **more), function, keywords
        )

    def _run_one(
        self,
        begin: Callable[[SelectionKeywords], Coroutine[Any, Any, T]],
        function: ExperimentFunction,
        keywords: SelectionKeywords,
    ) -> T:
        execution: dict[str, Any] = {
            name: value for name, value in keywords.items() if name in ExecutionKeywords.__annotations__
        }
        settings = config.execution(self._experimenter.configuration, **execution)
        pool, handle_signals = keywords.get("pool"), keywords.get("handle_signals")

        def really_begin(pool: Any, handle_signals: Any) -> Coroutine[Any, Any, T]:
            return begin(cast("SelectionKeywords", keywords | {"pool": pool, "handle_signals": handle_signals}))

        return self._run(really_begin, _may_run_here(function, pool, settings), pool, handle_signals)

    def _run(
        self,
        begin: Callable[[Any, Any], Coroutine[Any, Any, T]],
        here: bool,
        pool: str | None,
        handle_signals: bool | None,
    ) -> T:
        """Waits for what `begin` gives for a pool and for who hears signals; runs its functions here if so wanted."""
        with signals.installed(handle_signals) as they_are:
            hearing = signals.heard if they_are else False
            if not here:
                return self._background.wait(lambda: begin(pool, hearing))
            caller = CallerPool(interruptible=they_are)
            return self._background.run(lambda: begin(caller, hearing), caller.serve, caller.end)

    # ---------------------------------------------------------------------------------------- attaching

    @overload
    def attach(
        self,
        worker_function: Callable[[AsyncResultProcessor], Coroutine[Any, Any, T]],
        experiment_id: int,
        *,
        wait: float = 0.0,
    ) -> T: ...

    @overload
    def attach(
        self, worker_function: Callable[[ResultProcessor], T], experiment_id: int, *, wait: float = 0.0
    ) -> T: ...

    @overload
    def attach(
        self, *, experiment_function: Callable[[ResultProcessor], T], experiment_id: int, wait: float = 0.0
    ) -> T: ...

    def attach(
        self,
        worker_function: Callable[..., Any] | None = None,
        experiment_id: int | None = None,
        *,
        experiment_function: Callable[..., Any] | None = None,
        wait: float = 0.0,
    ) -> Any:
        """Runs a function as part of an experiment that runs already, from any process or machine.

        The function is called `(result_processor)`, in this thread; an `async def` as a task. What it reports goes
        into the experiment's row and logs, over one connection of its own. The experiment's main function must not
        end before: join your workers first. `experiment_function` is another name of `worker_function`.

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
        function = _one_of("attach", worker_function=worker_function, experiment_function=experiment_function)
        joined = _one_of("attach", experiment_id=experiment_id)
        check_function("worker_function", function, "result_processor")
        if is_async(function):
            return self._background.wait(lambda: self._experimenter.attach(function, joined, wait=wait))
        return self._attached(function, joined, wait)

    def _attached(self, function: Callable[[ResultProcessor], Any], experiment_id: int, wait: float) -> Any:
        attachment = self._background.wait(lambda: self._experimenter._attachment(experiment_id, wait))
        raised = True
        try:
            outcome = attach.called(function, from_thread(attachment.processor, attachment.loop))
            raised = outcome.failure is not None
        finally:
            self._background.wait(lambda: attachment.end(raised=raised))
        try:
            if outcome.failure is not None:
                raise outcome.failure
            return outcome.value
        finally:
            del outcome  # its exception would refer to this frame, and this frame to it

    # ------------------------------------------------------------------------------------------ reading

    def snapshot(self) -> Snapshot:
        """What the calls of `execute` under way are at, from memory: free of charge.

        Returns:
            What runs, what failed lately, and how old the latest answer of the database is.
        """

        async def taken() -> Snapshot:
            return self._experimenter.snapshot()

        return self._background.wait(taken)

    @overload
    def get_logtable(
        self, name: str, condition: Mapping[str, Any] | None = None, *, all_attempts: bool = False
    ) -> pd.DataFrame: ...

    @overload
    def get_logtable(
        self, *, logtable_name: str, condition: Mapping[str, Any] | None = None, all_attempts: bool = False
    ) -> pd.DataFrame: ...

    def get_logtable(
        self,
        name: str | None = None,
        condition: Mapping[str, Any] | None = None,
        *,
        all_attempts: bool = False,
        logtable_name: str | None = None,
    ) -> pd.DataFrame:
        """A log table as a DataFrame, in the order written. `logtable_name` is another name of `name`.

        Args:
            name: its short name, as in the configuration.
            condition: values that its columns must have, `experiment_id` among them.
            all_attempts: also the lines of attempts that were lost, released or tried again.

        Raises:
            MissingLogTableError: the configuration defines no such log table.
        """
        table = _one_of("get_logtable", name=name, logtable_name=logtable_name)
        return self._background.wait(
            lambda: self._experimenter.get_logtable(table, condition, all_attempts=all_attempts)
        )


def _may_run_here(function: ExperimentFunction, pool: str | None, settings: ExecutionConfig) -> bool:
    """Whether a function may run in the calling thread: nothing is asked for that needs a pool."""
    limits = settings.timeout, settings.stall_timeout, settings.max_tasks_per_child
    asked = any(each is not None for each in (pool, settings.pool, *limits)) or bool(settings.worker_env)
    return callable(function) and not is_async(function) and not asked


def _one_of(method: str, **named: T | None) -> T:
    """What was given under one of several names of a parameter.

    Raises:
        TypeError: none was given, or more than one.
    """
    given = [value for value in named.values() if value is not None]
    if len(given) != 1:
        raise TypeError(f"{method}() takes {' or '.join(named)}, exactly one of them")
    return given[0]
