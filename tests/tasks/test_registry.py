"""Tasks by name: unknown names and options get help, sources demand what they need, packages can add tasks."""

from __future__ import annotations

import os
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from ditto_jax.errors import ConfigError, MissingInputError
from ditto_jax.tasks import registry
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.paratomi.task import ParaToMi
from ditto_jax.tasks.released import unusable
from ditto_jax.types import Conversation


class OtherTask(ParaToMi):
    name = "other"


def test_built_in_tasks_are_found_by_name():
    assert registry.task_names()[:2] == ("hitom", "paratomi")
    for name in ("hitom", "paratomi"):
        assert registry.get_task(name).name == name


def test_an_unknown_name_names_the_nearest_and_all_known_tasks():
    with pytest.raises(ConfigError, match=r"'hitm' is unknown; did you mean 'hitom'\? known tasks: hitom, paratomi"):
        registry.get_task("hitm")


@pytest.mark.parametrize(
    "name",
    [
        *("social_r1", "behavior_chain", "sim_arena_math", "sim_arena_doc", "humanual", "alignx", "socsci210"),
        *(f"humanual-{part}" for part in ("book", "chat", "email", "news", "opinion", "politics")),
        *(f"alignx_{part}" for part in ("demo", "pair", "ugc", "arbitrary", "history16")),
        *("humanllm", "behaviorchain", "sim_math", "sim_doc", "humanual_book", "humanual_politics"),  # launchers' names
    ],
)
def test_tasks_beyond_the_ten_are_known_names_and_not_yet_here(name: str):
    with pytest.raises(ConfigError, match=f"task '{name}' is known but not yet here; known tasks: hitom, paratomi"):
        registry.get_task(name)
    assert "known but not yet a task of this suite; usable: fantom, hitom" in unusable(name)


def test_an_unknown_option_names_the_nearest_known_one():
    with pytest.raises(ConfigError, match="tasks.hitom.options.order: unknown key; did you mean 'orders'"):
        registry.get_task("hitom", {"order": [1]})


def test_an_option_of_the_wrong_type_is_named():
    with pytest.raises(ConfigError, match="tasks.hitom.options.noise"):
        registry.get_task("hitom", {"noise": "much"})


def test_a_package_can_add_a_task(monkeypatch: pytest.MonkeyPatch):
    added = EntryPoints(
        [
            EntryPoint("other", f"{__name__}:OtherTask", registry.GROUP),
            EntryPoint("broken", f"{__name__}:registry", registry.GROUP),
            EntryPoint("hitom", f"{__name__}:OtherTask", registry.GROUP),
        ]
    )
    monkeypatch.setattr(registry, "entry_points", lambda group: added.select(group=group))
    assert registry.task_names() == (*registry.built_in_names(), "broken", "other")
    assert registry.get_task("other").name == "other"
    assert registry.get_task("hitom").name == "hitom"  # a package cannot replace a built-in task
    with pytest.raises(ConfigError, match="subclass of Task"):
        registry.get_task("broken")


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        (Source(limit=None), ConfigError, "limit"),
        (Source(limit=0), ConfigError, "limit=0"),
        (Source(kind="files"), ConfigError, "path"),
        (Source(kind="parquet"), ConfigError, "path"),
        (Source(kind="web"), ConfigError, "generated, files or parquet"),
        (Source(kind="files", path=Path("no/such/file.json")), MissingInputError, "no/such/file.json"),
        (Source(limit=3, split="dev"), ConfigError, "split='dev'"),
    ],
)
@pytest.mark.parametrize("name", ["hitom", "paratomi"])
def test_a_source_that_cannot_work_says_what_to_set(name: str, source: Source, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        registry.get_task(name).load(source)


@pytest.mark.parametrize("name", ["hitom", "paratomi"])
def test_public_files_are_read_through_the_task(name: str):
    folder = os.environ.get("SOUL_DATA_DIR")
    if not folder or not (Path(folder) / name).exists():
        pytest.skip(f"needs public files: set SOUL_DATA_DIR to the folder that holds {name}/")
    task = registry.get_task(name)
    examples = task.load(Source(kind="files", path=Path(folder) / name, split="test", limit=50))
    assert len(examples) == 50
    replies = [task.demonstration(example) for example in examples]  # None where a label contradicts its story
    shown = [(example, reply) for example, reply in zip(examples, replies, strict=True) if reply]
    assert len(shown) > 35
    for example, reply in shown:
        verdict = task.rule_score(example, Conversation((), reply))
        assert example.task == name and verdict is not None and verdict.score == 1
