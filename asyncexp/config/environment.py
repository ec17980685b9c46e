"""The environment variables ASYNCEXP_…: which there are, and what they override."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asyncexp.config.document import Document, Loc, Problem, did_you_mean, refuse
from asyncexp.config.models import EXECUTION_KEYS
from asyncexp.config.yaml_file import scalar

PREFIX = "ASYNCEXP_"
JOBS = "ASYNCEXP_N_JOBS"
EXECUTION = "ASYNCEXP_EXECUTION__"
LOGIN = {
    "user": "ASYNCEXP_DATABASE__USER",
    "password": "ASYNCEXP_DATABASE__PASSWORD",
    "host": "ASYNCEXP_DATABASE__HOST",
    "port": "ASYNCEXP_DATABASE__PORT",
}
KNOWN = (JOBS, *LOGIN.values(), *(f"{EXECUTION}{key.upper()}" for key in EXECUTION_KEYS))


def check_environment(environment: Mapping[str, str]) -> None:
    """
    Raises:
        InvalidConfigError: a variable ASYNCEXP_… that does not exist; the message names the nearest.
    """
    unknown = [name for name in environment if name.startswith(PREFIX) and name not in KNOWN]
    refuse([Problem(place(name), f"there is no such setting; {did_you_mean(name, KNOWN)}") for name in unknown])


def place(name: str) -> str:
    return f"environment variable {name}"


def execution_settings(environment: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """Execution key -> value and where it comes from. An empty variable counts as none; `null` is None.

    Raises:
        InvalidConfigError: a value that YAML cannot read.
    """
    found = {}
    for key in EXECUTION_KEYS:
        name = f"{EXECUTION}{key.upper()}"
        if environment.get(name):
            found[key] = (_parsed(name, environment[name]), place(name))
    return found


def _parsed(name: str, text: str) -> Any:
    try:
        return scalar(text)
    except ValueError as error:
        problem = Problem(place(name), str(error))
    raise problem.error()


def override(document: Document, environment: Mapping[str, str]) -> Document:
    """The document with what the environment says of it; see `check_environment` for the rest."""
    check_environment(environment)
    root: Loc = ("PY_EXPERIMENTER",)
    if environment.get(JOBS):
        document = document.override((*root, "n_jobs"), environment[JOBS], place(JOBS))
    for key, (value, origin) in execution_settings(environment).items():
        document = document.override((*root, "Execution", key), value, origin)
    return document


def login(environment: Mapping[str, str]) -> dict[str, str]:
    """What the environment says of `user`, `password`, `host`, `port`; an empty variable counts as none."""
    return {key: environment[name] for key, name in LOGIN.items() if environment.get(name)}
