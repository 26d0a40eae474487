"""A slow loris: a response that goes on, a byte at a time, and never ends."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler


def drips(handler: BaseHTTPRequestHandler) -> None:
    """Promises a long body and sends a blank of it now and then, until the client or the server has had enough."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not handler.closing.wait(0.05):  # type: ignore[attr-defined]
        handler.wfile.write(b" ")
        handler.wfile.flush()
