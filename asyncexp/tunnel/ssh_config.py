"""What `~/.ssh/config` and the system's file say of a host, and the files that they name."""

from __future__ import annotations

import os
from pathlib import Path

import asyncssh

from asyncexp.errors import SshTunnelError

SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")


def options_for(host: str, port: int | None, user: str | None) -> asyncssh.SSHClientConnectionOptions:
    """What counts for a host: what is given, then `~/.ssh/config`, then the system's. No key is read."""
    try:
        return asyncssh.SSHClientConnectionOptions(
            host=host,
            port=() if port is None else port,
            username=() if user is None else user,
            config=config_files(),
            client_keys=None,
            known_hosts=b"",
        )
    except (asyncssh.ConfigParseError, ValueError, OSError) as error:
        raise SshTunnelError(f"SSH server {host}: the configuration of ssh cannot be used ({error}); mend it") from None


def config_files() -> list[str]:
    files = (at_home("~/.ssh/config"), SYSTEM_CONFIG)
    return [str(file) for file in files if os.access(file, os.R_OK)]


def named_files(options: asyncssh.SSHClientConnectionOptions, name: str) -> list[Path]:
    """What `~/.ssh/config` says under a name that stands for several files."""
    named = options.config.get(name)
    return [at_home(str(file)) for file in named] if isinstance(named, list | tuple) else []


def at_home(name: str) -> Path:
    return Path(name).expanduser()


def content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
