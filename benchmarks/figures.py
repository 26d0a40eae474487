"""Rounds → figures: median and spread, ratios round by round, the machine they belong to, and one table.

In: one number per peer and round. Out: dictionaries for the JSON file and Markdown for people. A ratio is taken
within each round, where both peers met the same machine, and summarised afterwards. Measures nothing.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Returns median, lowest and highest of the values, and the values."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "values": list(values)}


def compare(rounds: Sequence[Mapping[str, float]], ours: str = "ours") -> dict[str, Any]:
    """Returns {"peers": name → spread, "ratios": other → spread of ours / other}; larger numbers must be better."""
    names = list(rounds[0])
    peers = {name: spread([r[name] for r in rounds]) for name in names}
    ratios = {n: spread([r[ours] / r[n] for r in rounds]) for n in names if n != ours} if ours in names else {}
    return {"peers": peers, "ratios": ratios}


def circumstances(
    rounds: Sequence[Mapping[str, Mapping[str, Any]]], first: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns what a reader needs beside the speeds: what the first call took beyond a usual one (compilation), the
    processor seconds of a call, and the load of the machine in each round.
    """
    usual = {name: statistics.median(r[name]["seconds"] for r in rounds) for name in rounds[0]}
    return {
        "first_call_extra_s": {name: first[name]["seconds"] - usual[name] for name in usual if name in first},
        "cpu_s": {name: spread([r[name]["cpu_s"] for r in rounds]) for name in usual},
        "load": [max(answer["load"] for answer in r.values()) for r in rounds],
    }


def text_of(figure: Mapping[str, Any] | None, digits: int) -> str:
    """Returns "median (low-high)" with a thousands separator; empty where nothing was measured."""
    if figure is None:
        return ""
    median, low, high = (f"{figure[key]:,.{digits}f}" for key in ("median", "low", "high"))
    return f"{median} ({low}–{high})"


def table(rows: Mapping[str, Mapping[str, Any]], digits: int, ours: str = "ours") -> str:
    """Returns Markdown: a line per comparison (as from `compare`), a column per peer and one per ratio."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row["peers"]))
    others = [name for name in names if name != ours and any(name in row["ratios"] for row in rows.values())]
    header = ["", *names, *(f"{ours} / {name}" for name in others)]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for label, row in rows.items():
        cells = [text_of(row["peers"].get(name), digits) for name in names]
        cells += [text_of(row["ratios"].get(name), 2) for name in others]
        lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Returns processor, cores that may be used, memory in GiB, system and the load at this moment."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    return {
        "processor": model if model != "unknown" else platform.processor() or platform.machine(),
        "cores": cores,
        "memory_gib": memory and round(memory, 1),
        "system": platform.platform(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of Python and of those packages that this interpreter has."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_results(folder: Path, name: str, results: Mapping[str, Any], text: str) -> None:
    """Writes <name>.json and <name>.md into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text + "\n")
