"""A person as judge: questions wait until they are answered, declined, or nobody waits for them any more."""

from __future__ import annotations

import concurrent.futures
import json
import threading
import time

import httpx2
import pytest

from ditto_jax.judge.person.questions import Questions
from ditto_jax.judge.person.site import person_app
from ditto_jax.types import Outcome
from launch.cli import main
from tests.graded_task import graded_task
from tests.judge.quiz import DRAFT, ask, make_openai_judge
from tests.listening import listening_app
from tests.runs.test_loop_http import judged_by, judged_run
from tests.tiny_run import contents, train_quietly

WORDS = "Who was in the room when it was moved?"


@pytest.fixture
def page():
    with listening_app(person_app(Questions())) as url, httpx2.Client(base_url=url, timeout=60) as client:
        yield client


def waiting(page, count=1):
    """The questions that the page shows, once there are `count`."""
    give_up = time.monotonic() + 60
    while len(shown := page.get("/waiting.json").json()["waiting"]) != count:
        assert time.monotonic() < give_up, shown
        time.sleep(0.02)
    return shown


def answers(page, number, text, declined=False):
    return page.post(f"/answers/{number}", json={"text": text, "declined": declined})


def asked_for_words(page, act):
    """What the judge makes of what `act` does while the question about a draft waits."""
    with concurrent.futures.ThreadPoolExecutor() as threads:
        url = str(page.base_url).rstrip("/") + "/v1"
        judge = make_openai_judge(url, model="person", timeout_s=60, max_retries=0, unparsable_retries=0)
        words = threads.submit(ask, judge)
        act(waiting(page)[0])
        return words.result()[0]


def test_a_question_shows_what_was_asked_and_its_answer_becomes_the_words(page):
    seen = {}

    def act(question):
        seen.update(question)
        assert answers(page, question["number"], json.dumps({"feedback": WORDS})).status_code == 200

    words = asked_for_words(page, act)
    assert (words.outcome, words.text) == (Outcome.OK, WORDS) and words.judge.startswith("openai:person@")
    text = "".join(message["text"] for message in seen["messages"])
    assert DRAFT.reply in text and "JSON schema" not in text
    assert set(seen["schema"]["properties"]) == {"feedback"}
    assert page.get("/waiting.json").json() == {"waiting": [], "answered": 1}


def test_declining_is_a_refusal_and_an_answer_of_another_form_is_unparsable(page):
    declined = asked_for_words(page, lambda q: answers(page, q["number"], "I cannot tell", declined=True))
    assert (declined.outcome, declined.text) == (Outcome.REFUSED, None) and "I cannot tell" in declined.detail
    garbled = asked_for_words(page, lambda q: answers(page, q["number"], "just words"))
    assert (garbled.outcome, garbled.text) == (Outcome.UNPARSABLE, None)


def test_the_check_before_a_run_asks_nobody(page):
    body = {"model": "person", "messages": [{"role": "user", "content": "Are you there?"}], "max_tokens": 1}
    assert page.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"] == "{}"


def test_a_question_whose_sender_has_gone_leaves_the_page_and_takes_no_answer(page):
    body = {"model": "person", "messages": [{"role": "user", "content": "Is anybody there?"}]}
    with pytest.raises(httpx2.TimeoutException):
        page.post("/v1/chat/completions", json=body, timeout=0.5)
    waiting(page, 0)
    assert answers(page, 1, "here I am").status_code == 410


def test_questions_are_answered_in_any_order_and_each_gets_its_own_answer(page):
    def ask(name):
        body = {"model": "person", "messages": [{"role": "user", "content": name}]}
        return page.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        asked = {name: threads.submit(ask, name) for name in "abcdefgh"}
        for question in reversed(waiting(page, 8)):
            answers(page, question["number"], f"to {question['messages'][0]['text']}")
        assert {name: reply.result() for name, reply in asked.items()} == {name: f"to {name}" for name in "abcdefgh"}


def test_other_sites_and_odd_requests_are_refused(page):
    assert page.get("/waiting.json", headers={"Host": "rebound.example"}).status_code == 400
    form = page.post("/answers/1", content=b'{"text": "x"}', headers={"Content-Type": "text/plain"})
    assert form.status_code == 415 and "application/json" in form.json()["error"]["message"]
    assert "messages" in page.post("/v1/chat/completions", json={"messages": []}).json()["error"]["message"]
    assert page.post("/answers/1", json={"text": "x" * 5_000_000}).status_code == 413
    assert "default-src 'none'" in page.get("/").headers["Content-Security-Policy"]


def test_a_run_goes_on_with_what_a_person_says(page, policy_folder, tmp_path):
    """Every draft and refined rollout is graded by hand, every draft gets the person's words."""
    ended = threading.Event()

    def person():
        while not ended.is_set():
            for question in page.get("/waiting.json").json()["waiting"]:
                fields = question["schema"]["properties"]
                reply = {"grade": 3} if "grade" in fields else {"feedback": WORDS}
                answers(page, question["number"], json.dumps(reply))
            time.sleep(0.05)

    url = str(page.base_url).rstrip("/") + "/v1"
    judge = judged_by(url, model="person", timeout_s=120.0, max_concurrent=64)
    config = judged_run(policy_folder, tmp_path, judge, steps=1, tasks=(graded_task(),))
    with concurrent.futures.ThreadPoolExecutor() as threads:
        at_work = threads.submit(person)
        try:
            run = train_quietly(config)
        finally:
            ended.set()
        at_work.result()
    (rows,) = contents(run).values()
    assert {row["score"] for row in rows} == {0.3}
    refined = [row for row in rows if row["role"] == "refined"]
    assert refined and all(WORDS in json.dumps(row["prompt"]) for row in refined)


def test_a_port_that_is_taken_is_said(page, capsys):
    assert main(["judge", "--human", "--port", str(page.base_url.port)]) == 2
    assert "--port 0 takes a free one" in capsys.readouterr().err
