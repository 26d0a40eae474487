"""A chat-completions endpoint on loopback that behaves as scripted, well or badly, and records what it was sent.

In: a list of behaviours, used one per request in order; the last one repeats. Out: real HTTP responses, the requests
received, and the largest number of requests that were in flight at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Behaviour = Callable[[BaseHTTPRequestHandler], None]

WORDS = "Who was in the kitchen when the apple moved, and who had already left?"


@dataclasses.dataclass(frozen=True)
class Received:
    """One request as it arrived."""

    path: str
    headers: Mapping[str, str]
    raw: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.raw)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed between two requests is no error of the server."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class ScriptedServer:
    """A running server: where it listens, what it received, how busy it was."""

    def __init__(self, script: list[Behaviour]):
        self.script = script
        self.received: list[Received] = []
        self.most_in_flight = 0
        self.closing = threading.Event()
        self.first_arrived = threading.Event()
        self._in_flight = 0
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), self._handler())

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def speak_tls(self, certificate: Path) -> None:
        """Call before it runs. certificate: file with the certificate and its key."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[ScriptedServer]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            self._http.shutdown()
            self._http.server_close()
            thread.join()

    def _begin(self, received: Received) -> Behaviour:
        with self._lock:
            behaviour = self.script[min(len(self.received), len(self.script) - 1)]
            self.received.append(received)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        self.first_arrived.set()
        return behaviour

    def _end(self) -> None:
        with self._lock:
            self._in_flight -= 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            closing = owner.closing
            received: Received  # the request that is being answered

            def do_POST(self):
                raw = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                self.received = Received(self.path, dict(self.headers.items()), raw)
                behaviour = owner._begin(self.received)
                try:
                    behaviour(self)
                except OSError:  # the client gave up, as it should after its deadline
                    self.close_connection = True
                finally:
                    owner._end()

            do_GET = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


@contextlib.contextmanager
def serving(*script: Behaviour) -> Iterator[ScriptedServer]:
    """Yields a running server with this script."""
    with ScriptedServer(list(script)).running() as server:
        yield server


def completion(content: str | None, finish_reason: str = "stop", refusal: str | None = None) -> bytes:
    """Returns the body of a chat completion that counts 11 prompt and 7 completion tokens."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def responds(status: int, body: bytes = b"", **headers: str) -> Behaviour:
    """Answers with this status and body; underscores in header names stand for hyphens."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return behave


def says(content: str | None, finish_reason: str = "stop", refusal: str | None = None) -> Behaviour:
    """Answers with a completion."""
    return responds(200, completion(content, finish_reason, refusal), Content_Type="application/json")


def gives_feedback(words: str = WORDS) -> Behaviour:
    """Answers as a judge should."""
    return says(json.dumps({"feedback": words}))


def obliges(handler: BaseHTTPRequestHandler) -> None:
    """Plays judge, partner and writer of feedback: the least reply that the request's schema allows, else a phrase."""
    request = handler.received.json  # type: ignore[attr-defined]
    schema = request.get("response_format", {}).get("json_schema", {}).get("schema")
    content = "Tell me more about it." if schema is None else json.dumps(_least(schema, schema.get("$defs", {})))
    says(content)(handler)


def _least(schema: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """The smallest value of a JSON schema, as pydantic writes them."""
    if "$ref" in schema:
        return _least(known[schema["$ref"].rpartition("/")[2]], known)
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    if "anyOf" in schema:
        return _least(schema["anyOf"][0], known)
    kind = schema.get("type")
    if kind == "object":
        return {name: _least(part, known) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [_least(schema["items"], known)] * schema.get("minItems", 0)
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    return {"boolean": False, "null": None}.get(str(kind), WORDS)


def fails(status: int, message: str = "it failed", code: str = "", **headers: str) -> Behaviour:
    """Answers with an error in the usual format."""
    return responds(status, json.dumps({"error": {"message": message, "code": code}}).encode(), **headers)


def waits(seconds: float, then: Behaviour) -> Behaviour:
    """Does nothing for a while (less if the server closes), then behaves."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.closing.wait(seconds)  # type: ignore[attr-defined]
        then(handler)

    return behave


def drops_mid_body(handler: BaseHTTPRequestHandler) -> None:
    """Promises a whole body, sends half of it and closes."""
    body = completion(json.dumps({"feedback": WORDS}))
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def resets(handler: BaseHTTPRequestHandler) -> None:
    """Resets the connection without an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True
