"""Files that commands write: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from asyncexp.cli.codes import NOT_ALL_WELL, Refused


def check_folder(path: Path) -> None:
    """That there is a folder to write to, and no folder in the file's place."""
    if path.is_dir():
        raise Refused(f"{path} is a folder")
    if not path.absolute().parent.is_dir():
        raise Refused(f"{path}: there is no folder {path.absolute().parent}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside the file's, to write to; it becomes the file's when all went well, else it is gone.

    Raises:
        Refused: the system will not have the file written.
    """
    import tempfile

    path = path.resolve()
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:50]}-", suffix=path.suffix)
    except OSError as error:
        raise _unwritten(path, error) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError as error:
        raise _unwritten(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def _unwritten(path: Path, error: OSError) -> Refused:
    return Refused(f"{path} was not written: {error.strerror or error}", NOT_ALL_WELL)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Writes them, over those that are there; folders are made.

    Raises:
        Refused: the system will not have one written.
    """
    try:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, "utf-8")
    except OSError as error:
        raise Refused(f"{error.filename or folder} cannot be written: {error.strerror}") from None


def needed(module: str, what: str, extra: str, package: str | None = None) -> None:
    """Imports what is not installed with every asyncexp.

    Raises:
        Refused: it is not installed.
    """
    try:
        import_module(module)
    except ImportError as error:
        name = package or module
        raise Refused(
            f"{what} needs {name}, which cannot be imported ({error}): pip install 'asyncexp[{extra}]'", NOT_ALL_WELL
        ) from None
