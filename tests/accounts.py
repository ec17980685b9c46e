"""Users of a server who may do some things and not others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from asyncexp.db.base import Target
from tests.servers import PostgresServer, Server

PASSWORD = "another-secret-of-the-tests"


@contextmanager
def account(server: Server, target: Target, *may: str) -> Iterator[Target]:
    """A user of this database who may do this to its tables: `SELECT`, `INSERT`, …, and `CREATE`; the way in as him."""
    user = f"user_{target.database}"
    if isinstance(server, PostgresServer):
        server.sql(f"CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'")
    else:
        server.sql(f"CREATE USER {user} IDENTIFIED BY '{PASSWORD}'")
    try:
        _grant(server, target, user, may)
        yield replace(target, user=user, password=PASSWORD)
    finally:
        if isinstance(server, PostgresServer):
            server.sql(f"DROP OWNED BY {user}", target.database)
        server.sql(f"DROP {'ROLE' if isinstance(server, PostgresServer) else 'USER'} {user}")


def _grant(server: Server, target: Target, user: str, may: tuple[str, ...]) -> None:
    if not isinstance(server, PostgresServer):
        server.sql(f"GRANT {', '.join(may) or 'EVENT'} ON {target.database}.* TO {user}")
        return
    for action in may:
        where = "SCHEMA public" if action == "CREATE" else "ALL TABLES IN SCHEMA public"
        server.sql(f"GRANT {action} ON {where} TO {user}", target.database)
