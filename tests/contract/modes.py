"""In how many ways the contract suite runs: experiment functions in this process, in child processes, and called for
through the blocking class.

A test that takes `make` runs once in each mode. One whose functions are by nature those of this process
says so, `@pytest.mark.in_process_only("why")`; so does one that runs no function, `@pytest.mark.executes_nothing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from asyncexp import Experimenter, ExperimentStatus, Summary

Mode = Literal["task", "process"]
MODES: tuple[Mode, ...] = ("task", "process")


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


CLASSES: dict[Mode, type[Experimenter]] = {"task": InTasks, "process": InProcesses}
