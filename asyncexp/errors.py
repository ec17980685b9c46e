"""Every error that asyncexp raises on purpose; all of them are a `PyExperimenterError`.

The names are PyExperimenter's, so that `except` clauses written for it go on working.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncexp.experiment import ExperimentId


class PyExperimenterError(Exception):
    """The base of all errors of this package: catch it to catch everything that is not a bug."""


class ParameterCombinationError(PyExperimenterError):
    """A row has a missing, an unknown or an impossible keyfield; the message names the row and the field."""


class NoExperimentsLeftException(PyExperimenterError):
    """There is no open experiment to run."""


class NoPausedExperimentsException(PyExperimenterError):
    """The experiment to be continued is not paused; the message says what it is."""


class ExperimentLostError(PyExperimenterError):
    """The experiment is not, or no longer, run by this worker: what it sent was refused.

    Another worker may have taken it, or it was released, reset, deleted or ended meanwhile.
    Nothing to mend in the function: let the error pass, the worker goes on with other rows.
    """


class DatabaseError(PyExperimenterError):
    """Something that has to do with the database failed."""


class DatabaseCreationError(DatabaseError):
    """The database itself is missing and could not be made, or may not be."""


class DatabaseConnectionError(DatabaseError):
    """The database cannot be reached, or does not let us in; the message says which and what to check."""


class SshTunnelError(DatabaseError):
    """The SSH tunnel could not be opened or broke; the message says which server, why, and what to write or run."""


class DatabaseQueryError(DatabaseError):
    """The database refused a statement or a value; the message carries its words."""


class EmptyFillDatabaseCallError(DatabaseError):
    """A call to fill the table was given no rows at all."""


class InvalidResultFieldError(DatabaseError):
    """A result names no resultfield of the table, or its value does not fit; the message names the field."""


class InvalidLogFieldError(DatabaseError):
    """A log entry names no log table or column, or its value does not fit; the message names the field."""


class CreatingTableError(DatabaseError):
    """A table could not be made."""


class TableHasWrongStructureError(CreatingTableError):
    """The table in the database is not the one that the configuration describes.

    The message names the difference. `migrate()` adds what is missing; it never drops or retypes.
    """


class ConfigError(PyExperimenterError):
    """The configuration or the credentials are wrong; the message says where and what to write instead."""


class NoConfigFileError(ConfigError, FileNotFoundError):
    """No configuration file at the path given, or at any of the default places."""


class InvalidConfigError(ConfigError):
    """A key, a section or a value of the configuration is unknown or does not fit."""


class InvalidValuesInConfiguration(ConfigError):
    """The values of a keyfield are not a list, or not a range that makes sense."""


class MissingLogTableError(ConfigError):
    """A log table was named that the configuration does not define."""


class InvalidColumnError(ConfigError):
    """A column has a name that is taken or impossible, or a type that does not exist."""


class InvalidLogtableError(ConfigError):
    """A log table is described in a way that cannot be understood."""


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """One sentence about a name that does not exist, with the nearest ones that do."""
    names = list(known)
    near = get_close_matches(str(name), names, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(names) or 'none'}"
    return f"{what} {str(name)!r}; {hint}"


def lost(experiment_id: ExperimentId) -> ExperimentLostError:
    """What a function is told whose row is no longer its own."""
    return ExperimentLostError(
        f"Experiment {int(experiment_id)} (attempt {experiment_id.attempt}) no longer runs here: it was released, "
        "reset, deleted, ended or taken over by another worker. What was sent has not been written."
    )
