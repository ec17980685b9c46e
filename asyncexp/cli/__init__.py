"""The command line, `asyncexp`: what `Experimenter` does, from a shell."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """The entry point of the command."""
    open_streams()
    from asyncexp.cli.app import app

    app(prog_name="asyncexp")


def open_streams() -> None:
    """A standard stream that was closed before (`>&-`) leads nowhere; else the next file opened would be it."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115  (until the end)
