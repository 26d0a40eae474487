"""The address of a server, taken before anything that takes time."""

from __future__ import annotations

import socket
import sys

from ditto_jax.errors import ConfigError


def bound(host: str, port: int) -> socket.socket:
    """Returns a socket at the address; port 0 takes a free one. Raises ConfigError if it cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"host={host}: {error}") from error
    try:
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"host={host}, port={port}: cannot be used ({why}); --port 0 takes a free one") from error
    return listener
