"""Settings of a judge or partner, and environment → endpoint: the one address that is contacted, and the key.

Both know where they came from. Reads the environment once, when the judge is made; a key may be obtained again later
(`credentials.py`). Opens no connection.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from ditto_jax.errors import ConfigError
from ditto_jax.judge.config import EndpointConfig, check_base_url
from ditto_jax.judge.credentials import Credentials, resolve_credentials

BASE_URL_ENV = "OPENAI_BASE_URL"


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint. `url_origin` and `key_origin` say for people where the values were set."""

    url: str
    url_origin: str
    credentials: Credentials

    @property
    def key_origin(self) -> str:
        return self.credentials.origin

    def redact(self, text: str) -> str:
        """Returns `text` with every occurrence of a key replaced."""
        return self.credentials.redact(text)


def resolve_endpoint(config: EndpointConfig, environ: Mapping[str, str] | None = None) -> Endpoint:
    """Returns the endpoint that `config` means. Raises ConfigError (no address), MissingInputError (no key).

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
    # What is replayed asks nobody, so that a machine without the key can do it.
    credentials = Credentials("no key (cache=replay)", None)
    if config.cache != "replay":
        credentials = resolve_credentials(config, environ)
    return Endpoint(url.rstrip("/"), url_origin, credentials)
