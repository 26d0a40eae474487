"""A run → what an export says about itself: its card, and how replies are drawn and end.

In: the run's settings, its evaluations, what was exported. Out: the texts of README.md and generation_config.json.
Measures nothing: a run that was not evaluated says so.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from ditto_jax.config import RunConfig, TaskConfig
from ditto_jax.evaluation.evaluate import read_evaluations
from ditto_jax.evaluation.table import as_markdown, table_rows
from ditto_jax.policy import Policy
from ditto_jax.runs.run_dir import RunDirectory, environment

CARD, GENERATION = "README.md", "generation_config.json"

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("ditto_jax"), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
)
# Of the public files of a task, where their source states one; DATA_LICENSES.md says more.
_LICENCES: Mapping[str, str] = {"paratomi": "CC BY-NC 4.0", "hitom": "Apache-2.0"}


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written: contents in words, the library that reads it, the folder's name and the step it is of."""

    name: str
    contents: str
    library: str
    step: int
    has_adapters: bool


def card(run: RunDirectory, config: RunConfig, policy: Policy, exported: Exported) -> str:
    """Returns the model card as Markdown with its header."""
    records = _newest(read_evaluations(run), exported.step)
    steps = sorted({record["step"] for record in records})
    return _TEMPLATES.get_template("export_card.md.j2").render(
        name=exported.name,
        library=exported.library,
        base=config.model_name_or_path,
        contents=exported.contents,
        step=exported.step,
        tasks=[_task(task) for task in config.tasks],
        judge=config.judge.kind if config.judge.kind == "rules" else f"openai:{config.judge.model}",
        lora=config.lora if exported.has_adapters else None,
        evaluations=as_markdown(table_rows(records, {})).rstrip() if records else "",
        measured=", ".join(f"step {step}" for step in steps),
        served=str(run.path) if exported.has_adapters else "FOLDER",
        ends=" or ".join(f"token {token}" for token in _stop_ids(policy)) or "the end of the text",
        command=_command(run),
        packages=environment()["packages"],
    )


def generation_config(policy: Policy, config: RunConfig) -> str:
    """Returns the settings with which transformers and vLLM draw replies, unless told otherwise, as JSON."""
    values = {
        "bos_token_id": policy.tokenizer.bos_id,
        "eos_token_id": _stop_ids(policy),
        "do_sample": True,
        "temperature": config.evaluation.temperature or 1.0,
    }
    return json.dumps({name: value for name, value in values.items() if value is not None}, indent=2) + "\n"


def _stop_ids(policy: Policy) -> list[int]:
    return list(dict.fromkeys((*policy.chat_format.stop_ids, *policy.config.eos_token_ids)))


def _newest(records: Sequence[Mapping[str, Any]], step: int) -> list[Mapping[str, Any]]:
    """Returns the newest record of each label that is not of a later step than what is exported."""
    newest = {record["label"]: record for record in records if record["step"] <= step}  # in the order of steps
    return list(newest.values())


def _task(task: TaskConfig) -> dict[str, str]:
    source = task.source
    if source.kind == "generated":
        return {"label": task.known_as, "rows": "made by this project's generators", "licence": "none needed"}
    unknown = "that of the repository the files were taken from"
    licence = _LICENCES.get(task.name, unknown) if source.kind == "files" else unknown
    return {"label": task.known_as, "rows": f"public {source.kind}, {source.split} split", "licence": licence}


def _command(run: RunDirectory) -> str:
    file = run.path / "cli.txt"
    return file.read_text(encoding="utf-8").strip() if file.is_file() else "ditto-jax train"
