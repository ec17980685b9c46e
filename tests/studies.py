"""Configurations and experimenters for tests: a study as a user would write it, on any database."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from asyncexp import Experimenter
from asyncexp.db.base import Target

KEYFIELDS: dict[str, Any] = {
    "number": {"type": "INT", "values": {"start": 0, "stop": 5}},
    "kind": {"type": "VARCHAR(20)", "values": ["a", "b"]},
}
RESULTFIELDS = {"result": "DOUBLE", "text": "TEXT"}
LOGTABLES = {"steps": {"step": "INT", "note": "TEXT"}}
_WAY = ("tls", "tls_ca", "tls_cert", "tls_key", "pgbouncer")
"""What the configuration says of the way to the database."""
_USUAL = Target("postgresql", "any")


def write_configuration(
    folder: Path,
    target: Target,
    *,
    table: str = "experiments",
    keyfields: Mapping[str, Any] | None = None,
    resultfields: Mapping[str, str] | None = None,
    logtables: Mapping[str, Any] | None = None,
    result_timestamps: bool = False,
    n_jobs: int = 4,
    execution: Mapping[str, Any] | None = None,
    custom: Mapping[str, Any] | None = None,
    use_ssh_tunnel: bool = False,
    codecarbon: Mapping[str, Any] | None = None,
    name: str = "configuration.yml",
) -> Path:
    """Writes the YAML of a study; by default 10 rows, two resultfields and one log table."""
    database: dict[str, Any] = {
        "provider": target.provider,
        "database": target.database,
        "table": {
            "name": table,
            "keyfields": dict(KEYFIELDS if keyfields is None else keyfields),
            "resultfields": dict(RESULTFIELDS if resultfields is None else resultfields),
            "result_timestamps": result_timestamps,
        },
        "logtables": dict(LOGTABLES if logtables is None else logtables),
    }
    if use_ssh_tunnel:
        database["use_ssh_tunnel"] = True
    database |= {key: value for key in _WAY if (value := getattr(target, key)) != getattr(_USUAL, key)}
    content: dict[str, Any] = {"n_jobs": n_jobs, "Database": database}
    if execution is not None:
        content["Execution"] = dict(execution)
    if custom is not None:
        content["Custom"] = dict(custom)
    if codecarbon is not None:
        content["CodeCarbon"] = dict(codecarbon)
    path = folder / name
    path.write_text(yaml.safe_dump({"PY_EXPERIMENTER": content}, sort_keys=False))
    return path


def write_credentials(folder: Path, target: Target, ssh: Mapping[str, Any] | None = None) -> Path | None:
    """Writes the credentials of a server database, readable by their owner only; None for SQLite.

    Args:
        ssh: `Connection.Ssh`.
    """
    if target.provider == "sqlite":
        return None
    path = folder / "credentials.yml"
    connection: dict[str, Any] = {"Standard": {"server": target.host, "port": target.port}}
    if ssh is not None:
        connection = {"Ssh": {"remote_port": target.port, **ssh}}
    content = {"Database": {"user": target.user, "password": target.password}, "Connection": connection}
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump({"CREDENTIALS": content}))
    return path


def experimenter(
    folder: Path,
    target: Target,
    kind: type[Experimenter] = Experimenter,
    *,
    ssh: Mapping[str, Any] | None = None,
    **study: Any,
) -> Experimenter:
    """An `Experimenter` on a study written into `folder`; see `write_configuration`.

    Energy is recorded where the study says something of it: the tracker's start costs a second of CPU time.

    Args:
        ssh: `Connection.Ssh`, to go through an SSH server.
    """
    return kind(
        write_configuration(folder, target, use_ssh_tunnel=ssh is not None, **study),
        write_credentials(folder, target, ssh),
        use_codecarbon=study.get("codecarbon") is not None,
        logger_name="asyncexp-tests",
        log_file=None,
    )
