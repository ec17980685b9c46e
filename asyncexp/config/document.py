"""A configuration file as plain values, and where in the file each of them stands."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from asyncexp.errors import ConfigError, InvalidConfigError, NoConfigFileError

P = ParamSpec("P")
T = TypeVar("T")
Loc = tuple[Any, ...]
"""The way to a value: keys and list indexes from the root."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, where, and how to mend it."""

    place: str
    text: str
    kind: type[ConfigError] = InvalidConfigError

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"

    def error(self) -> ConfigError:
        return self.kind(str(self))


def refuse(problems: Sequence[Problem]) -> None:
    """Raises what the problems say, one a line; the first decides the class. Does nothing without problems."""
    lines = list(dict.fromkeys(str(problem) for problem in problems))
    if len(lines) > MOST_SHOWN:
        lines[MOST_SHOWN:] = [f"... and {len(lines) - MOST_SHOWN} more"]
    if lines:
        raise problems[0].kind("\n".join(lines))


MOST_SHOWN = 10


def sealed(function: Callable[P, T]) -> Callable[P, T]:
    """The same function; no frame of it comes with its errors, whose locals (files, the environment) hold secrets.

    What reports errors with the locals of their frames (rich, pytest, services that collect errors) shows none then.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except ConfigError as error:
            told = error
        del args, kwargs
        told.__cause__ = told.__context__ = None
        try:
            raise told.with_traceback(None)
        finally:
            del told  # it would refer to this frame, and this frame to it

    return call


@dataclass(frozen=True, slots=True)
class Document:
    """The values of a file; `secret` ones are in no message."""

    file: str
    value: Any
    locate: Callable[[Loc, bool], tuple[int, int]]
    """Line and column of a value, or of its key; of what is nearest above it if it is not in the file."""
    secret: bool = False
    origins: Mapping[Loc, str] = field(default_factory=dict)
    """Values that come from elsewhere: an argument, the environment."""
    written: Callable[[Loc], str | None] = lambda _: None
    """A value as it stands in the file, if it is a word or number without quotes."""

    def place(self, loc: Loc, *, key: bool = False) -> str:
        """`file:line:column` of a value or its key, or the argument or variable that it came from."""
        for end in range(len(loc), -1, -1):
            if loc[:end] in self.origins:
                return self.origins[loc[:end]]
        line, column = self.locate(loc, key)
        return f"{self.file}:{line}:{column}"

    def problem(
        self, loc: Loc, text: str, kind: type[ConfigError] = InvalidConfigError, *, key: bool = False
    ) -> Problem:
        return Problem(self.place(loc, key=key), text, kind)

    def override(self, loc: Loc, value: Any, origin: str) -> Document:
        """The same with another value; sections on the way to it are made where the file has none."""
        values = _with(self.value, loc, value)
        return replace(self, value=values, origins={**self.origins, loc: origin})


def _with(tree: Any, loc: Loc, value: Any) -> Any:
    if not loc:
        return value
    if tree is not None and not isinstance(tree, Mapping):
        return tree  # not a section: the validation says so, at its place
    below = dict(tree or {})
    key = next((key for key in below if len(loc) > 1 and str(key).casefold() == loc[0].casefold()), loc[0])
    return {**below, key: _with(below.get(key), loc[1:], value)}


# ---------------------------------------------------------------------------------------- files


def read_text(path: Path) -> str:
    """The file's text; a byte-order mark is left out.

    Raises:
        NoConfigFileError: there is none.
        InvalidConfigError: it cannot be read, or is not UTF-8 text.
    """
    return decode(read_bytes(path)[0], str(path))


def read_bytes(path: Path) -> tuple[bytes, int]:
    """The file's bytes and its mode; both of the same file, whoever replaces it meanwhile."""
    try:
        with path.open("rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mode
    except FileNotFoundError:
        reason = None
    except OSError as error:
        reason = error.strerror or str(error)
    if reason is None:
        raise NoConfigFileError(f"{path}: there is no such file")
    raise InvalidConfigError(f"{path}: cannot be read: {reason}")


def decode(content: bytes, file: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
    line, column = before.count(b"\n") + 1, len(before.rpartition(b"\n")[2].decode("utf-8", "replace")) + 1
    raise InvalidConfigError(f"{file}:{line}:{column}: is not UTF-8 text; save the file in that encoding")


def first_existing(paths: Sequence[Path], what: str) -> Path:
    """
    Raises:
        NoConfigFileError: none of them exists; the message lists them, and the folder they are looked for in.
    """
    for path in paths:
        if path.exists():
            return path
    raise NoConfigFileError(f"There is no {what}. Tried: {looked_for(paths)}. Write one there, or give its path.")


def looked_for(paths: Sequence[Path]) -> str:
    """The default places, and the folder that they begin in."""
    return f"{', '.join(map(str, paths))} in the working directory {Path.cwd()}"


# ---------------------------------------------------------------------------------- suggestions


def nearest(word: Any, known: Sequence[str]) -> str | None:
    """The known word that is most like this one, in any case, if one is like it at all."""
    by_folded = {name.casefold(): name for name in known}
    found = get_close_matches(str(word).casefold(), by_folded, n=1, cutoff=0.5)
    return by_folded[found[0]] if found else None


def did_you_mean(word: Any, known: Sequence[str]) -> str:
    """`did you mean 'x'?`, or the list of what is known."""
    found = nearest(word, known)
    return f"did you mean {found!r}?" if found else f"known are {', '.join(known)}"
