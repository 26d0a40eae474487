"""Run directories → the report on a loopback address: the page at once, rollouts of any number as they are asked for.

In: runs. Out: the page without rollouts, an index of all of them (made while the page is already shown), and the texts
of one step per request. Answers GET on 127.0.0.1 under that name alone, so that no other site can reach it through a
browser; writes nothing. What stands in the answers is `rollout_browser.py`'s.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.server
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ditto_jax.errors import ConfigError, MissingInputError, RunDirectoryError
from ditto_jax.report.page import read_runs, render
from ditto_jax.report.page_assets import json_answer
from ditto_jax.report.rollout_browser import block_of, items_of, whole_index
from ditto_jax.report.rollout_sources import rows_of

_HOST = "127.0.0.1"
_BLOCK = re.compile(r"/rollouts/(\d{1,6})/(\d{1,6})/(\d{1,9})\.json")


class ReportSite:
    """What the server answers with, as the runs were when it started."""

    def __init__(self, runs: Sequence[Path]):
        readings = read_runs(runs)
        self._runs = [reading.run for reading in readings]
        self._page = render(readings, served=True).encode()
        self._closing = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="rollout-index")
        self._index = self._pool.submit(whole_index, self._runs, lambda: not self._closing.is_set())

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """Returns (content type, body) for a path, or None if nothing is there. Waits for the index where needed."""
        if path == "/":
            return "text/html; charset=utf-8", self._page
        if path == "/rollouts.json":
            return "application/json", json_answer(self._index.result().as_dict())
        match = _BLOCK.fullmatch(path)
        if match is None:
            return None
        run, source, step = map(int, match.groups())
        sources = self._index.result().as_dict()["sources"]
        if run >= len(self._runs) or source >= len(sources):
            return None
        rows = rows_of(self._runs[run], sources[source], step)
        return ("application/json", json_answer(block_of(items_of(rows)))) if rows else None

    def close(self) -> None:
        """Stops the making of the index; nothing of it is kept."""
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answers one request; what is not there is 404, what asks under another name is 403."""
        if self.headers.get("Host") not in self.server.names:
            self._send(403, "text/plain; charset=utf-8", b"ask for 127.0.0.1")
            return
        found = self.server.site.answer(self.path)
        if found is None:
            self._send(404, "text/plain; charset=utf-8", b"nothing is here")
        else:
            self._send(200, *found)

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, site: ReportSite, port: int):
        super().__init__((_HOST, port), _Handler)
        self.site = site
        self.names = {f"{name}:{self.server_address[1]}" for name in (_HOST, "localhost")}


@contextlib.contextmanager
def running_report(runs: Sequence[Path], port: int = 0) -> Iterator[str]:
    """Serves the report while the context is open; yields its address. port: 0 takes any free one.

    Raises MissingInputError if there is no run or one is no folder, ConfigError for no port, RunDirectoryError if the
    port is taken.
    """
    if not runs:
        raise MissingInputError("report: name at least one run directory, for example runs/quickstart")
    if not 0 <= port <= 65_535:
        raise ConfigError(f"port={port}: must be between 0 and 65535; 0 takes any free one")
    with contextlib.closing(ReportSite(runs)) as site, _bound(site, port) as server:
        thread = threading.Thread(target=server.serve_forever, name="report-server")
        thread.start()
        try:
            yield f"http://{_HOST}:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def _bound(site: ReportSite, port: int) -> _Server:
    try:
        return _Server(site, port)
    except OSError as error:
        raise RunDirectoryError(f"port={port}: {error.strerror}; choose another, or 0 for any free one") from error


def serve_report(runs: Sequence[Path], port: int, tell: Callable[[str], None]) -> None:
    """Serves the report until the process is interrupted (Ctrl-C); tells its address. Raises like `running_report`."""
    with running_report(runs, port) as address, contextlib.suppress(KeyboardInterrupt):
        tell(f"report: {address} (Ctrl-C ends it)")
        threading.Event().wait()
