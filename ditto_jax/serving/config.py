"""Settings of `ditto-jax serve`: what is served, how it behaves, where it listens, and how much it takes on.

In: flags. Out: checked, immutable records. Reads no environment, opens no connection, imports no jax.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import ClassVar, Literal

from ditto_jax.errors import ConfigError
from ditto_jax.judge.config import EndpointConfig
from ditto_jax.serving.simulator import PRESETS


@dataclasses.dataclass(frozen=True)
class RemoteConfig(EndpointConfig):
    """The model behind `backend=openai`; fields are those of every endpoint.

    How tokens are drawn and how many comes from each request. kind stays "none" until the endpoint is used.
    """

    where: ClassVar[str] = "remote"
    kinds: ClassVar[tuple[str, ...]] = ("none", "openai")

    kind: str = "none"


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """How the policy on this machine decodes.

    max_model_len: longest prompt plus reply, in tokens; keys for so many are kept for every row. max_completion_tokens:
    longest reply, and that of requests which name no limit. max_rows: replies decoded together. chunk: decode steps
    between two looks at what has arrived; a stream gets an event a chunk. warm_up: compile everything before the
    address answers.
    """

    max_model_len: int = 2048
    max_completion_tokens: int = 512
    max_rows: int = 16
    chunk: int = 8
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    tensor: int = 1
    warm_up: bool = True

    def __post_init__(self):
        for name in ("max_completion_tokens", "max_rows", "chunk", "tensor"):
            if getattr(self, name) < 1:
                raise ConfigError(f"engine.{name}={getattr(self, name)}: must be at least 1")
        if self.max_model_len <= self.max_completion_tokens:
            raise ConfigError(
                f"engine.max_model_len={self.max_model_len}: must exceed engine.max_completion_tokens="
                f"{self.max_completion_tokens}, or no prompt has room"
            )


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """What is served and to whom.

    model_name_or_path: folder in Hugging Face layout, name of a packaged policy, or directory of a run. backend: "jax"
    serves it from here; "openai" puts the guard in front of the endpoint `remote` and needs no jax. name: what clients
    call the model. preset: how the simulator is prompted and read. persona: file that says who is simulated. guard:
    whether faulty replies are drawn again, `attempts` times in all. host: loopback by default; any other address needs
    api_key_env, the NAME of the environment variable that holds the key clients must send. max_waiting: requests in all
    before further ones are told to come back. max_body_bytes, read_timeout_s: of one request's body.
    """

    model_name_or_path: str = ""
    backend: Literal["jax", "openai"] = "jax"
    name: str = "ditto"
    preset: str = "plain"
    persona: str | None = None
    guard: bool = True
    attempts: int = 4
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_env: str | None = None
    max_waiting: int = 256
    max_body_bytes: int = 4 * 2**20
    read_timeout_s: float = 30.0
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    remote: RemoteConfig = dataclasses.field(default_factory=RemoteConfig)

    def __post_init__(self):
        if self.preset not in PRESETS:
            raise ConfigError(f"preset={self.preset}: choose one of {', '.join(PRESETS)}")
        for name in ("attempts", "max_waiting", "max_body_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port={self.port}: must be from 0 (any free one) to 65535")
        if not self.name or ":" in self.name:
            raise ConfigError(f"name={self.name!r}: give a name without a colon, which separates presets; ditto works")
        if not self.api_key_env and not _is_loopback(self.host):
            raise ConfigError(
                f"host={self.host}: others could reach it and no key is asked of them; set api_key_env to the name of "
                "an environment variable with a key, or host to 127.0.0.1"
            )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
