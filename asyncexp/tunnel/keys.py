"""The user's keys: read from files with the passphrase, or held by the agent; and what is wrong with one."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

import asyncssh

from asyncexp.config.models import SshConfig
from asyncexp.tunnel.ssh_config import at_home, content, named_files

DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
OWN_KEYS = "the agent's keys, those that ~/.ssh/config names, and ~/.ssh/id_*"


def read_key(path: Path, ssh: SshConfig) -> tuple[asyncssh.SSHKey | None, str]:
    """The private key, or what is wrong with it. No error goes on from here: its traceback holds the passphrase."""
    try:
        if (mode := path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
            return None, (
                f"key_file {path}: others can read this private key ({stat.filemode(mode)}); run: "
                f"chmod 600 {shlex.quote(str(path))}"
            )
        secret = None if ssh.passphrase is None else ssh.passphrase.get_secret_value()
        return asyncssh.read_private_key(str(path), secret), ""
    except OSError as error:
        return None, f"key_file {path}: the private key cannot be read ({error.strerror}); check `key_file`"
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        return None, f"key_file {path}: {key_trouble(str(error), has_passphrase=ssh.passphrase is not None)}"


def key_trouble(words: str, *, has_passphrase: bool) -> str:
    if "bcrypt" in words:
        return "the key is encrypted, and the package bcrypt is missing: pip install 'asyncssh[bcrypt]'"
    if words.startswith("Passphrase"):
        return "it is encrypted, and there is no passphrase: write `passphrase`, or add the key to the agent (ssh-add)"
    if has_passphrase and ("passphrase" in words.lower() or "decrypt" in words.lower()):
        return "the passphrase does not open the key; check `passphrase`"
    return "this is no private key that can be read here; check `key_file` (it is the file without .pub)"


async def agent_has(path: Path, options: asyncssh.SSHClientConnectionOptions) -> bool:
    """Whether the agent holds the same key: then no passphrase is needed."""
    where = options.config.get("IdentityAgent", os.environ.get("SSH_AUTH_SOCK"))
    try:
        public = asyncssh.read_public_key(f"{path}.pub").public_data
        if not where:
            return False
        async with await asyncssh.connect_agent(str(at_home(str(where)))) as agent:
            held = [pair.public_data for pair in await agent.get_keys()]
    except (OSError, ValueError):
        return False
    return public in held


def locked_key(options: asyncssh.SSHClientConnectionOptions) -> Path | None:
    """The first of the user's keys that needs a passphrase."""
    for path in named_files(options, "IdentityFile") or [at_home(f"~/.ssh/{name}") for name in DEFAULT_KEYS]:
        try:
            asyncssh.import_private_key(content(path))
        except asyncssh.KeyImportError as error:
            if str(error).startswith("Passphrase"):
                return path
    return None
