"""`ditto-jax serve`: settings → a running server, until it is told to stop.

In: a `ServeConfig`. Out: nothing, after a graceful end: what is in flight is finished, new connections are refused. The
address is taken before the model is loaded, and answers once everything is compiled. jax is imported for `backend=jax`
alone.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
from collections.abc import Mapping

from ditto_jax.errors import MissingInputError
from ditto_jax.serving.address import bound
from ditto_jax.serving.app import Server
from ditto_jax.serving.ask import Backend
from ditto_jax.serving.config import ServeConfig
from ditto_jax.serving.jobs import House
from ditto_jax.serving.persona import Persona, read_persona

_GRACE_S = 30


def serve(config: ServeConfig, environ: Mapping[str, str] | None = None) -> None:
    """Serves until SIGINT or SIGTERM. Raises a DittoError for settings, models and addresses that cannot work."""
    key = _key(config, os.environ if environ is None else environ)
    house = house_of(config)
    listener = bound(config.host, config.port)
    with listener:
        backend = make_backend(config)
        server = Server(
            backend,
            house,
            key=key,
            max_waiting=config.max_waiting,
            max_body_bytes=config.max_body_bytes,
            read_timeout_s=config.read_timeout_s,
        )
        _run(server, listener, config)


def house_of(config: ServeConfig) -> House:
    """Returns how this server simulates; raises MissingInputError or ConfigError for a persona file."""
    persona = Persona() if config.persona is None else read_persona(config.persona)
    return House(config.name, config.preset, persona, config.guard, config.attempts)


def make_backend(config: ServeConfig) -> Backend:
    """Returns who answers, loaded but not started."""
    if config.backend == "openai":
        from ditto_jax.serving.relay import RelayBackend

        return RelayBackend(dataclasses.replace(config.remote, kind="openai"))
    from ditto_jax.serving.local import LocalBackend
    from ditto_jax.weights import policy_for_sampling

    engine = config.engine
    policy, mesh = policy_for_sampling(config.model_name_or_path, engine.dtype, fsdp=1, tensor=engine.tensor)
    return LocalBackend(policy, engine, config.model_name_or_path, mesh)


def _run(server: Server, listener: socket.socket, config: ServeConfig) -> None:
    import uvicorn

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                host, port = listener.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                print(f"serving {server.backend.identity} at http://{shown}:{port}/v1", flush=True)

    settings = uvicorn.Config(
        server.app(),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
        limit_concurrency=None,
        backlog=2048,
    )
    # Once it has shut down, uvicorn raises the signal again; by then everything is done and the end is a good one.
    before = {number: signal.signal(number, _nothing_left) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        Announcing(settings).run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _nothing_left(number: int, frame: object) -> None:
    """Takes a signal that has been obeyed."""


def _key(config: ServeConfig, environ: Mapping[str, str]) -> str | None:
    if config.api_key_env is None:
        return None
    key = environ.get(config.api_key_env, "").strip()
    if not key:
        raise MissingInputError(
            f"api_key_env={config.api_key_env}: this environment variable is not set; export it with the key that "
            "clients must send, or leave api_key_env out to serve this machine alone"
        )
    return key
