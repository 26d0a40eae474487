"""Environment variable, command or file → the key of an endpoint, obtained again when it has expired.

In: where a key comes from. Out: the key, inside pydantic's SecretStr so that no repr shows it. Messages name the source
and never what it gave. Sends nothing.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pydantic

from ditto_jax.errors import ConfigError, MissingInputError
from ditto_jax.judge.config import EndpointConfig

API_KEY_ENV = "OPENAI_API_KEY"
_SHORTEST_SECRET = 8
_COMMAND_S = 60.0


class Credentials:
    """The key of one endpoint. origin: for people. read: obtains it anew, off the event loop; None: there is no key.

    Plain text never leaves the functions that read it: a finished task shows its result in logs of the event loop.
    """

    def __init__(
        self, origin: str, read: Callable[[], pydantic.SecretStr] | None, first: pydantic.SecretStr | None = None
    ):
        self.origin = origin
        self._read = read
        self._key = first
        self._seen: list[pydantic.SecretStr] = [] if self._key is None else [self._key]
        self._reading: asyncio.Future[pydantic.SecretStr] | None = None

    @property
    def known(self) -> pydantic.SecretStr | None:
        """The key as last obtained."""
        return self._key

    async def current(self) -> pydantic.SecretStr | None:
        """Returns the key, obtained now if it was not before. Raises ConfigError or MissingInputError."""
        if self._key is None and self._read is not None:
            await self._obtain()
        return self._key

    async def renewed(self, rejected: pydantic.SecretStr | None) -> bool:
        """Returns whether there is another key than the rejected one; calls that ask together share one answer."""
        if self._key == rejected and self._read is not None:
            await self._obtain()
        return self._key is not None and self._key != rejected

    def redact(self, text: str) -> str:
        """Returns `text` with every key that was ever used replaced; placeholders such as "EMPTY" stay."""
        for secret in self._seen:
            key = secret.get_secret_value()
            if len(key) >= _SHORTEST_SECRET:
                text = text.replace(key, "[key]")
        return text

    async def _obtain(self) -> None:
        assert self._read is not None
        loop = asyncio.get_running_loop()
        if self._reading is None or self._reading.done() or self._reading.get_loop() is not loop:
            self._reading = asyncio.ensure_future(asyncio.to_thread(self._read))
        key = await asyncio.shield(self._reading)
        self._key = key
        if key not in self._seen:
            self._seen.append(key)


def resolve_credentials(config: EndpointConfig, environ: Mapping[str, str]) -> Credentials:
    """Returns where the key comes from. Raises MissingInputError (nothing there), ConfigError (no key can look so).

    A command is not run before a key is needed.
    """
    where = config.where
    if config.api_key_command:
        origin = f"{where}.api_key_command ({config.api_key_command[0]})"
        return Credentials(origin, lambda: _from_command(config.api_key_command, origin))
    if config.api_key_file:
        origin = f"{where}.api_key_file ({config.api_key_file})"
        path = Path(os.path.expanduser(config.api_key_file))
        return Credentials(origin, lambda: _from_file(path, origin), _from_file(path, origin))
    name = config.api_key_env or API_KEY_ENV
    origin = f"environment variable {name}"
    key = environ.get(name, "").strip()
    if not key and config.api_key_env:
        raise MissingInputError(
            f"{where}.api_key_env={name}: this environment variable is not set; export it with the key, or leave "
            f"{where}.api_key_env out if the endpoint needs none"
        )
    if not key:
        return Credentials(f"no key ({API_KEY_ENV} is not set)", None)
    return Credentials(origin, lambda: _checked(environ.get(name, ""), origin), _checked(key, origin))


def _from_command(command: tuple[str, ...], origin: str) -> pydantic.SecretStr:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_COMMAND_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise MissingInputError(f"{origin}: gave no key within {_COMMAND_S:g} s") from None
    except (OSError, UnicodeDecodeError) as error:
        raise MissingInputError(f"{origin}: cannot be run: {type(error).__name__}") from None
    if done.returncode:
        # Neither output is shown: both may hold the key.
        raise MissingInputError(f"{origin}: failed with exit code {done.returncode}; run it by hand to see why")
    return _checked(done.stdout, origin)


def _from_file(path: Path, origin: str) -> pydantic.SecretStr:
    try:
        return _checked(path.read_text(encoding="utf-8"), origin)
    except (OSError, UnicodeDecodeError) as error:
        raise MissingInputError(f"{origin}: cannot be read: {type(error).__name__}; write the key into it") from None


def _checked(text: str, origin: str) -> pydantic.SecretStr:
    key = text.strip()
    if not key:
        raise MissingInputError(f"{origin}: gave no key (it is empty)")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"{origin}: holds characters that a key cannot have (not shown here)")
    return pydantic.SecretStr(key)
