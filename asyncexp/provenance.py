"""Where the code of a run came from and where it runs; nothing here fails for lack of a fact."""

from __future__ import annotations

import functools
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

GIT_LIMIT_SECONDS = 5.0
HIDDEN = "..."
_WORD = r"(?:pass(?:word|wd|phrase)|pwd|secret|(?:api|access|auth|secret|private|hf)[-_]?(?:key|token))"
_SECRET = re.compile(rf"-*(?:token|(?:.*[-_.])?{_WORD})", re.IGNORECASE)
"""Names of arguments. `--token` is one, `--pad-token` a word of language models."""
_ASSIGNED = re.compile(rf"({_WORD}['\"]?\s*[=:]\s*)[^&;\s]+", re.IGNORECASE)
_LOGIN = re.compile(r"(://[^:/@\s]*):\S*@")


def here() -> dict[str, Any]:
    """Facts that cost nothing: machine, process, versions, SLURM; columns of the workers' table."""
    return {
        "boot_id": _read("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": _link("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "python_version": platform.python_version(),
        "asyncexp_version": version("asyncexp"),
        "command_line": shlex.join(discreet(sys.orig_argv))[:4000].encode("utf-8", "backslashreplace").decode(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "slurm_array_job_id": os.environ.get("SLURM_ARRAY_JOB_ID"),
        "slurm_array_task_id": os.environ.get("SLURM_ARRAY_TASK_ID"),
    }


def discreet(arguments: Iterable[str]) -> Iterator[str]:
    """A command line without the values of what is called a password, secret, token or key, and those within URLs.

    It is kept in the database, where all who use the table read it.
    """
    hide = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if hide and not argument.startswith("--"):
            yield HIDDEN
            hide = False
        elif _SECRET.fullmatch(name):
            hide = argument.startswith("-") and not equals
            yield f"{name}={HIDDEN}" if equals else argument
        else:
            hide = False
            yield _LOGIN.sub(rf"\1:{HIDDEN}@", _ASSIGNED.sub(rf"\1{HIDDEN}", argument))


def machine() -> str:
    """The host's name."""
    return socket.gethostname()


_code: Path | None = None


def code_of(function: object) -> None:
    """From now on `git` tells of the working tree that this function lies in, not of the main script's."""
    global _code
    while isinstance(function, functools.partial):
        function = function.func
    module = sys.modules.get(getattr(function, "__module__", None) or type(function).__module__)
    file = getattr(module, "__file__", None)
    _code = Path(file).resolve().parent if file else Path.cwd()


def git() -> dict[str, Any]:
    """Commit of the working tree that the code lies in, and whether it has changes; empty if none."""
    folder = _code or _script_folder()
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit.strip(), "git_dirty": None if changes is None else bool(changes.strip())}


def _script_folder() -> Path:
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(main).resolve().parent if main else Path.cwd()


def _git(folder: Path, *words: str) -> str | None:
    command = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(  # noqa: S603  (fixed words, no shell)
            command,
            capture_output=True,
            text=True,
            timeout=GIT_LIMIT_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None


def _link(path: str) -> str | None:
    try:
        return str(Path(path).readlink())
    except OSError:
        return None
