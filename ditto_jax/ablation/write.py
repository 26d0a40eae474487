"""The end of `ditto-jax ablate`: finished runs → results.json, a picture, a Markdown page, tables for the terminal.

The same finished runs always give the same files. Trains nothing; may be called while runs are still missing.
"""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from ditto_jax.ablation.curves import read_curve
from ditto_jax.ablation.pictures import picture
from ditto_jax.ablation.plan import Plan
from ditto_jax.ablation.summary import summarise
from ditto_jax.ablation.tables import markdown, print_results
from ditto_jax.ablation.work import is_finished
from ditto_jax.config_io import to_yaml
from ditto_jax.runs.run_dir import environment, write_atomically

_PICTURE = "ablation.svg"


def write_results(plan: Plan, console: Console) -> Path:
    """Returns the folder with results.json, ablation.svg, ablation.md and the configuration; prints the tables."""
    curves = [read_curve(run, plan.config.score) for run in plan.runs if is_finished(run)]
    results = summarise(plan, curves, environment())
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(plan.folder / "config.yaml", to_yaml(plan.config))
    write_atomically(plan.folder / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    write_atomically(plan.folder / _PICTURE, picture(results))
    write_atomically(plan.folder / "ablation.md", markdown(results, _PICTURE))
    print_results(results, console)
    return plan.folder
