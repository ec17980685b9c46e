"""A server that cannot be reached directly: the way to it is asked for before each connection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from asyncexp.db.base import Dialect, Target
from asyncexp.db.whole import Catalogue, Driver, Link
from asyncexp.errors import DatabaseConnectionError, DatabaseError


class Way(Protocol):
    """What leads to the server. `str` says which way, for messages: "through ..."."""

    async def open(self) -> tuple[str, int]:
        """Host and port at which the server is to be met now. To be asked before each connection.

        Raises:
            Outage: the way is not open at the moment; worth another try.
            DatabaseError: it cannot be opened; what to mend is in the message.
        """
        ...

    def refusal(self) -> DatabaseError | None:
        """Why a connection made there just now came to nothing, if the way knows; once."""
        ...


class NamedDriver(Driver, Protocol):
    """A driver whose place, for messages, can be told to it."""

    place: str


class Behind:
    """The driver of a server at the end of a way.

    Args:
        make: the driver for a target that is reached directly.
        target: the server as it is called at its own end.
    """

    def __init__(self, make: Callable[[Target], NamedDriver], target: Target, way: Way) -> None:
        self._make = make
        self._target = target
        self._way = way
        there = make(target)
        self.dialect: Dialect = there.dialect
        self.catalogue: Catalogue = there.catalogue
        self.only_transactions: bool = there.only_transactions
        self.place = f"{there.place} {way}"

    async def connect(self, *, create_database: bool) -> Link:
        host, port = await self._way.open()
        driver = self._make(replace(self._target, host=host, port=port, tls_name=self._target.host))
        driver.place = self.place
        try:
            return await driver.connect(create_database=create_database)
        except DatabaseConnectionError as error:
            failure = self._way.refusal() or error
        raise failure from None
