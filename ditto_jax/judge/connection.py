"""Request body → completion: one HTTP request to the one host of an endpoint, with its key.

In: a JSON body. Out: a Completion, or the typed failure that the response means. Contacts the endpoint's host only:
redirects are not followed, and proxies or .netrc credentials from the environment are not used (certificate settings
such as SSL_CERT_FILE are). A rejected key is obtained anew once. Does not wait, repeat or count.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import httpx2
import pydantic

from ditto_jax.errors import DittoError
from ditto_jax.judge.completion import Completion, read_body, read_completion, response_failure
from ditto_jax.judge.config import EndpointConfig
from ditto_jax.judge.endpoint import Endpoint
from ditto_jax.judge.retry import PermanentFailure, TransientFailure, UnauthorizedFailure, UnparsableFailure

_MAX_CONNECT_S = 10.0


@dataclasses.dataclass
class Sent:
    """What is known about a request while it runs. status: None before the response began."""

    status: int | None = None

    @property
    def may_be_billed(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


class Connection:
    """Usable from any running event loop; connections belong to the loop that first needs them. now: Unix seconds."""

    def __init__(self, config: EndpointConfig, endpoint: Endpoint, now: Callable[[], float]):
        self._config = config
        self._endpoint = endpoint
        self._now = now
        self._loop: asyncio.AbstractEventLoop | None = None
        self._http: httpx2.AsyncClient | None = None

    async def post(self, body: dict[str, Any], sent: Sent) -> Completion:
        """Returns the completion that answers `body`; raises AttemptFailed. Keys are removed from what was answered."""
        key = await self._key()
        try:
            return await self._post(body, key, sent)
        except UnauthorizedFailure:
            try:
                is_renewed = await self._endpoint.credentials.renewed(key)
            except DittoError as error:
                raise UnauthorizedFailure(f"HTTP 401, and no new key: {error}") from None
            if not is_renewed:
                raise
        return await self._post(body, await self._key(), sent)

    async def aclose(self) -> None:
        """Closes the connections; a later request opens new ones."""
        http, loop = self._http, self._loop
        self._http = self._loop = None
        if http is not None and loop is asyncio.get_running_loop():
            await http.aclose()

    async def _key(self) -> pydantic.SecretStr | None:
        try:
            return await self._endpoint.credentials.current()
        except DittoError as error:
            raise PermanentFailure(str(error)) from None

    async def _post(self, body: dict[str, Any], key: pydantic.SecretStr | None, sent: Sent) -> Completion:
        sent.status = None
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        url = f"{self._endpoint.url}/chat/completions"
        try:
            async with self._bound().stream("POST", url, json=body, headers=headers) as response:
                sent.status = response.status_code
                content = await read_body(response)
        except (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError) as error:
            raise PermanentFailure(f"request cannot be sent: {type(error).__name__}") from None
        except httpx2.TransportError as error:
            detail = f"connection failed: {type(error).__name__} {error}".rstrip()
            raise TransientFailure(detail, is_outage=True) from None
        except httpx2.DecodingError:
            raise UnparsableFailure("body is not in its stated encoding") from None
        if not response.is_success:
            # Servers may repeat a key that they reject; it goes before the message is shortened, which could split it.
            message = self._endpoint.redact(content.decode(errors="replace"))
            raise response_failure(response.status_code, response.headers, message, self._now())
        completion = read_completion(content)
        redact = self._endpoint.redact
        return dataclasses.replace(completion, text=redact(completion.text), refusal=redact(completion.refusal))

    def _bound(self) -> httpx2.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._http is None or self._loop is not loop:
            self._loop = loop
            self._http = self._connect()
        return self._http

    def _connect(self) -> httpx2.AsyncClient:
        size = self._config.max_concurrent
        return httpx2.AsyncClient(
            limits=httpx2.Limits(max_connections=size, max_keepalive_connections=size),
            # The deadline of the call bounds everything else.
            timeout=httpx2.Timeout(None, connect=min(_MAX_CONNECT_S, self._config.timeout_s)),
            verify=httpx2.create_ssl_context(),
            trust_env=False,
            follow_redirects=False,
        )
