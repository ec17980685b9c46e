"""One small module a database; `connect` picks the one that a target asks for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from asyncexp.db.base import Database, Target

if TYPE_CHECKING:
    from asyncexp.db.through import Way

_MODULES = {"sqlite": "sqlite", "postgresql": "postgres", "mysql": "mysql"}
_DRIVERS = {"postgresql": "PostgresDriver", "mysql": "MysqlDriver"}


def connect(target: Target, way: Way | None = None) -> Database:
    """A database that opens at its first use, at the end of a way if there is one.

    The driver is imported here, not before.

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
    if way is None:
        return module.connect(target)  # type: ignore[no-any-return]
    from asyncexp.db.through import Behind
    from asyncexp.db.whole import WholeDatabase

    return WholeDatabase(Behind(getattr(module, _DRIVERS[target.provider]), target, way))
