"""The report as a parser reads it: well-formed, self-contained, running its own scripts alone, honest about gaps."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ditto_jax.errors import MissingInputError, RunDirectoryError
from ditto_jax.report.page import write_report
from ditto_jax.runs.run_dir import RunDirectory
from tests.report_runs import HOSTILE, make_run

_VOID = {"meta", "br", "link", "img", "input", "hr", "base"}
_INLINE = {"a", "bdi", "strong", "span", "code"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; raises AssertionError where tags are not nested."""

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        if tag == "script":
            self.scripts.append((self.elements[-1][1], ""))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()
        if tag not in _INLINE:
            self.text.append(" ")

    def handle_data(self, data):
        if "script" in self._open:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        if "style" in self._open or "script" in self._open:
            return
        self.text.append(data)
        if any(re.fullmatch(r"h[1-6]", tag) for tag in self._open):
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).replace("\u00a0", " ").split())

    @property
    def plots(self) -> list[str]:
        """What each chart says in words."""
        return [a["aria-label"] for a in self.attributes("div") if a.get("class") == "plot"]

    def data(self, name: str) -> Any:
        """The JSON in the script element of this id."""
        return next(json.loads(text) for attributes, text in self.scripts if attributes.get("id") == name)

    @property
    def own(self) -> str:
        """The page without scripts and styles."""
        return re.sub(r"<(script|style)\b.*?</\1>", "", self.source, flags=re.S)

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Page:
    return Page(write_report([make_run(tmp_path_factory.mktemp("runs") / "full")]))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Page:
    name = 'run </title><script>alert(1)</script> $x_1^{$ "quoted"'
    return Page(write_report([make_run(tmp_path_factory.mktemp("runs") / "hostile", name=name, hostile=True)]))


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> Page:
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        make_run(folder / "a", name="with feedback"),
        make_run(folder / "b", name="without", objective="grpo", evaluations=False),
        make_run(folder / "c", steps=1, name="one step"),
    ]
    return Page(write_report(runs))


@pytest.mark.parametrize("name", ["full", "hostile", "several"])
def test_page_is_self_contained_and_runs_nothing_but_its_own_scripts(name, request):
    page = request.getfixturevalue(name)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"img", "iframe", "object", "embed", "link", "base", "foreignobject", "svg", "template"}
    for tag, attributes in page.elements:
        for key, value in attributes.items():
            assert not key.startswith("on"), f"{tag} {key}"
            assert key not in ("src", "action", "srcset", "formaction"), f"{tag} {key}"
            if key in ("href", "xlink:href"):
                assert value.startswith("#"), f"{tag} {key}={value}"
            assert not re.search(r"url\(", value), f"{tag} {key}={value}"
    style = page.source[page.source.index("<style>") : page.source.index("</style>")]
    assert "url(" not in style and "@import" not in style and "http" not in style
    policy = next(a["content"] for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy")
    allowed = dict(part.split(" ", 1) for part in policy.split("; "))
    assert allowed["default-src"] == "'none'" and set(allowed) == {"default-src", "script-src", "style-src"}
    running = [text for attributes, text in page.scripts if "type" not in attributes]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running]
    assert allowed["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]
    assert {a["type"] for a, _ in page.scripts if "type" in a} <= {"application/json", "text/plain"}


@pytest.mark.parametrize("name", ["full", "hostile", "several"])
def test_headings_form_an_outline_and_links_lead_somewhere(name, request):
    page = request.getfixturevalue(name)
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert max(ids.values()) == 1
    links = [attributes["href"][1:] for _, attributes in page.elements if "href" in attributes]
    targets = {link for link in links if not link.startswith("item=")}  # which the rollout browser opens
    targets |= {attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes}
    assert targets <= set(ids)


def test_page_works_in_both_colour_schemes_and_on_a_phone(full):
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in full.attributes("meta")
    style = full.source[: full.source.index("</style>")]
    light, dark = style.split("prefers-color-scheme: dark", 1)
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", style + full.own))
    specs = json.dumps(full.data("chart-specs"))
    used |= {f"--{name}" for name in re.findall(r'"ink:([^"]+)"', specs)}
    for scheme in (light, dark.split("}", 1)[0]):
        assert used <= set(re.findall(r"(--[a-z0-9-]+):", scheme))
    assert not re.search(r"#[0-9a-f]{6}", specs), "a colour that does not follow the scheme"
    assert all(spec["width"] == "container" for spec in full.data("chart-specs").values())


def test_scrolling_regions_can_be_reached_by_keyboard(full):
    regions = [a for _, a in full.elements if "scroll" in a.get("class", "") or a.get("role") == "region"]
    assert regions
    assert all(a.get("tabindex") == "0" and a.get("aria-label") for a in regions)


def test_head_names_run_objective_judge_and_status(full):
    assert full.headings[0] == (1, "quickstart")
    for words in ("Objective ditto", "Judge rules:1, rules:hitom@1", "Status finished at step 40 of 40"):
        assert words in full.words


def test_headlines_are_the_records_numbers(full):
    assert "25.5 % → 67.1 %" in full.words
    assert "56.0 % vs 0.7 %" in full.words
    assert "Mean reward with feedback minus mean reward without, in the first and the last 4 steps" in full.words


def test_change_within_the_intervals_is_not_sold_as_a_rise(full):
    rise, small, _ = re.findall(r"accuracy without feedback went from .*? points\. [^.]*\.", full.words)
    assert "+41.6 points. The intervals do not overlap." in rise
    assert "+5.0 points. The change lies within the intervals" in small


def test_every_evaluation_has_its_chart_by_order(full):
    labels = [label for label in full.plots if label.startswith("Evaluation")]
    assert [label.split()[1] for label in labels] == ["hitom-heldout", "b-tomi", "official-tomi"]
    assert "order 3: before" in labels[0] and "all orders: before 25.5" in labels[0]
    assert "reported, not trained for" in labels[2]


def test_charts_have_alternatives_and_their_data(full):
    drawings = full.plots
    # Evaluations; learning, gap, context gap; time, speed; shares, failed judgements, lengths, entropy.
    assert len(drawings) == 3 + 3 + 2 + 4
    assert all(len(label) > 30 for label in drawings)
    assert full.words.count("Data of “") == len(drawings)
    assert set(full.data("chart-specs")) == {a["id"] for a in full.attributes("div") if a.get("class") == "plot"}
    assert "Taller than the chart: step 1 (9.0 s)" in full.words


def test_every_legend_entry_switches_a_series_of_its_chart(full):
    specs = json.dumps(full.data("chart-specs"))
    buttons = [a for a in full.attributes("button") if a.get("class") == "key"]
    assert buttons and all(a["aria-pressed"] == "true" and f'"s": "{a["data-series"]}"' in specs for a in buttons)


def test_outcomes_say_what_was_masked_and_why(full):
    for words in (
        "Score: given 9,200 of 9,204",
        "Score: out of time 4 of 9,204 (0.04 %) Masked: no reward",
        "Feedback: unreadable reply of the judge 26 of 4,026",
        "Feedback: leaked 5 of 4,026",
        "Rollouts truncated: draft 40 of 120",
    ):
        assert words in full.words
    assert "refused by the judge" not in full.words


def test_examples_show_each_stage_by_the_stated_rule(full):
    examples = [text for _, text in full.headings if text.startswith("Example")]
    assert len(examples) == 4
    assert sum("not raised by feedback" in text for text in examples) == 1
    assert {"hitom", "paratomi"} == {task for text in examples for task in ("hitom", "paratomi") if task in text}
    assert "Nothing was picked by hand." in full.words
    first = full.words[full.words.index("Example 1:") : full.words.index("Example 2:")]
    stages = [
        "Prompt (",
        "Draft red_cupboard",
        "Verdict on the draft: reward 0",
        "The judge’s words Julian was away",
        "Refined reply, with these words in the prompt: reward 1",
        "Advantage: +1.200 as refined_plain",
    ]
    places = [first.index(stage) for stage in stages]
    assert places == sorted(places)


def test_configuration_and_environment_are_kept(full):
    assert "max_steps: 40" in full.words
    assert "packages.jax 0.10.2" in full.words
    assert "ditto-jax train --config configs/quickstart.yaml" in full.words


def test_hostile_text_is_shown_as_text(hostile):
    assert hostile.headings[0][1].startswith("run </title><script>alert(1)</script> $x_1^{$")
    said = hostile.words
    assert '</div></pre><script>alert("owned")</script><img src=https://evil.example/x.png onerror=alert(1)>' in said
    assert "{{ 7 * 7 }} {% raw %} &lt;b&gt; <style>*{display:none}</style>" in said
    assert "␛[31mred␇" in said and "⟨U+202E⟩right-to-left⟨U+202C⟩" in said and "⟨U+D800⟩" in said
    assert "שלום" in said
    hidden = {c for c in HOSTILE if c in "\x1b\x07\u202e\u202c\u200b\ud800"}
    data = "".join(text for attributes, text in hostile.scripts if "type" in attributes)
    assert len(hidden) == 6 and not hidden & set(hostile.own + data)
    assert "<" not in data


def test_long_texts_are_cut_and_say_where_the_rest_is(tmp_path):
    folder = make_run(tmp_path / "run", steps=3)
    run = RunDirectory(folder)
    rows = run.read_rollouts(1)
    for row in rows:
        row["reply"] = "long " * 10_000
    run.write_rollouts(1, rows)
    page = Page(write_report([folder]))
    assert "… 30,000 more characters are in rollouts/step_000001.jsonl.gz." in page.words


def test_run_without_feedback_says_so(tmp_path):
    page = Page(write_report([make_run(tmp_path / "run", steps=8, objective="grpo")]))
    assert "no refined rollouts" in page.words
    assert "There is no scored pair of a draft and its refined rollout to show." in page.words
    titles = [label.split(",")[0] for label in page.plots]
    assert "Learning curves" in titles and "Teacher–student gap" not in titles and "Context gap" not in titles


def test_run_without_evaluation_or_rollouts_says_so(tmp_path):
    page = Page(write_report([make_run(tmp_path / "run", steps=8, evaluations=False, rollouts=False)]))
    assert "no evaluation: accuracy before and after is unknown" in page.words
    assert "no rollouts were written" in page.words
    assert "Accuracy without feedback not measured" in page.words


def test_evaluation_that_is_configured_but_absent_is_named(tmp_path):
    folder = make_run(tmp_path / "run", steps=4)
    for path in (folder / "eval" / "b-tomi").iterdir():
        path.unlink()
    page = Page(write_report([folder]))
    assert "b-tomi: configured but not measured" in page.words


def test_empty_run_gives_a_valid_page(tmp_path):
    (tmp_path / "empty").mkdir()
    page = Page(write_report([tmp_path / "empty"]))
    assert page.headings[0] == (1, "empty")
    assert page.plots == []
    for words in ("no config.yaml", "no metrics: no training step has finished", "no evaluation"):
        assert words in page.words


def test_broken_rows_and_values_leave_the_rest_standing(tmp_path):
    folder = make_run(tmp_path / "run", steps=5, rollouts=False)
    with open(folder / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 6, "reward": NaN, "feedback/revised_reward": null}\n{"step": 7, "rew')
    page = Page(write_report([folder]))
    assert "6 recorded" in page.words
    assert "NaN" not in page.own and "NaN" not in json.dumps(page.data("chart-specs"))


def test_single_step_is_drawn(tmp_path):
    page = Page(write_report([make_run(tmp_path / "run", steps=1)]))
    learning = next(label for label in page.plots if label.startswith("Learning"))
    assert "draft reward (no feedback) 0.7" in learning and "at step 1" in learning


def test_long_run_is_thinned_and_says_so(tmp_path):
    folder = make_run(tmp_path / "run", steps=500, evaluations=False)
    page = Page(write_report([folder]))
    assert "Each point is the mean of up to 3 steps." in page.words
    assert "Truncation: rollouts of 60 of 500 steps." in page.words
    assert len(page.own) < 700_000


def test_several_runs_share_curves_and_keep_their_sections(several):
    assert several.headings[0] == (1, "3 runs compared")
    assert [text for level, text in several.headings if level == 2] == [
        "Overview",
        "with feedback",
        "without",
        "one step",
        "Rollouts",
    ]
    overlay = next(label for label in several.plots if label.startswith("Draft reward"))
    assert all(name in overlay for name in ("with feedback from", "without from", "one step 0.7"))
    refined = next(label for label in several.plots if label.startswith("Reward with feedback"))
    assert "without" not in refined


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [make_run(tmp_path / name, steps=2, rollouts=False) for name in ("a", "b")]
    page = Page(write_report(runs, tmp_path / "page.html"))
    assert [text for level, text in page.headings if level == 2][1:-1] == [str(run) for run in runs]


def test_report_lands_where_it_is_expected(tmp_path):
    runs = [make_run(tmp_path / name, steps=2, evaluations=False) for name in ("a", "b")]
    single = write_report(runs[:1])
    assert single == RunDirectory(runs[0]).report and single.is_file()
    before = single.read_bytes()
    assert write_report(runs) == runs[0] / "report" / "comparison.html"
    assert single.read_bytes() == before
    assert write_report(runs, tmp_path / "deep" / "page.html") == tmp_path / "deep" / "page.html"


def test_same_run_gives_the_same_bytes(tmp_path):
    run = make_run(tmp_path / "run", steps=4, evaluations=False)
    assert (
        write_report([run], tmp_path / "1.html").read_bytes() == write_report([run], tmp_path / "2.html").read_bytes()
    )


def test_output_that_cannot_be_written_is_an_error_with_advice(tmp_path):
    run = make_run(tmp_path / "run", steps=1, rollouts=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="choose another output"):
        write_report([run], tmp_path / "file" / "page.html")


def test_folder_that_does_not_exist_is_an_error_with_advice(tmp_path):
    with pytest.raises(MissingInputError, match="ditto-jax train"):
        write_report([tmp_path / "absent"])
    with pytest.raises(MissingInputError, match="at least one"):
        write_report([])
