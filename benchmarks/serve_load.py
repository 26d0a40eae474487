"""A running server under load: streams side by side, every reply compared with what is said to one alone, rude clients.

Some distinct requests are sent one after the other first: what the server says to each must stay the same, however many
others are in flight. The bare sampler draws the same replies; its speed is what the server's is compared with. Then
`--streams` clients send `--requests` requests in all, each a stream with an event a chunk; then as many go on while
others send broken bodies, huge ones, leave in the middle, read nothing, or come ten times as many. Writes
serve_load.json and .md.

    python -m benchmarks.serve_load --output benchmark_results --size 39M
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from benchmarks.figures import machine, write_results
from benchmarks.own_server import own_server
from benchmarks.workloads import SIZES, Size, export, parameters, random_prompts

_PATH = "/v1/completions"
_TIMEOUT_S = 1200.0


@dataclasses.dataclass(frozen=True)
class Load:
    """What is asked: distinct requests of `prompt` tokens with `new` tokens each, over `rows` rows."""

    prompts: list[list[int]]
    new: int
    rows: int
    chunk: int

    def body(self, number: int) -> dict[str, Any]:
        number %= len(self.prompts)
        usage = {"include_usage": True}
        prompt = self.prompts[number]
        return {"prompt": prompt, "seed": number, "max_tokens": self.new, "stream": True, "stream_options": usage}

    @property
    def max_model_len(self) -> int:
        return len(self.prompts[0]) + self.new


@dataclasses.dataclass
class Seen:
    """What clients saw. wrong: replies that are not as expected; failed: by kind; texts: the last by request."""

    first_token_s: list[float] = dataclasses.field(default_factory=list)
    tokens: int = 0
    right: int = 0
    wrong: int = 0
    failed: Counter[str] = dataclasses.field(default_factory=Counter)
    texts: dict[int, str] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def figures(self) -> dict[str, Any]:
        ordered = sorted(self.first_token_s) or [float("nan")]
        return {
            "requests": self.right + self.wrong + sum(self.failed.values()),
            "right": self.right,
            "wrong": self.wrong,
            "failed": dict(self.failed),
            "tokens_per_s": self.tokens / self.seconds if self.seconds else 0.0,
            "first_token_p50_s": statistics.median(ordered),
            "first_token_p95_s": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        }


def bare(folder: Path, load: Load) -> tuple[list[str], float]:
    """Returns the texts of the distinct requests as the sampler draws them by itself, and its tokens a second."""
    from ditto_jax.keys import derive
    from ditto_jax.policy import load_policy
    from ditto_jax.sampling.slot_shapes import SamplerShapes
    from ditto_jax.sampling.slots import SampleRequest
    from model.partition import make_mesh
    from model.sampling import SamplingParams

    mesh = make_mesh(1, 1, 1)
    policy = load_policy(str(folder), mesh)
    shapes = SamplerShapes(
        prefix=(load.max_model_len,),
        tail=(1,),
        max_new_tokens=load.new,
        max_rows=load.rows,
        rows_per_prefix=(1,),
        chunk=load.chunk,
        shrink=False,
    )
    sampler = policy.sampler(shapes, mesh)
    requests = []
    for number, prompt in enumerate(load.prompts):
        value = derive(number, "served", 0, 0)
        key = np.array([value >> 32, value & 0xFFFFFFFF], np.uint32)
        requests.append(SampleRequest(np.asarray(prompt, np.int32), number, key, load.new))

    def draw() -> dict[int, Any]:
        found = {}
        for finished in sampler.generate(policy.params, requests, SamplingParams()):
            found.update(finished)
        sampler.release()
        return found

    found = draw()  # compiles
    start = time.perf_counter()
    draw()
    seconds = time.perf_counter() - start
    texts = []
    for number, prompt in enumerate(load.prompts):
        before = policy.tokenizer.decode(prompt)
        texts.append(policy.tokenizer.decode([*prompt, *found[number].ids.tolist()])[len(before) :])
    return texts, len(requests) * load.new / seconds


def running(folder: Path, load: Load) -> contextlib.AbstractContextManager[str]:
    """The address of a server of its own process."""
    engine = {
        "max_model_len": load.max_model_len,
        "max_completion_tokens": load.new,
        "max_rows": load.rows,
        "chunk": load.chunk,
    }
    limits = ["--max_waiting", "4096", "--max_body_bytes", "1000000", "--read_timeout_s", "5"]
    return own_server(str(folder), limits, engine)


async def ask(client: httpx2.AsyncClient, load: Load, number: int, expected: Sequence[str], seen: Seen) -> None:
    """Sends one request and notes what came of it. expected: texts of the distinct requests, () for any."""
    start, text, tokens, first = time.perf_counter(), "", 0, None
    try:
        async with client.stream("POST", _PATH, json=load.body(number)) as response:
            if response.status_code != 200:
                seen.failed[str(response.status_code)] += 1
                return
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    seen.failed["error"] += 1
                    return
                for choice in event["choices"]:
                    first = first or (time.perf_counter() if choice["text"] else None)
                    text += choice["text"]
                tokens = event.get("usage", {}).get("completion_tokens", tokens)
    except httpx2.HTTPError as error:
        seen.failed[type(error).__name__] += 1
        return
    seen.first_token_s.append((first or time.perf_counter()) - start)
    seen.tokens += tokens
    seen.texts[number % len(load.prompts)] = text
    if tokens == load.new and (not expected or text == expected[number % len(expected)]):
        seen.right += 1
    else:
        seen.wrong += 1


async def crowd(url: str, load: Load, expected: Sequence[str], requests: int, streams: int) -> Seen:
    """Sends all requests over so many streams at a time."""
    seen, numbers = Seen(), iter(range(requests))
    limits = httpx2.Limits(max_connections=streams, max_keepalive_connections=streams)

    async def one(client: httpx2.AsyncClient) -> None:
        for number in numbers:
            await ask(client, load, number, expected, seen)

    async with httpx2.AsyncClient(base_url=url, timeout=_TIMEOUT_S, limits=limits) as client:
        start = time.perf_counter()
        await asyncio.gather(*(one(client) for _ in range(streams)))
        seen.seconds = time.perf_counter() - start
    return seen


async def rude(url: str, load: Load, rounds: int, streams: int) -> Counter[str]:
    """Misbehaves in every way a few times, and returns what the server answered."""
    answers: Counter[str] = Counter()
    host, port = url.removeprefix("http://").split(":")
    head = f"POST {_PATH} HTTP/1.1\r\nHost: x\r\n".encode()

    async def raw(kind: str, sent: bytes, patience_s: float) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(sent)
            await writer.drain()
            line = await asyncio.wait_for(reader.readline(), patience_s)
            answers[f"{kind}: {line.decode(errors='replace')[9:12] or 'closed'}"] += 1
        except (TimeoutError, OSError) as error:
            answers[f"{kind}: {type(error).__name__}"] += 1
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def leave(client: httpx2.AsyncClient) -> None:
        async with client.stream("POST", _PATH, json={**load.body(0), "n": 8}) as response:
            async for _ in response.aiter_lines():
                break
        answers[f"left: {response.status_code}"] += 1

    async def read_nothing() -> None:
        body = json.dumps({**load.body(0), "n": 8}).encode()
        sent = head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
        _, writer = await asyncio.open_connection(host, int(port), limit=64)
        writer.write(sent)
        await asyncio.sleep(3)
        writer.close()
        answers["read nothing: done"] += 1

    async with httpx2.AsyncClient(base_url=url, timeout=_TIMEOUT_S, limits=httpx2.Limits(max_connections=16)) as client:
        for _ in range(rounds):
            broken = b'{"prompt": ['
            jobs = [
                raw("bad JSON", head + f"Content-Length: {len(broken)}\r\n\r\n".encode() + broken, 60),
                raw("no HTTP", b"\x00\xff" * 200 + b"\r\n\r\n", 60),
                raw("huge body", head + b"Content-Length: 3000000\r\n\r\n" + b" " * 3_000_000, 60),
                raw("slow body", head + b"Content-Length: 50\r\n\r\n{", 60),
                read_nothing(),
                *(leave(client) for _ in range(4)),
            ]
            await asyncio.gather(*jobs)
    flood = await crowd(url, load, [""], 10 * streams, 10 * streams)
    answers["flood: answered"] = flood.right + flood.wrong
    for kind, count in flood.failed.items():
        answers[f"flood: {kind}"] = count
    return answers


async def with_rude_company(
    url: str, load: Load, expected: Sequence[str], requests: int, streams: int, rounds: int
) -> tuple[Seen, Counter[str]]:
    """The load again, while others misbehave."""
    seen, answers = await asyncio.gather(
        crowd(url, load, expected, requests, streams), rude(url, load, rounds, streams)
    )
    return seen, answers


def measure(size: Size, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of one size."""
    prompts = random_prompts(options.distinct, options.prompt_tokens, size.config.vocab_size, seed=0)
    load = Load(prompts, options.new_tokens, options.rows or size.rows, options.chunk)
    with tempfile.TemporaryDirectory() as scratch:
        folder = export(Path(scratch) / "model", size.config)
        drawn, speed = bare(folder, load)
        print(f"bare sampler: {speed:,.0f} tokens/s", flush=True)
        with running(folder, load) as url, asyncio.Runner() as runner:
            alone = runner.run(crowd(url, load, (), len(prompts), 1))
            expected = [alone.texts[number] for number in range(len(prompts))]
            print(f"alone: {alone.figures()}", flush=True)
            seen = runner.run(crowd(url, load, expected, options.requests, options.streams))
            print(seen.figures(), flush=True)
            company, answers = runner.run(
                with_rude_company(url, load, expected, options.requests // 4, options.streams, options.rounds)
            )
            print(company.figures(), dict(answers), flush=True)
            after = runner.run(_counters(url))
    return {
        "parameters": parameters(size.config),
        "load": {**dataclasses.asdict(load), "prompts": len(prompts), "prompt_tokens": options.prompt_tokens},
        "bare_tokens_per_s": speed,
        "unlike_the_bare_sampler": sum(one != other for one, other in zip(expected, drawn, strict=True)),
        "alone": alone.figures(),
        "streams": options.streams,
        "served": seen.figures(),
        "served_over_bare": seen.figures()["tokens_per_s"] / speed,
        "with_rude_clients": company.figures(),
        "rude_clients_were_told": dict(answers),
        "left_in_flight": after["in_flight"],
    }


async def _counters(url: str) -> dict[str, Any]:
    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        while True:
            counters = (await client.get("/counters")).json()
            if not counters["in_flight"] and not counters["engine/live"] and not counters["engine/waiting"]:
                return counters
            await asyncio.sleep(0.2)


def _table(results: dict[str, Any]) -> str:
    lines = [
        "| size | streams | requests | failed | mixed up | tokens/s | of the bare sampler | first token p50 / p95, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        for label, key in (("", "served"), (", among rude clients", "with_rude_clients")):
            one = found[key]
            ratio = one["tokens_per_s"] / found["bare_tokens_per_s"]
            lines.append(
                f"| {name}{label} | {found['streams']} | {one['requests']} | {sum(one['failed'].values())} | "
                f"{one['wrong']} | {one['tokens_per_s']:,.0f} | {ratio:.2f} | "
                f"{one['first_token_p50_s']:.3f} / {one['first_token_p95_s']:.3f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    parser.add_argument("--size", action="append", choices=list(SIZES), default=[])
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--distinct", type=int, default=256, help="how many different requests there are")
    parser.add_argument("--prompt_tokens", type=int, default=32)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--rows", type=int, default=0, help="rows decoded together; 0 = those of the size")
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3, help="how often each rude client comes")
    options = parser.parse_args()
    results = {name: measure(SIZES[name], options) for name in options.size or ["tiny"]}
    write_results(options.output, "serve_load", {"machine": machine(), "sizes": results}, _table(results))
    print(_table(results))


if __name__ == "__main__":
    main()
