"""The person's page in a real browser: a run waits for what is typed there, and goes on with it."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ditto_jax.config import RolloutConfig
from ditto_jax.config_io import to_yaml
from ditto_jax.judge.person.questions import Answered, Asked, Questions
from ditto_jax.judge.person.site import person_app
from ditto_jax.runs.run_dir import RunDirectory
from tests.browser import opened, running_browser, until
from tests.graded_task import graded_task
from tests.listening import listening_app
from tests.report_runs import HOSTILE
from tests.runs.test_loop_http import judged_by, judged_run
from tests.tiny_run import contents

ROOT = Path(__file__).resolve().parents[2]
WORDS = "Who was in the room <b>then</b>?"
SCHEMA = {
    "type": "object",
    "properties": {
        "believability": {"$ref": "#/$defs/Dimension"},
        "kind": {"enum": ["first", "second", "tie"]},
        "notes": {"type": "array", "items": {"type": "string"}},
        "sure": {"type": "boolean"},
        "words": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["believability", "kind"],
    "$defs": {
        "Dimension": {
            "type": "object",
            "properties": {
                "score": {"type": "integer", "minimum": 0, "maximum": 10, "description": "0 is worst"},
                "reasoning": {"type": "string"},
            },
            "required": ["score", "reasoning"],
        }
    },
}


@pytest.fixture(scope="module")
def browser():
    with running_browser() as found:
        yield found


@pytest.fixture
def page(browser):
    with listening_app(person_app(Questions())) as url, opened(browser, f"{url}/") as page:
        page.base = url
        yield page
        assert page.complaints == []


def ask(url: str, text: str) -> str:
    """The reply to a request with SCHEMA, as a judge of several dimensions sends it."""
    import httpx2

    form = {"type": "json_schema", "json_schema": {"name": "Grades", "schema": SCHEMA}}
    body = {"model": "person", "messages": [{"role": "user", "content": text}], "response_format": form}
    reply = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=300).json()["choices"][0]["message"]
    return reply.get("refusal") or reply["content"]


def test_a_form_is_made_of_the_schema_and_hostile_text_stays_text(page):
    with concurrent.futures.ThreadPoolExecutor() as threads:
        reply = threads.submit(ask, page.base, HOSTILE.replace("\ud800", ""))  # half a pair cannot be sent
        page.wait_for_selector("form.question")
        assert page.locator("form.question script, form.question img").count() == 0
        assert "<script>" in page.locator(".said pre").inner_text()
        number, reasons = page.locator("fieldset input[type=number]"), page.locator("fieldset textarea")
        assert page.locator("fieldset legend").inner_text() == "believability"
        assert "0 to 10" in page.locator("fieldset").inner_text()
        number.fill("11")
        reasons.fill("too stiff")
        page.locator("select").select_option(label="tie")
        page.locator("button.send").click()
        assert page.locator("form.question").count() == 1, "the browser itself refuses what is out of range"
        number.fill("7")
        page.get_by_label("notes").fill("one\ntwo\n")
        page.get_by_label("sure").check()
        page.get_by_label("sure").press("Control+Enter")
        expected = {"believability": {"score": 7, "reasoning": "too stiff"}, "kind": "tie", "notes": ["one", "two"]}
        assert json.loads(reply.result()) == {**expected, "sure": True}
        until(page, "document.querySelectorAll('form.question').length === 0")
        until(page, "document.getElementById('state').textContent === 'Nothing is waiting, 1 answered'")


def test_what_was_typed_stays_while_others_come_and_go(page):
    with concurrent.futures.ThreadPoolExecutor() as threads:
        first = threads.submit(ask, page.base, "the first")
        page.wait_for_selector("form.question")
        page.locator("fieldset textarea").fill("half a thought")
        second = threads.submit(ask, page.base, "the second")
        until(page, "document.querySelectorAll('form.question').length === 2")
        page.locator("form.question", has_text="the second").get_by_role("button", name="Decline").click()
        assert second.result() == "the person declined to answer"
        until(page, "document.querySelectorAll('form.question').length === 1")
        assert page.locator("fieldset textarea").input_value() == "half a thought"
        page.locator("form.question").get_by_role("button", name="Decline").click()
        assert first.result() == "the person declined to answer"


def test_a_run_waits_for_a_person_and_goes_on_with_the_words(page, policy_folder, tmp_path):
    judge = judged_by(f"{page.base}/v1", model="person", timeout_s=600.0, max_concurrent=64)
    rollout = RolloutConfig(prompts_per_step=1, num_generations=2, max_completion_length=32)
    config = judged_run(policy_folder, tmp_path, judge, steps=1, tasks=(graded_task(),), rollout=rollout)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "ditto_jax", "train", "--config", str(tmp_path / "run.yaml")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    environment["PYTHONPATH"] = str(ROOT)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            while process.poll() is None:
                question = page.locator("form.question").first
                if question.count():
                    fields = question.locator("input[type=number]")
                    fields.fill("4") if fields.count() else question.locator("textarea").fill(WORDS)
                    question.locator("button.send").click()
                page.wait_for_timeout(100)
        finally:
            process.kill()
        assert process.stdout is not None and process.returncode == 0, process.stdout.read().decode()
    (rows,) = contents(RunDirectory(tmp_path / "tiny")).values()
    assert [row["role"] for row in rows].count("refined") == 2 and {row["score"] for row in rows} == {0.4}
    assert {row["feedback"]["text"] for row in rows if row["role"] == "draft"} == {WORDS}


def test_questions_leave_the_page_when_nobody_waits_for_them(browser):
    questions = Questions()
    asked = Asked.model_validate({"messages": [{"role": "user", "content": "Are you there?"}]})
    assert not questions.answer(1, Answered("too early")) and asked.model == "person"
    with listening_app(person_app(questions)) as url, opened(browser, f"{url}/") as page:
        import httpx2

        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(f"{url}/v1/chat/completions", json=asked.model_dump(exclude_none=True), timeout=2)
        until(page, "document.querySelectorAll('form.question').length === 0")
        assert page.complaints == []
