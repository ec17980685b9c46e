"""The host keys of a server on the way: which are trusted, and what to run when the one that it shows is not."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from asyncexp.tunnel.ssh_config import at_home, content

SYSTEM_HOSTS = Path("/etc/ssh/ssh_known_hosts")
DEFAULT_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")


@dataclass(slots=True)
class Door:
    """One SSH server on the way, with what `~/.ssh/config` says of it."""

    options: asyncssh.SSHClientConnectionOptions
    hosts: list[Path]
    """The files of known hosts that count here, the first that one would write into first."""
    before: list[Door]
    """The jump hosts on the way to it."""
    keys: str
    """What is shown there as a key, in words."""
    shown: asyncssh.SSHKey | None = None
    """The host key that the server showed and that is not trusted."""

    @property
    def host(self) -> str:
        return self.options.host

    @property
    def place(self) -> str:
        way = ", ".join(f"{door.host}:{door.options.port}" for door in self.before)
        by = f" by way of {way}" if way else ""
        return f"SSH server {self.options.username}@{self.host}:{self.options.port}{by}"

    def known(self) -> bytes:
        """What is known of hosts; never empty, which asyncssh takes for "look in ~/.ssh/known_hosts"."""
        return b"\n".join([*map(content, self.hosts), b""]) + b"\n"

    def others(self) -> Path | None:
        """The file that knows other keys of this server."""
        alias = self.options.host_key_alias or self.host
        port = self.options.port if self.options.port != asyncssh.DEFAULT_PORT else None
        for file in self.hosts:
            with suppress(ValueError):
                if asyncssh.match_known_hosts(content(file), alias, "", port)[0]:
                    return file
        return None

    def scan(self, file: Path) -> str:
        """The command that notes the server's keys; behind jump hosts the last of them looks."""
        port = f"-p {self.options.port} " if self.options.port != asyncssh.DEFAULT_PORT else ""
        command = f"ssh-keyscan {port}{shlex.quote(self.host)}"
        if self.before:
            command = f"ssh {_as_target(self.before)} {command}"
        if self.options.host_key_alias:
            command += f" | sed 's/^[^ ]*/{self.options.host_key_alias}/'"
        made = "" if file.parent.is_dir() else f"mkdir -p -m 700 {_quoted(file.parent)} && "
        return f"{made}{command} >> {_quoted(file)}"

    def mistrust(self) -> str:
        """Why its key is refused, and what to run if it is right all the same."""
        shown = f" ({self.shown.get_algorithm()} {self.shown.get_fingerprint()})" if self.shown is not None else ""
        file = self.others()
        if file is None:
            return (
                f"{self.place}: its host key{shown} is unknown. Compare it with what its administrators say, and if it "
                f"is right, run: {self.scan(self.hosts[0])}"
            )
        name = self.options.host_key_alias or self.host
        if self.options.port != asyncssh.DEFAULT_PORT and not self.options.host_key_alias:
            name = f"[{name}]:{self.options.port}"
        return (
            f"{self.place}: its host key has CHANGED{shown}; {file} has another. Somebody may be listening in "
            f"between. If its administrators say that the new one is right, run: "
            f"ssh-keygen -R {shlex.quote(name)} -f {_quoted(file)} && {self.scan(file)}"
        )


def _quoted(file: Path) -> str:
    """For a shell; `~` where the home directory is meant."""
    home = at_home("~")
    if file.is_relative_to(home):
        return f"~/{shlex.quote(str(file.relative_to(home)))}"
    return shlex.quote(str(file))


def _as_target(doors: Sequence[Door]) -> str:
    """The last of these servers, as `ssh` is told of it."""
    way = [f"{door.options.username}@{door.host}:{door.options.port}" for door in doors[:-1]]
    jump = f"-J {shlex.quote(','.join(way))} " if way else ""
    last = doors[-1].options
    return f"{jump}-p {last.port} {shlex.quote(f'{last.username}@{last.host}')}"
