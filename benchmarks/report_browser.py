"""How fast is the report in a browser: first paint, the time a filter takes, and the time one rollout takes to open?

`python -m benchmarks.report_browser` writes made-up runs of a given number of rollouts, their report as one file and as
a served page, and measures in headless Chromium (extra `browser`, and a Chromium of the system). Every figure is the
median of several loads with the slowest beside it. Reads no run of anybody and measures no training.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import machine, versions, write_results
from ditto_jax.report.page import write_report
from ditto_jax.report.server import running_report
from ditto_jax.runs.run_dir import RunDirectory

_PROMPTS = 32
_SAMPLES = 4
_WORDS = [
    f"{first}{last}" for first in ("ba", "ko", "li", "mur", "ne", "tos", "ve") for last in ("do", "ra", "shi", "ten")
]

_PAINT = "performance.getEntriesByType('paint').find((entry) => entry.name === 'first-contentful-paint').startTime"
_FILTER = """async ([name, value]) => {
  const field = document.querySelector(`#rollout-filters [name=${name}]`);
  const browser = document.getElementById("rollout-browser");
  const started = performance.now();
  field.value = value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  while (browser.hasAttribute("aria-busy")) await new Promise((done) => setTimeout(done, 1));
  document.getElementById("rollout-table").getBoundingClientRect();
  return performance.now() - started;
}"""
_FILTERS = (
    ("task", "1"),
    ("change", "rose"),
    ("step_low", "3"),
    ("reward_high", "0.5"),
    ("scene", "scene-7"),
    ("change", ""),
)


def made_up_run(folder: Path, rollouts: int, characters: int, seed: int = 0) -> Path:
    """Returns a run directory with about `rollouts` rollouts, half of them refined, of `characters` of text each."""
    chance = random.Random(seed)
    run = RunDirectory(folder)
    for path in (run.path, run.rollouts, run.evaluations):
        path.mkdir(parents=True, exist_ok=True)
    a_step = 2 * _PROMPTS * _SAMPLES
    steps = max(1, round(rollouts / a_step))
    for step in range(1, steps + 1):
        progress = step / steps
        run.append_metrics(
            {
                "step": step,
                "reward": 0.3 + 0.4 * progress,
                "feedback/with_feedback_reward": 0.6 + 0.2 * progress,
                "feedback/revised_reward": 0.55 + 0.2 * progress,
                "feedback/gate_rate": 0.8 - 0.4 * progress,
                "time/step_s": 10.0,
                "time/draft_s": 4.0,
                "time/update_s": 5.0,
                "tokens_per_s": 5000.0,
            }
        )
        rows = [row for prompt in range(_PROMPTS) for row in _rows(chance, step, prompt, characters)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        run.rollout_file(step).write_bytes(gzip.compress(text.encode(), 1))
    run.set_status("finished", steps, 0)
    return folder


def _text(chance: random.Random, characters: int) -> str:
    return " ".join(chance.choices(_WORDS, k=characters // 6))


def _rows(chance: random.Random, step: int, prompt: int, characters: int) -> Iterator[dict[str, Any]]:
    asked = _text(chance, characters // 2)
    for sample in range(_SAMPLES):
        draft = _text(chance, characters // 2)
        words, kept = draft.split(" "), chance.random()
        refined = " ".join(word if chance.random() < kept else chance.choice(_WORDS) for word in words)
        common = {
            "step": step,
            "prompt_id": f"task{prompt % 10}/scene-{(step * _PROMPTS + prompt) % 997}",
            "prompt_index": prompt,
            "sample": sample,
            "task": f"task{prompt % 10}",
            "prompt": [{"role": "user", "content": asked}],
            "outcome": "ok" if chance.random() < 0.99 else "timed_out",
            "judge": "made up",
            "dimensions": {"goal": chance.random(), "believability": chance.random()},
            "truncated": chance.random() < 0.05,
        }
        told = {"text": _text(chance, 200), "outcome": "ok", "judge": "made up"}
        yield {**common, "role": "draft", "reply": draft, "score": chance.random(), "feedback": told}
        used = {"used_feedback": told["text"], "score": chance.random()}
        yield {**common, "role": "refined", "reply": refined, "advantage": {"refined_plain": 0.3}, **used}


@contextlib.contextmanager
def _browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        try:
            yield browser
        finally:
            browser.close()


def measure(browser: Any, address: str, loads: int) -> dict[str, Any]:
    """Returns milliseconds: first paint, until the rollouts can be filtered, each filter, and opening one item."""
    figures: dict[str, list[float]] = {"first_paint_ms": [], "ready_ms": [], "filter_ms": [], "open_item_ms": []}
    for _ in range(loads):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        started = time.perf_counter()
        page.goto(address, wait_until="commit", timeout=300_000)
        page.wait_for_selector("#rollout-browser[data-ready]:not([aria-busy])", timeout=300_000)
        figures["ready_ms"].append(1000 * (time.perf_counter() - started))
        figures["first_paint_ms"].append(page.evaluate(_PAINT))
        figures["filter_ms"] += [page.evaluate(_FILTER, list(field)) for field in _FILTERS]
        started = time.perf_counter()
        page.evaluate("document.querySelector('#rollout-table .tabulator-row a').click()")
        page.wait_for_selector("#rollout-title", timeout=300_000)
        figures["open_item_ms"].append(1000 * (time.perf_counter() - started))
        page.close()
    return {name: _summary(values) for name, values in figures.items()}


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "slowest": max(values), "n": len(values)}


def main() -> None:
    """Measures both ways of reading a report, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, nargs="*", default=[10_000], help="sizes of the report in one file")
    parser.add_argument("--served", type=int, nargs="*", default=[], help="sizes of the served report, such as 123000")
    parser.add_argument("--characters", type=int, default=4000, help="of text in one rollout")
    parser.add_argument("--loads", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, _browser() as browser:
        for size in arguments.rollouts:
            run = made_up_run(Path(folder) / f"file-{size}", size, arguments.characters)
            started = time.perf_counter()
            page = write_report([run])
            about = {"way": "file", "rollouts": size, "write_s": time.perf_counter() - started}
            about["megabytes"] = page.stat().st_size / 1e6
            results.append({**about, **measure(browser, page.as_uri(), arguments.loads)})
            shutil.rmtree(run)
        for size in arguments.served:
            run = made_up_run(Path(folder) / f"served-{size}", size, arguments.characters)
            with running_report([run]) as address:
                results.append({"way": "served", "rollouts": size, **measure(browser, address, arguments.loads)})
            shutil.rmtree(run)
    text = _table(results)
    written = {
        "machine": machine(),
        "versions": {**versions("playwright"), "chromium": browser.version},
        "characters": arguments.characters,
        "results": results,
    }
    write_results(arguments.output, "report_browser", written, text)
    print(text)


def _table(results: Sequence[dict[str, Any]]) -> str:
    names = ("first_paint_ms", "ready_ms", "filter_ms", "open_item_ms")
    lines = [
        f"| report | rollouts | {' | '.join(name.replace('_', ' ') for name in names)} |",
        "|---|---|" + "---|" * 4,
    ]
    for result in results:
        cells = [f"{result[name]['median']:,.0f} (slowest {result[name]['slowest']:,.0f})" for name in names]
        lines.append(f"| {result['way']} | {result['rollouts']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
