"""Passwords that can be recognised wherever they turn up, and ways to show all that can be shown of an object."""

from __future__ import annotations

import base64
import copy
import gc
import pickle
import pprint
import secrets
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import cloudpickle
from rich.pretty import pretty_repr
from rich.traceback import Traceback

from tests.servers import Server

ODD = ":/@%+ '\"$#;{}&=?€ü,`*"


def _core() -> str:
    return f"c4N{secrets.token_hex(5)}Y"


@dataclass(frozen=True)
class Canary:
    """A password of odd characters between two words that percent-encoding, quotes and `repr` leave as they are."""

    cores: tuple[str, str] = field(default_factory=lambda: (_core(), _core()))

    @property
    def password(self) -> str:
        return self.cores[0] + ODD + self.cores[1]

    def forms(self) -> Iterator[bytes]:
        """What gives it away: either word as it is, in hex digits, in UTF-16, or within base64 of anything."""
        for core in map(str.encode, self.cores):
            yield from (core, core.hex().encode(), core.hex().upper().encode())
            yield core.decode().encode("utf-16-le")
            for before in range(3):
                whole = base64.b64encode(b"\0" * before + core)
                yield whole[(before * 8 + 5) // 6 : (before + len(core)) * 8 // 6]

    def is_in(self, *things: bytes | str) -> bool:
        forms = list(self.forms())
        return any(form in (each.encode() if isinstance(each, str) else each) for each in things for form in forms)

    def files(self, folder: Path, but: Iterable[Path] = ()) -> list[str]:
        """The files below a folder that hold it, or whose names do."""
        left_out = set(but)
        found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path not in left_out)
        return [str(path.relative_to(folder)) for path in found if self.is_in(path.read_bytes(), str(path))]


# -------------------------------------------------------------------------------------------- objects


def shown(thing: Any) -> str:
    """All that usual means show of an object; of a driver's, which has to know the password, not its attributes."""
    texts = [repr(thing), str(thing), f"{thing}", pprint.pformat(thing), pretty_repr(thing)]
    if _is_of_a_driver(thing):
        return "\n".join(texts)
    with suppress(TypeError):
        texts += [pprint.pformat(vars(thing)), pretty_repr(vars(thing))]
    if hasattr(thing, "model_dump_json"):
        texts += [thing.model_dump_json(fallback=str), repr(thing.model_dump())]
    return "\n".join(texts)


def pickles(thing: Any) -> Iterator[bytes]:
    """What the two pickles make of an object, if anything, and of a copy; a driver's would be closed by its copy."""
    if _is_of_a_driver(thing):
        return
    for dumps in (pickle.dumps, cloudpickle.dumps):
        with suppress(Exception):
            yield dumps(thing)
    with suppress(Exception):
        yield pickle.dumps(copy.copy(thing))


DRIVERS = ("asyncpg", "aiomysql", "pymysql", "asyncssh")
OURS = ("asyncexp", *DRIVERS)
BETWEEN = ("builtins", "functools", "collections", "weakref", "asyncio", "_asyncio")


def within(thing: Any) -> list[Any]:
    """The objects of this package that an object leads to, and drivers' that they have; not what is within those."""
    found: dict[int, Any] = {}
    ahead = [thing]
    while ahead:
        each = ahead.pop()
        if id(each) not in found and not isinstance(each, type) and not hasattr(each, "__spec__"):
            found[id(each)] = each
            ahead += [] if _is_of_a_driver(each) else filter(_leads_on, gc.get_referents(each))
    return [each for each in found.values() if _package(each) in OURS]


def _package(thing: Any) -> str:
    return type(thing).__module__.partition(".")[0]


def _is_of_a_driver(thing: Any) -> bool:
    """Classes of ours that derive from a driver's included."""
    return any(kind.__module__.partition(".")[0] in DRIVERS for kind in type(thing).__mro__)


def _leads_on(thing: Any) -> bool:
    return _package(thing) in (*OURS, *BETWEEN)


# --------------------------------------------------------------------------------------------- errors


def told(error: BaseException) -> str:
    """All that usual means show of an exception, of the locals of its frames, and of what it came from."""
    texts = []
    for each in lineage(error):
        texts += [repr(each), str(each), repr(each.args), pprint.pformat(vars(each)), _with_locals(each)]
        texts += [repr(value) for value in _locals(each.__traceback__)]
    plain = "".join(traceback.format_exception(error))
    return "\n".join([*texts, plain, by_rich(error)])


def lineage(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and all it came from, also what `raise ... from None` hides."""
    seen: set[int] = set()
    ahead = [error]
    while ahead:
        each = ahead.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            ahead += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]


def _with_locals(error: BaseException) -> str:
    whole = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(whole.format())


def _locals(trace: TracebackType | None) -> Iterator[Any]:
    while trace is not None:
        yield dict(trace.tb_frame.f_locals)
        trace = trace.tb_next


def by_rich(error: BaseException) -> str:
    """What rich would show of the frames and their locals; not laid out, which takes long."""
    trace = Traceback.extract(
        *(type(error), error, error.__traceback__),
        show_locals=True,
        locals_max_length=10_000,
        locals_max_string=10_000,
        locals_hide_dunder=False,
    )
    frames = [frame for stack in trace.stacks for frame in stack.frames]
    nodes = [f"{name} = {node}" for frame in frames for name, node in (frame.locals or {}).items()]
    return "\n".join([*(f"{stack.exc_type}: {stack.exc_value}" for stack in trace.stacks), *nodes])


# -------------------------------------------------------------------------------------------- servers


@contextmanager
def user(server: Server, canary: Canary, database: str | None = None) -> Iterator[str]:
    """A user of the server whose password is the canary, and who may do all in a database; the name."""
    name = f"user_{secrets.token_hex(6)}"
    literal = canary.password.replace("'", "''")
    if server.provider == "mysql":
        server.sql(f"CREATE USER '{name}'@'%' IDENTIFIED BY '{literal}'")
        server.sql(f"GRANT ALL ON {database or 'none'}.* TO '{name}'@'%'")
    else:
        server.sql(f"CREATE ROLE {name} LOGIN PASSWORD '{literal}'")
        if database:
            server.sql(f"ALTER DATABASE {database} OWNER TO {name}")
    try:
        yield name
    finally:
        if database:
            server.drop(database)
        server.sql(f"DROP USER '{name}'@'%'" if server.provider == "mysql" else f"DROP ROLE {name}")
