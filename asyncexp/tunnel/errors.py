"""What a failure of the tunnel means: where, why, what mends it, and whether another try is worth while."""

from __future__ import annotations

import errno
import socket

import asyncssh

from asyncexp.config.models import SshConfig
from asyncexp.db.whole import Declined
from asyncexp.errors import DatabaseError, SshTunnelError
from asyncexp.tunnel.host_keys import Door
from asyncexp.tunnel.keys import OWN_KEYS, key_trouble, locked_key


class TunnelAway(Declined, SshTunnelError):
    """The SSH server cannot be reached at the moment: an outage of the database behind it, worth another try."""


def translated(error: Exception, door: Door) -> SshTunnelError:
    """What a failure to get in means, and whether another try is worth while."""
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        if door.shown is None:
            return SshTunnelError(f"{door.place}: its host key is refused ({in_words(error)}); ask its administrators")
        return SshTunnelError(door.mistrust())
    if isinstance(error, asyncssh.KeyExchangeFailed) and "host key" in error.reason and door.others() is not None:
        return SshTunnelError(door.mistrust())
    if isinstance(error, asyncssh.PermissionDenied) or "Too many authentication" in str(error):
        return SshTunnelError(_not_let_in(door))
    if isinstance(error, asyncssh.KeyImportError | asyncssh.KeyEncryptionError):
        return SshTunnelError(f"{door.place}: a key of ~/.ssh: {key_trouble(str(error), has_passphrase=True)}")
    if isinstance(error, asyncssh.ChannelOpenError):
        return TunnelAway(f"{door.place} cannot be reached from the jump host ({in_words(error)}); is it running?")
    if isinstance(error, asyncssh.KeyExchangeFailed | asyncssh.ProtocolNotSupported | asyncssh.ProtocolError):
        return SshTunnelError(f"{door.place}: no SSH connection can be made with it ({in_words(error)})")
    if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
        return SshTunnelError(f"{door.place}: no such host ({error.strerror}); check `address`")
    if isinstance(error, asyncssh.Error | OSError | TimeoutError | EOFError):
        words = in_words(error)
        return TunnelAway(f"{door.place} does not answer ({words}); is it running, are `address` and `port` right?")
    return SshTunnelError(f"{door.place}: {type(error).__name__}: {in_words(error)}")


def in_words(error: Exception) -> str:
    """What it says in one line; the server may have chosen the words."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return "".join(letter if letter.isprintable() else " " for letter in words)[:300]


def _not_let_in(door: Door) -> str:
    text = (
        f"{door.place}: not let in with {door.keys}; check `user` and `key_file`, and that the public key is in "
        "~/.ssh/authorized_keys there"
    )
    if door.keys == OWN_KEYS and (locked := locked_key(door.options)) is not None:
        text += f". {locked} is encrypted and was left out: write `passphrase`, or add it to the agent (ssh-add)"
    return text


def not_passed_on(ssh: SshConfig, refused: asyncssh.ChannelOpenError, *, lasting: bool) -> DatabaseError:
    """Why the last server would not pass on a connection; `lasting` if what it forbids it has always forbidden."""
    place = f"{ssh.remote_address}:{ssh.remote_port}, as SSH server {ssh.address} sees it,"
    if refused.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
        kind = SshTunnelError if lasting else TunnelAway
        return kind(
            f"SSH server {ssh.address} does not pass on connections to {ssh.remote_address}:{ssh.remote_port} "
            f"({in_words(refused)}); ask its administrators for AllowTcpForwarding and PermitOpen"
        )
    return TunnelAway(
        f"{place} does not answer ({in_words(refused)}); is the database running, are `remote_address` and "
        "`remote_port` right?"
    )


def cannot_listen(host: str, port: int, error: OSError) -> SshTunnelError:
    where = f"local end of the SSH tunnel, {host}:{port or 'any port'}"
    if error.errno == errno.EADDRINUSE or "already in use" in str(error):
        return SshTunnelError(
            f"{where}: port {port} is taken; give another `local_port`, or leave it out: then a free one is found"
        )
    return SshTunnelError(f"{where}: cannot be listened on ({error}); check `local_address` and `local_port`")
