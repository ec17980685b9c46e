"""One small module a database; `connect` picks the one that a target asks for."""

from __future__ import annotations

from importlib import import_module

from asyncexp.db.base import Database, Target

_MODULES = {"sqlite": "sqlite", "postgresql": "postgres", "mysql": "mysql"}


def connect(target: Target) -> Database:
    """A database that opens at its first use. The driver is imported here, not before.

    Raises:
        DatabaseConnectionError: the driver is not installed.
    """
    from asyncexp.errors import DatabaseConnectionError

    try:
        module = import_module(f"asyncexp.db.{_MODULES[target.provider]}")
    except ModuleNotFoundError as missing:
        raise DatabaseConnectionError(
            f"The driver {missing.name!r} for provider {target.provider!r} is not installed: pip install {missing.name}"
        ) from missing
    return module.connect(target)  # type: ignore[no-any-return]
