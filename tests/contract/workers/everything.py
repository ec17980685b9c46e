"""Does all that can be done with a study, as loudly as can be, and leaves what it saw in files of the working folder.

Its further arguments: `run`, or `hold` for a worker that takes a row and is killed; `measure` for energy, too. It does
not know the password; only with `plant` it gets a secret, by the environment, and leaves that in every place there is.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from asyncexp import Experimenter, ExperimentStatus, ResultProcessor, SyncResultProcessor
from asyncexp.sync import PyExperimenter
from tests.contract.canary import pickles, shown, told, within
from tests.contract.shared import until
from tests.contract.support import eventually
from tests.contract.workers.common import ARGUMENTS, say, wait_for_word

Keys = dict[str, Any]
NUMBERS = count()


PLANTED = os.environ.get("PLANTED", "") if "plant" in ARGUMENTS else ""


def keep(kind: str, *contents: str | bytes) -> None:
    """A file with what was seen."""
    path = Path(f"{kind}-{os.getpid()}-{next(NUMBERS)}")
    path.write_bytes(b"\n".join(each.encode() if isinstance(each, str) else each for each in contents))


def look_at(thing: Any) -> None:
    """An object, and those of ours and of the drivers that it leads to."""
    things = [thing, *within(thing)]
    keep("objects", *(shown(each) for each in things))
    keep("pickles", *(pickled for each in things for pickled in pickles(each)))


def look_around() -> None:
    """The process list, and where every thread is."""
    keep("processes", *processes())
    keep("environments", *environments())
    keep("stacks", "".join("".join(traceback.format_stack(frame)) for frame in sys._current_frames().values()))


def processes() -> Iterator[bytes]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            yield (folder / "cmdline").read_bytes()
        except OSError:
            continue


def environments() -> Iterator[bytes]:
    """Those of this program, its children and theirs: they have its home."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found = (folder / "environ").read_bytes()
        except OSError:
            continue
        if (os.environb[b"HOME"] in found and folder.name != str(os.getppid())) or folder.name == str(os.getpid()):
            yield found


class Boom(Exception):
    pass


async def in_a_task(keys: Keys, results: ResultProcessor, custom: Keys) -> ExperimentStatus | None:
    await results.process_logs({"steps": {"step": 1, "note": PLANTED}})
    await results.process_results({"result": 1.0, "text": f"a text {PLANTED}"})
    await results.heartbeat(0.5, "half-way")
    await results.flush()
    look_around()
    keep("objects", shown(results), repr(vars(results) if hasattr(results, "__dict__") else ""), repr(custom))
    if keys["number"] == 1:
        raise Boom(f"by intention {PLANTED}") from ValueError("another")
    return ExperimentStatus.PAUSED if keys["number"] == 2 else None


def in_a_thread_or_child(experimenter: Experimenter) -> Any:
    """A function that has its experimenter with it."""

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        results.process_logs({"steps": {"step": 1}})
        results.process_results({"result": 1.0, "text": repr(experimenter)})
        look_around()
        keep("objects", shown(results), shown(experimenter))
        print("an experiment speaks", repr(experimenter), vars(experimenter))
        asyncio.run(joined(experimenter, results.experiment_id))
        if keys["number"] % 2:
            raise Boom("by intention") from ValueError("another")

    return run


async def joined(experimenter: Experimenter, experiment_id: int) -> None:
    """From within an experiment, and from another event loop."""

    async def helper(results: ResultProcessor) -> None:
        await results.process_logs({"steps": {"step": 2}})
        keep("objects", shown(results))

    await experimenter.attach(helper, experiment_id)
    await experimenter.aclose()


async def waits(keys: Keys, results: ResultProcessor, _: Keys) -> None:
    await until(lambda: results.should_stop)
    raise Boom(f"told to stop, at {keys['number']}")


async def survives_an_outage(_: Keys, results: ResultProcessor, __: Keys) -> None:
    await results.process_results({"result": 1.0})
    say("cut")
    await asyncio.to_thread(wait_for_word)
    await results.process_results({"result": 2.0})


async def plant() -> None:
    """Leaves the secret in every place that is not one of the tables."""
    print(PLANTED, flush=True)
    print(PLANTED, file=sys.stderr, flush=True)
    logging.getLogger("loud").error(PLANTED)
    look_at(SimpleNamespace(secret=PLANTED))
    command = (sys.executable, "-c", "import time; time.sleep(60)", PLANTED)
    child = await asyncio.create_subprocess_exec(*command)
    look_around()
    child.kill()
    await child.wait()


async def run(experimenter: Experimenter) -> None:
    if PLANTED:
        await plant()
    look_at(experimenter)
    async with experimenter:
        keep("tables", repr(await experimenter.fill_table_from_config()))
        calm: dict[str, Any] = {"progress": False, "max_errors": -1, "heartbeat_interval": 0.2}
        keep("tables", shown(await experimenter.execute(in_a_task, experiment_ids=[1, 2, 3], **calm)))
        look_at(experimenter)
        function = in_a_thread_or_child(experimenter)
        await experimenter.execute(function, experiment_ids=[4, 5], pool="task", n_jobs=2, **calm)
        await experimenter.execute(function, experiment_ids=[6, 7], pool="process", n_jobs=2, **calm)
        await experimenter.execute(survives_an_outage, experiment_ids=[8], **calm)
        await cancelled(experimenter, calm)
        await rescued(experimenter, calm)
        await read(experimenter)
        await refused(experimenter)
        look_at(experimenter)
    with PyExperimenter(*paths(), logger_name="blocking", log_file="again.log", use_codecarbon=False) as blocking:
        look_at(blocking)
        logging.getLogger("blocking").error("an error: %s", PLANTED)
        blocking.execute(lambda *_: None, experiment_ids=[10], progress=False)


async def cancelled(experimenter: Experimenter, calm: dict[str, Any]) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(experimenter.execute(waits, experiment_ids=[9], **calm))
        await eventually(lambda: _runs(experimenter, 9))
        await experimenter.cancel([9])
        keep("tables", shown(await running))


async def _runs(experimenter: Experimenter, experiment_id: int) -> bool:
    return (await experimenter.counts({"ID": experiment_id})).get("running") == 1


async def rescued(experimenter: Experimenter, calm: dict[str, Any]) -> None:
    """The row of a worker that was killed."""
    command = (sys.executable, "-m", "tests.contract.workers.everything", *sys.argv[1:3], "hold")
    victim = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert victim.stdout is not None
    await victim.stdout.readline()
    victim.send_signal(signal.SIGKILL)
    await victim.communicate()
    await experimenter.execute(in_a_task, experiment_ids=[12], until="finished", **calm)


async def read(experimenter: Experimenter) -> None:
    tables = [await experimenter.get_table(), await experimenter.get_logtable("steps", all_attempts=True)]
    tables.append(await experimenter.get_codecarbon_table())
    for table in tables:
        keep("tables", table.to_csv(), repr(table))
    for seen in (await experimenter.workers(), await experimenter.errors(), await experimenter.counts()):
        keep("tables", shown(seen))


async def refused(experimenter: Experimenter) -> None:
    """Errors of calls on an open connection."""
    for call in (
        lambda: experimenter.attach(lambda _: None, 4),
        lambda: experimenter.get_logtable(f"none {PLANTED}"),
        lambda: experimenter.execute(in_a_task, where={"nothing": 1}),
        lambda: experimenter.fill_table_with_rows([{"number": 2**70}]),
        lambda: experimenter.unpause_experiment(4, in_a_task),
        lambda: experimenter.execute(print, pool="none"),  # type: ignore[arg-type]
    ):
        try:
            await call()
        except Exception as error:
            logging.getLogger("loud").exception("as it should be")
            keep("errors", told(error))
        else:
            raise AssertionError("it was not refused")


async def hold(experimenter: Experimenter) -> None:
    async def runs(_: Keys, __: ResultProcessor, ___: Keys) -> None:
        say("holding")
        await asyncio.Event().wait()

    async with experimenter:
        await experimenter.execute(runs, experiment_ids=[12], progress=False)


def be_loud() -> None:
    faulthandler.enable()
    warnings.simplefilter("always")
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, force=True)
    logging.captureWarnings(True)
    sys.addaudithook(note_process)


def note_process(event: str, arguments: tuple[Any, ...]) -> None:
    """The command line of every process that is started, however short it lives."""
    if event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system"):
        keep("started", repr(arguments[:2]))


def paths() -> tuple[str, str | None]:
    configuration, credentials = sys.argv[1:3]
    return configuration, credentials or None


def main() -> None:
    be_loud()
    settings: dict[str, Any] = {"log_level": "DEBUG", "log_file": "run.log", "name": f"job {PLANTED}"}
    measures = "measure" in ARGUMENTS
    experimenter = Experimenter(*paths(), logger_name="loud", use_codecarbon=measures, **settings)
    if ARGUMENTS[0] == "hold":
        asyncio.run(hold(experimenter))
        return
    asyncio.run(run(experimenter))
    faulthandler.dump_traceback(all_threads=True)
    say("done")
    logging.getLogger("loud").debug("the last word")
    raise Boom("so that the hook for exceptions speaks") from KeyError("before")


if __name__ == "__main__":
    main()
