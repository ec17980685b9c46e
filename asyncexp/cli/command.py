"""What makes a command of a function: the options that all share, one event loop, and errors as sentences."""

from __future__ import annotations

import errno
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Any, get_type_hints

import typer

from asyncexp.cli.codes import CLOSED_PIPE, CONFIGURATION, DATABASE, INTERRUPTED, NOT_ALL_WELL, OK, USAGE, Refused
from asyncexp.cli.output import note
from asyncexp.errors import (
    ConfigError,
    DatabaseError,
    EmptyFillDatabaseCallError,
    InvalidResultFieldError,
    MissingLogTableError,
    ParameterCombinationError,
    PyExperimenterError,
)

_UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Of files their name is told, too."""

app = typer.Typer(
    name="asyncexp",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # they would show locals, and with them passwords
    context_settings={"help_option_names": ["--help", "-h"]},
)


def command(
    panel: str, *, name: str | None = None, without: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function `(place, **options) -> exit code | None`; a coroutine function runs on a loop of its own.

    A parameter whose type is a dataclass stands for as many options as that has fields, as `place` does.

    Args:
        panel: the heading under which `asyncexp --help` lists it.
        name: of the command, if not the function's.
        without: shared options that would mean nothing to it.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())
        groups: dict[str, Any] = {each.name: each.annotation for each in own if is_dataclass(each.annotation)}
        options = [option for each in [*own[1:], own[0]] for option in _options(each) if option.name not in without]

        for option in options:
            _tell_no_type(option)

        @wraps(function)
        def call(**given: Any) -> None:
            for name, group in groups.items():
                given[name] = group(**{each.name: given.pop(each.name) for each in fields(group) if each.name in given})
            raise typer.Exit(outcome(lambda: function(**given), debug=given["place"].debug))

        call.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
        call.__annotations__ = {each.name: each.annotation for each in options}
        del call.__wrapped__  # or its signature would count
        app.command(name, rich_help_panel=panel)(call)
        return function

    return register


def _tell_no_type(option: inspect.Parameter) -> None:
    """A flag takes no value: help that says `<bool>` behind it would have people write one."""
    kind, info = option.annotation.__origin__, option.annotation.__metadata__[0]
    if kind is bool and info.metavar is None:
        info.metavar = " "


def _options(parameter: inspect.Parameter) -> Iterator[inspect.Parameter]:
    """The parameter, or one for each field of its dataclass."""
    if not is_dataclass(parameter.annotation):
        yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        return
    types = get_type_hints(parameter.annotation, include_extras=True)
    for each in fields(parameter.annotation):
        yield inspect.Parameter(
            each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=types[each.name]
        )


def outcome(work: Callable[[], Any], *, debug: bool) -> int:
    """The exit code of what a command does; what goes wrong is told in a sentence, with `debug` in full before it."""
    try:
        done = work()
        if inspect.iscoroutine(done):
            import asyncio

            done = asyncio.run(done)
        sys.stdout.flush()
    except BrokenPipeError:
        _let_go_of_stdout()
        return CLOSED_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except (PyExperimenterError, Refused, OSError) as error:
        if debug:
            traceback.print_exc()
        _tell(error)
        return _code(error)
    return OK if done is None else int(done)


def _let_go_of_stdout() -> None:
    """It takes no more: what is left for it goes nowhere, or the interpreter's end would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _code(error: Exception) -> int:
    if isinstance(error, Refused):
        return error.code
    return code_of(error) if isinstance(error, PyExperimenterError) else NOT_ALL_WELL


def code_of(error: PyExperimenterError) -> int:
    """The exit code of an error."""
    if isinstance(error, ParameterCombinationError | InvalidResultFieldError | MissingLogTableError):
        return USAGE
    if isinstance(error, ConfigError | EmptyFillDatabaseCallError):
        return CONFIGURATION
    return DATABASE if isinstance(error, DatabaseError) else NOT_ALL_WELL


def _tell(error: Exception) -> None:
    from rich.text import Text

    words = _of_the_system(error) if isinstance(error, OSError) else for_shell(str(error))
    with suppress(OSError):  # standard error, too, may take no more
        note(Text.assemble(("error: ", "bold red"), words))


def _of_the_system(error: OSError) -> str:
    """A full disk, a folder that is gone: what it is about, and what the system says."""
    if error.filename is None and error.errno in _UNWRITTEN:
        _let_go_of_stdout()
        return f"standard output: {error.strerror}"
    try:
        Path.cwd()
    except OSError:
        return "the folder that this shell is in does not exist any more: change to another"
    what = "" if error.filename is None else f"{error.filename}: "
    return f"{what}{error.strerror or error}"


_IN_SHELL = (
    (
        "fill it first (`fill_table_from_config()`), or call `create_table()`",
        "fill it first (`asyncexp fill`), or make it empty (`asyncexp create`)",
    ),
    ("call create_table(create_database=True)", "add it by `asyncexp fill --create-database`"),
    ("Write one there, or give its path.", "`asyncexp init` makes one, --config names another."),
    ("call `migrate()`", "run `asyncexp migrate`"),
    ("Call `migrate()`", "Run `asyncexp migrate`"),
)


def for_shell(words: str) -> str:
    """What an error says, with commands in place of methods."""
    for method, line in _IN_SHELL:
        words = words.replace(method, line)
    return words
