"""A judge on loopback whose answers take as long as those of a model far away: log-normal, in few places.

In: chat completions, and `GET /latency?mean=S`, which sets the mean of the latencies from then on. Out: a grade or
words by the request's schema, and to the GET what was done since the last one. How long a request takes follows from
its text alone, so that the same drafts meet the same latencies in whatever order they come. A process of its own: it
must not take turns with the sampler. Uses the standard library alone.

    python -m benchmarks.slow_judge PLACES DEVIATION WORDS     (prints its port)
"""

from __future__ import annotations

import json
import math
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

GRADES = 10


class Latencies:
    """Log-normal seconds with a mean that can be set and a deviation of so many means."""

    def __init__(self, deviation: float):
        self.mean = 0.0
        self._sigma = math.sqrt(math.log(1 + deviation**2))

    def of(self, text: str) -> float:
        """Returns the seconds that a request with this text takes."""
        unit = random.Random(text).lognormvariate(-(self._sigma**2) / 2, self._sigma)
        return self.mean * unit


class Desk:
    """Answers in `places` places at most; counts what was asked and how long places were taken."""

    def __init__(self, places: int, latencies: Latencies, words: str):
        self.latencies = latencies
        self._words = words
        self._places = threading.BoundedSemaphore(places)
        self._lock = threading.Lock()
        self._record = {"calls": 0, "busy_s": 0.0}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns the reply to a request, when its time has come."""
        text = json.dumps(request["messages"])
        asked = request["response_format"]["json_schema"]["schema"]["properties"]
        with self._places:
            began = time.monotonic()
            time.sleep(self.latencies.of(text))
            busy_s = time.monotonic() - began
        with self._lock:
            self._record = {"calls": self._record["calls"] + 1, "busy_s": self._record["busy_s"] + busy_s}
        return {"feedback": self._words} if "feedback" in asked else {"grade": random.Random(text).randrange(GRADES)}

    def settle(self) -> dict[str, Any]:
        """Returns the calls, and the seconds that places were taken, since the last time."""
        with self._lock:
            record, self._record = self._record, {"calls": 0, "busy_s": 0.0}
        return record


def handler_of(desk: Desk) -> type[BaseHTTPRequestHandler]:
    """Returns the handler of a server for this desk."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = {"role": "assistant", "content": json.dumps(desk.answer(request))}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            self._send({"object": "chat.completion", "choices": choices})

        def do_GET(self) -> None:
            desk.latencies.mean = float(parse_qs(urlsplit(self.path).query)["mean"][0])
            self._send(desk.settle())

        def _send(self, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def main() -> None:
    places, deviation, words = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    server = _Server(("127.0.0.1", 0), handler_of(Desk(places, Latencies(deviation), words)))
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # ends when whoever started it does
    server.shutdown()
    server.server_close()


if __name__ == "__main__":
    main()
