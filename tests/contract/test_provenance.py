"""Provenance: which code ran where, for every worker; which worker ran which attempt."""

from __future__ import annotations

import platform
import shlex
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from asyncexp import ExperimentStatus, ResultProcessor
from asyncexp.db.base import Target
from tests.contract import sql
from tests.contract.conftest import Make
from tests.contract.shared import Shared
from tests.studies import write_configuration, write_credentials

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = """
import asyncio, sys
from asyncexp import Experimenter

async def run(keyfields, results, custom):
    await results.process_results({"result": 1.0})

async def main():
    async with Experimenter(sys.argv[1], sys.argv[2] or None, name="job 7", log_file=None) as experimenter:
        await experimenter.fill_table_from_config()
        await experimenter.execute(run, max_experiments=1, progress=False)

asyncio.run(main())
"""
FACTS = (
    '"git_commit", "git_dirty", "command_line", "python_version", "asyncexp_version", "slurm_job_id", '
    '"slurm_array_job_id", "slurm_array_task_id", "name", "machine", "boot_id", "pid_namespace", "pid", "stopped"'
)


class Script:
    """A user's script in a folder of its own."""

    def __init__(self, folder: Path, target: Target) -> None:
        self.folder = folder / "project"
        self.folder.mkdir()
        self.path = self.folder / "study.py"
        self.path.write_text(SCRIPT)
        self.target = target
        credentials = write_credentials(folder, target)
        self.arguments = [str(write_configuration(folder, target)), str(credentials or "")]

    def git(self, *words: str) -> str:
        identity = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(self.folder), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self) -> str:
        """Puts the script under git; its commit."""
        self.git("init", "-q")
        self.git("add", "study.py")
        self.git("commit", "-q", "-m", "A study")
        return self.git("rev-parse", "HEAD")

    def run(self, *more: str, **environment: str) -> None:
        clean = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PROJECT), "HOME": str(self.folder)}
        command = [sys.executable, "-W", "error", str(self.path), *self.arguments, *more]
        done = subprocess.run(command, cwd="/", env=clean | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    async def facts(self) -> dict[str, Any]:
        """What the last worker's row says."""
        names = [name.strip().strip('"') for name in FACTS.split(",")]
        rows = await sql.fetch(self.target, f'SELECT {FACTS} FROM "experiments_workers" ORDER BY "started" DESC')
        return dict(zip(names, rows[0], strict=True))


@pytest.fixture
def script(target: Target, tmp_path: Path) -> Script:
    return Script(tmp_path, target)


async def test_the_commit_and_whether_the_code_was_changed_since(script: Script) -> None:
    commit = script.commit()
    script.run()
    clean = await script.facts()
    (script.folder / "notes.txt").write_text("a file that git does not know is no change of the code")
    script.run()
    beside = await script.facts()
    script.path.write_text(f"{SCRIPT}\n# changed\n")
    script.run()
    dirty = await script.facts()
    assert [facts["git_commit"] for facts in (clean, beside, dirty)] == [commit] * 3
    assert [bool(facts["git_dirty"]) for facts in (clean, beside, dirty)] == [False, False, True]


async def test_without_git_there_is_no_commit_and_no_error(script: Script) -> None:
    script.run()
    facts = await script.facts()
    assert (facts["git_commit"], facts["git_dirty"]) == (None, None)
    assert facts["stopped"] is not None


async def test_a_password_on_the_command_line_is_not_kept(script: Script) -> None:
    script.run("--password=hunter2-canary", "mysql://me:hunter2-canary@host/db", "--seed", "1")
    facts = await script.facts()
    assert shlex.split(facts["command_line"])[-4:] == ["--password=...", "mysql://me:...@host/db", "--seed", "1"]


async def test_versions_command_line_machine_and_process(script: Script) -> None:
    script.run("ünï", "two words")
    facts = await script.facts()
    assert facts["python_version"] == platform.python_version()
    assert facts["asyncexp_version"] == version("asyncexp")
    command = shlex.split(facts["command_line"])
    assert command[0] == sys.executable
    assert command[-5:] == [str(script.path), *script.arguments, "ünï", "two words"]
    assert (facts["name"], facts["machine"]) == ("job 7", socket.gethostname())
    assert facts["pid"] > 0
    assert facts["pid_namespace"].startswith("pid:[")
    assert len(facts["boot_id"]) == 36


async def test_slurm_ids_come_from_the_environment(script: Script) -> None:
    script.run(SLURM_JOB_ID="4711", SLURM_ARRAY_JOB_ID="4700", SLURM_ARRAY_TASK_ID="11")
    facts = await script.facts()
    assert facts["slurm_job_id"] == "4711"
    assert (facts["slurm_array_job_id"], facts["slurm_array_task_id"]) == ("4700", "11")
    script.run()
    assert (await script.facts())["slurm_job_id"] is None


async def test_workers_tell_it_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    experimenter = make()
    await experimenter.fill_table_from_config()

    async def run(*_: Any) -> None:
        return

    await experimenter.execute(run)
    await experimenter.aclose()
    [worker] = await experimenter.workers()
    assert (worker.slurm_job_id, worker.asyncexp_version) == ("99", version("asyncexp"))
    assert worker.machine == socket.gethostname()


async def test_every_attempt_names_its_worker(make: Make, target: Target, shared: Shared) -> None:
    first, second = make(), make()
    await first.fill_table_with_rows([{"number": 1, "kind": "a"}])
    seen = shared.seen()

    async def run(_: Any, results: ResultProcessor, __: Any) -> ExperimentStatus | None:
        seen.append(results.experiment_id.worker)
        return ExperimentStatus.PAUSED if results.attempt == 1 else None

    await first.execute(run)
    await second.unpause_experiment(1, run)
    ran = seen.values()
    assert ran[0] != ran[1]
    attempts = await sql.fetch(target, 'SELECT "attempt", "worker", "outcome" FROM "experiments_attempts"')
    assert attempts == [(1, ran[0], "paused")]
    assert await sql.fetch(target, 'SELECT "_attempt", "_worker" FROM "experiments"') == [(2, ran[1])]
    known = await sql.fetch(target, 'SELECT "id" FROM "experiments_workers"')
    assert {worker for (worker,) in known} == set(ran)
