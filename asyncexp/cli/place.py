"""Where a command works: the configuration, the credentials and the table that its options name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asyncexp.cli.codes import DATABASE, Refused
from asyncexp.cli.words import where

if TYPE_CHECKING:
    from asyncexp import Experimenter
    from asyncexp.config.models import Configuration
    from asyncexp.schema import Schema


def _option(*names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel="Where", **more)


@dataclass(frozen=True)
class Place:
    """What the options that all commands share say."""

    config: Annotated[
        Path | None,
        _option(
            "--config",
            "-c",
            metavar="FILE",
            help="The configuration; by default config/experiment_configuration.yml. "
            "A relative SQLite file is looked for in this folder.",
        ),
    ] = None
    credentials: Annotated[
        Path | None,
        _option(metavar="FILE", help="The credentials of a server; by default config/database_credentials.yml."),
    ] = None
    table: Annotated[str | None, _option(metavar="NAME", help="Another table than the configuration's.")] = None
    database: Annotated[str | None, _option(metavar="NAME", help="Another database than the configuration's.")] = None
    json: Annotated[bool, _option("--json", help="One JSON document, for scripts.")] = False
    """Whether one JSON document is wanted in place of words and tables."""
    debug: Annotated[bool, _option("--debug", help="Errors with their traceback.")] = False

    def experimenter(self, **more: Any) -> Experimenter:
        """One that says no more than warnings and writes no log file, unless told otherwise.

        Raises:
            ConfigError: the configuration is missing or wrong.
        """
        from asyncexp import Experimenter

        quiet = {"log_level": "DEBUG" if self.debug else "WARNING", "log_file": None, "name": "asyncexp"}
        return Experimenter(
            self.config,
            self.credentials,
            table_name=self.table,
            database_name=self.database,
            **{**quiet, **more},
        )

    @asynccontextmanager
    async def open(self, *, new: bool = False, patient: bool = False, **more: Any) -> AsyncIterator[Experimenter]:
        """An experimenter on tables that are there, unless they may be `new`; it is closed at the end.

        Args:
            patient: its first call connects, and waits for a database that is away if that call does.

        Raises:
            Refused: there is no SQLite file yet; to open it would make it.
        """
        experimenter = self.experimenter(**more)
        if not new:
            self._see_the_file(experimenter.configuration)
        async with aclosing(experimenter) if patient else experimenter:
            yield experimenter

    def _see_the_file(self, configuration: Configuration) -> None:
        from asyncexp import config

        if configuration.database.provider != "sqlite":
            return
        file = Path(config.target(configuration, self.credentials).database)
        if not file.exists():
            table = configuration.database.table.name
            words = f"There is no table {table!r} yet, and no file {file}: fill it first (`asyncexp fill`)"
            raise Refused(words, DATABASE)

    @cached_property
    def configuration(self) -> Configuration:
        """The configuration in force. Raises as `experimenter`."""
        from asyncexp import config

        return config.load(
            self.config, credentials=self.credentials, database_name=self.database, table_name=self.table
        )

    @cached_property
    def schema(self) -> Schema:
        """The tables that the configuration describes."""
        from asyncexp.schema import Schema

        return Schema.from_config(self.configuration.database)

    def where(self, texts: list[str] | None, *, keyfields_only: bool = False) -> dict[str, Any] | None:
        """Values of `--where`, typed as the columns are.

        Raises:
            ParameterCombinationError: no such column, or a value that it cannot hold.
        """
        from asyncexp.schema import BIGINT, WORD, Column

        if not texts:
            return None
        columns = list(self.schema.keyfields)
        if not keyfields_only:
            columns += [*self.schema.resultfields, Column("ID", BIGINT)]
            columns += [Column(name, WORD) for name in ("status", "name", "machine")]
        return where(texts, columns)
