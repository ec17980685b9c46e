"""The predecessor, PyExperimenter 1.4.2, in an environment of its own: for tests of tables that it made.

python -m tests.legacy      makes the environment, if it is not there
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
FOLDER = PROJECT / ".venv-legacy"
# Its own list asks for Jupyter too, which nothing here imports.
PACKAGES = (
    "py-experimenter==1.4.2",
    "attrs",
    "codecarbon>=2.7,<4",
    "joblib>=1.2,<2",
    "omegaconf>=2.3,<3",
    "pandas>=2.2",
    "paramiko<4",
    "pymysql>=1.1,<1.2",
    "sshtunnel>=0.4,<0.5",
)


def python() -> Path:
    """The interpreter of that environment, which is made at the first call; others wait meanwhile."""
    with (PROJECT / ".venv-legacy.log").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        if not (FOLDER / "complete").exists():
            _make(log.fileno())
    return FOLDER / "bin" / "python"


def _make(log: int) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    own, *others = PACKAGES
    pip = [str(FOLDER / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", str(FOLDER)], [*pip, *others], [*pip, "--no-deps", own]):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed; see .venv-legacy.log")
    (FOLDER / "complete").touch()


if __name__ == "__main__":
    python()
