"""Settings of a judge or partner, and environment → endpoint: the one address that is contacted, and the key.

Both know where they came from. Reads the environment once, when the judge is made. The key stays inside pydantic's
SecretStr, so that no repr shows it. Opens no connection.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

import pydantic

from ditto_jax.errors import ConfigError, MissingInputError
from ditto_jax.judge.config import EndpointConfig, check_base_url

BASE_URL_ENV = "OPENAI_BASE_URL"
API_KEY_ENV = "OPENAI_API_KEY"
_SHORTEST_SECRET = 8


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint. `url_origin` and `key_origin` say for people where the values were set."""

    url: str
    url_origin: str
    key: pydantic.SecretStr | None
    key_origin: str

    def redact(self, text: str) -> str:
        """Returns `text` with every occurrence of the key replaced; placeholders such as "EMPTY" stay."""
        key = self.key.get_secret_value() if self.key else ""
        return text.replace(key, "[key]") if len(key) >= _SHORTEST_SECRET else text


def resolve_endpoint(config: EndpointConfig, environ: Mapping[str, str] | None = None) -> Endpoint:
    """Returns the endpoint that `config` means. Raises ConfigError (no address), MissingInputError (named key not set).

    There is no default address: text of a run never goes to a host that nobody configured.
    """
    environ = os.environ if environ is None else environ
    url, url_origin = config.base_url, f"{config.where}.base_url"
    if url is None:
        url, url_origin = environ.get(BASE_URL_ENV, ""), f"environment variable {BASE_URL_ENV}"
        if not url:
            raise ConfigError(
                f"{config.where}.base_url is not set and neither is {BASE_URL_ENV}: {config.where}.kind=openai needs "
                "an address, for example http://localhost:8000/v1"
            )
        check_base_url(url, where=BASE_URL_ENV)
    key, key_origin = _resolve_key(config.api_key_env, environ, config.where)
    return Endpoint(url=url.rstrip("/"), url_origin=url_origin, key=key, key_origin=key_origin)


def _resolve_key(named: str | None, environ: Mapping[str, str], where: str) -> tuple[pydantic.SecretStr | None, str]:
    name = named or API_KEY_ENV
    key = environ.get(name, "").strip()
    if not key and named:
        raise MissingInputError(
            f"{where}.api_key_env={named}: this environment variable is not set; export it with the key, or leave "
            f"{where}.api_key_env out if the endpoint needs none"
        )
    if not key:
        return None, f"no key ({API_KEY_ENV} is not set)"
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"environment variable {name}: holds characters that a key cannot have (not shown here)")
    return pydantic.SecretStr(key), f"environment variable {name}"
