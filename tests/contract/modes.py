"""In how many ways the contract suite runs: experiment functions in this process, in child processes, and called for
through the blocking class.

A test that takes `make` runs once in each mode, or says why not: `@pytest.mark.in_process_only("why")` if its
functions are by nature those of this process and its event loop, `@pytest.mark.asyncio_only("why")` if a blocking
call cannot be made so, `@pytest.mark.executes_nothing`.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Literal, Self, TypeVar, cast

from asyncexp import Experimenter, ExperimentStatus, Summary
from asyncexp.sync import PyExperimenter

T = TypeVar("T")
Mode = Literal["task", "process", "blocking"]
MODES: tuple[Mode, ...] = ("task", "process", "blocking")

LEFT_OUT: dict[str, tuple[Mode, ...]] = {
    "in_process_only": ("process", "blocking"),
    "asyncio_only": ("blocking",),
    "executes_nothing": ("process",),
}
"""Markers, and the modes in which a test that has one does not run."""


class InTasks(Experimenter):
    """Runs functions in this process unless a call says otherwise: `async def` as tasks, `def` in threads."""

    POOL: Literal["task", "process"] = "task"

    async def execute(self, experiment_function: Callable[..., Any], **keywords: Any) -> Summary:
        return await super().execute(experiment_function, **{"pool": self.POOL, **keywords})

    async def add_experiment_and_execute(
        self, keyfields: Mapping[str, Any], experiment_function: Callable[..., Any], **keywords: Any
    ) -> ExperimentStatus | None:
        keywords = {"pool": self.POOL, **keywords}
        return await super().add_experiment_and_execute(keyfields, experiment_function, **keywords)

    async def unpause_experiment(
        self, experiment_id: int, experiment_function: Callable[..., Any], **keywords: Any
    ) -> ExperimentStatus | None:
        keywords = {"pool": self.POOL, **keywords}
        return await super().unpause_experiment(experiment_id, experiment_function, **keywords)


class InProcesses(InTasks):
    """Runs every function in child processes."""

    POOL = "process"


class ExecutesNothing(Experimenter):
    """Fails a test that says of itself that it executes nothing, and does."""

    async def execute(self, *arguments: Any, **keywords: Any) -> Summary:
        raise AssertionError("A test that executes something is not `executes_nothing`: it has to run in each mode.")

    async def add_experiment_and_execute(self, *arguments: Any, **keywords: Any) -> ExperimentStatus | None:
        return await self.unpause_experiment()

    async def unpause_experiment(self, *arguments: Any, **keywords: Any) -> ExperimentStatus | None:
        await self.execute()
        return None


class Blocking:
    """A `PyExperimenter` for tests that await: each call is one of its, made in a thread of its own."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.blocking = PyExperimenter(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.startswith("_"):
            return getattr(self.blocking._experimenter, name)
        found = getattr(self.blocking, name)
        return functools.partial(in_thread, found) if callable(found) else found

    async def aclose(self) -> None:
        await in_thread(self.blocking.close)

    async def __aenter__(self) -> Self:
        await in_thread(self.blocking.__enter__)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await in_thread(self.blocking.__exit__, *error)


async def in_thread(function: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
    """What the function returns. Cancelled, it leaves the function to itself: a blocking call cannot be cancelled."""
    ended: Future[T] = Future()
    ended.set_running_or_notify_cancel()

    def call() -> None:
        try:
            ended.set_result(function(*arguments, **keywords))
        except BaseException as error:  # noqa: BLE001  (it is raised in the test)
            ended.set_exception(error)

    threading.Thread(target=call, name="blocking call").start()
    return await asyncio.wrap_future(ended)


CLASSES: dict[Mode, type[Experimenter]] = {
    "task": InTasks,
    "process": InProcesses,
    "blocking": cast("type[Experimenter]", Blocking),  # to a test it looks like one
}
