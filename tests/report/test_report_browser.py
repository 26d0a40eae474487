"""The report in a real browser: every view opens, filters filter, nothing complains, and text stays text."""

from __future__ import annotations

from pathlib import Path

import pytest

from ditto_jax.report.page import write_report
from ditto_jax.report.rollout_browser import embedded_rollouts
from ditto_jax.report.server import running_report
from ditto_jax.runs.run_dir import RunDirectory
from tests.browser import opened, running_browser, scroll_through, until
from tests.report_runs import HOSTILE, make_run

_STEPS = 40
_READY = "#rollout-browser[data-ready]:not([aria-busy])"
_DRAWN = (
    "[...document.querySelectorAll('.plot')]"
    ".map((plot) => [plot.dataset.drawn, plot.querySelectorAll('svg path, svg line').length])"
)
_SETTLED = "#rollout-browser:not([aria-busy])"


@pytest.fixture(scope="module")
def browser():
    with running_browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    """Addresses of three reports: one run, one with hostile text everywhere, three runs."""
    folder = tmp_path_factory.mktemp("runs")
    name = 'run </title><script>alert(1)</script> $x_1^{$ "quoted"'
    runs = {
        "full": [make_run(folder / "full", _STEPS)],
        "hostile": [make_run(folder / "hostile", 6, name=name, hostile=True)],
        "several": [
            make_run(folder / "a", 30, name="a"),
            make_run(folder / "b", 30, name="b"),
            make_run(folder / "c", 8, name="c", objective="grpo", evaluations=False),
        ],
    }
    return {key: write_report(paths, folder / f"{key}.html").as_uri() for key, paths in runs.items()}


@pytest.fixture
def full(browser, pages):
    with opened(browser, pages["full"]) as page:
        page.wait_for_selector(_READY)
        yield page
        assert page.complaints == []


@pytest.mark.parametrize("name", ["full", "hostile", "several"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_part_opens_without_a_complaint_at_any_width(browser, pages, name, width, scheme):
    with opened(browser, pages[name], width, scheme) as page:
        page.wait_for_selector(_READY)
        page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        scroll_through(page)
        drawn = page.evaluate(_DRAWN)
        assert len(drawn) > 8 and all(colours == scheme and marks for colours, marks in drawn)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.complaints == []


def test_colours_follow_the_scheme_of_the_system(full):
    full.locator("#run-1-rewards").scroll_into_view_if_needed()
    full.wait_for_selector("#run-1-rewards[data-drawn=light] svg")
    before = full.inner_html("#run-1-rewards")
    full.emulate_media(color_scheme="dark")
    full.wait_for_selector("#run-1-rewards[data-drawn=dark] svg")
    assert "#6db3ff" in full.inner_html("#run-1-rewards") and "#6db3ff" not in before


def test_pointing_at_a_chart_shows_its_values(full):
    plot = full.locator("#run-1-rewards")
    plot.scroll_into_view_if_needed()
    full.wait_for_selector("#run-1-rewards[data-drawn] svg")
    box = plot.bounding_box()
    full.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.45)
    full.mouse.move(box["x"] + box["width"] * 0.52, box["y"] + box["height"] * 0.45)
    full.wait_for_selector("#vg-tooltip-element.visible")
    shown = full.inner_text("#vg-tooltip-element")
    assert "draft reward (no feedback)" in shown and "step" in shown


def test_legend_switches_a_series_off_and_on_by_keyboard(full):
    full.locator("#run-1-gap").scroll_into_view_if_needed()
    full.wait_for_selector("#run-1-gap[data-drawn] svg")
    drawn = "document.querySelectorAll('#run-1-gap path[stroke-width=\"2.2\"]').length"
    assert full.evaluate(drawn) == 2
    key = full.locator("figure:has(#run-1-gap) .key").first
    key.focus()
    full.keyboard.press("Space")
    until(full, f"{drawn} === 1")
    assert key.get_attribute("aria-pressed") == "false"
    full.keyboard.press("Enter")
    until(full, f"{drawn} === 2")


def _count(page) -> int:
    return int(page.inner_text("#rollout-count").split()[0].replace(",", ""))


def _set(page, name: str, value: str) -> None:
    field = page.locator(f"#rollout-filters [name={name}]")
    if field.evaluate("(element) => element.tagName") == "SELECT":
        field.select_option(label=value)
    else:
        field.fill(value)
    page.wait_for_selector(_SETTLED)


@pytest.fixture(scope="module")
def columns(pages) -> dict[str, list]:
    """What the index of the full run holds, for counting by other means."""
    folder = Path(pages["full"].removeprefix("file://")).parent
    return embedded_rollouts([RunDirectory(folder / "full")]).index.as_dict()["columns"]


@pytest.mark.parametrize(
    ("fields", "passes"),
    [
        ({"task": "hitom"}, lambda c: c["task"] == 1),
        ({"step_low": "5", "step_high": "9"}, lambda c: 5 <= c["step"] <= 9),
        ({"reward_low": "0.5"}, lambda c: c["before"] >= 0.5),
        ({"reward_high": "0.5"}, lambda c: c["before"] <= 0.5),
        ({"change": "rose"}, lambda c: c["after"] is not None and c["after"] > c["before"]),
        ({"change": "stayed the same"}, lambda c: c["after"] == c["before"]),
        ({"change": "no refined reward"}, lambda c: c["after"] is None),
        ({"outcome": "ok"}, lambda c: c["outcomes"] & 1),
        ({"role": "refined"}, lambda c: c["roles"] & 2),
        ({"flag": "truncated"}, lambda c: c["flags"] & 1),
        (
            {"task": "paratomi", "change": "rose", "step_high": "20"},
            lambda c: c["task"] == 0 and c["after"] == 1 and c["step"] <= 20,
        ),
    ],
)
def test_filters_leave_what_passes_them_and_nothing_else(full, columns, fields, passes):
    items = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    expected = sum(bool(passes(item)) for item in items)
    assert 0 < expected <= len(items)
    for name, value in fields.items():
        _set(full, name, value)
    assert _count(full) == expected
    full.click("text=Clear the filters")
    until(full, f"document.getElementById('rollout-count').textContent.startsWith('{len(items)} of')")


def test_nothing_that_passes_is_said_in_words(full):
    _set(full, "scene", "no such scene")
    assert _count(full) == 0
    full.wait_for_selector("text=No rollout passes these filters.")


def test_scene_filter_takes_part_of_a_name(full):
    _set(full, "scene", "TOMI-3")
    until(full, "document.querySelectorAll('#rollout-table .tabulator-row').length > 3")
    scenes = full.locator("#rollout-table [tabulator-field=scene].tabulator-cell").all_inner_texts()
    assert scenes and all("tomi-3" in scene for scene in scenes)


def test_table_sorts_and_turns_pages(full):
    full.click("#rollout-table .tabulator-col[tabulator-field=step]")
    full.click("#rollout-table .tabulator-col[tabulator-field=step]")
    until(full, f"document.querySelector('#rollout-table .tabulator-row a').textContent === '{_STEPS}'")
    full.click("#rollout-table .tabulator-page[data-page=last]")
    until(full, "document.querySelector('#rollout-table .tabulator-row:last-child a').textContent === '1'")


def test_order_can_be_chosen_by_keyboard_too(full):
    _set(full, "order", "largest gains first")
    cells = "document.querySelectorAll('#rollout-table .tabulator-cell[tabulator-field=change]')"
    changes = f"[...{cells}].map((cell) => cell.textContent)"
    until(full, f"{changes}.length === 15 && {changes}.every((change) => change === '+1')")
    _set(full, "order", "as recorded")
    until(full, f"{changes}.includes('0')")


def test_item_opens_by_keyboard_and_shows_every_stage(full):
    _set(full, "change", "rose")
    full.locator("#rollout-table .tabulator-row a").first.press("Enter")
    full.wait_for_selector("#rollout-item:visible #rollout-title")
    assert full.evaluate("document.activeElement.id") == "rollout-title"
    text = full.inner_text("#rollout-item")
    stages = [
        "Where does Julian think the camera is?",
        "Draft",
        "Verdict: reward 0",
        "Advantage: -0.71 as draft",
        "The words about this",
        "Julian was away",
        "Refined",
        "Difference from the draft",
        "Verdict: reward 1",
        "+1.2 as refined plain",
    ]
    places = [text.index(stage) for stage in stages]
    assert places == sorted(places)
    assert full.inner_text("#rollout-item del") == "red_cupboard"
    assert "green_basket" in full.inner_text("#rollout-item ins >> nth=-1")


def test_link_leads_to_its_item_and_on_to_the_next(browser, pages):
    with opened(browser, pages["full"] + "#item=0.0.7.0.1") as page:
        page.wait_for_selector("#rollout-title")
        assert "step 7" in page.inner_text("#rollout-title") and "sample 1" in page.inner_text("#rollout-title")
        page.click("#rollout-item >> text=Next")
        until(page, "location.hash === '#item=0.0.7.0.2'")
        page.wait_for_selector("#rollout-title:has-text('sample 2')")
        page.go_back()
        page.wait_for_selector("#rollout-title:has-text('sample 1')")
        page.click("#rollout-item >> text=Close")
        page.wait_for_selector("#rollout-item", state="hidden")
        assert page.complaints == []


def test_link_to_an_item_that_is_not_there_is_told(browser, pages):
    with opened(browser, pages["full"] + "#item=0.0.999.0.1") as page:
        page.wait_for_selector("text=Rollout 0.0.999.0.1 is not in this page.")


def test_one_scene_is_shown_at_several_steps_in_order(full):
    full.select_option("#scene-choice", index=1)
    full.wait_for_selector("#scene-steps .item")
    steps = [int(text.split()[1]) for text in full.locator("#scene-steps h4").all_inner_texts()]
    assert len(steps) > 3 and steps == sorted(set(steps))
    first = full.locator("#scene-steps .item").first.inner_text()
    assert "draft: reward 0" in first and "Julian was away" in first and "refined: reward" in first


def test_hostile_text_stays_text(browser, pages):
    with opened(browser, pages["hostile"] + "#item=0.0.3.0.0") as page:
        page.wait_for_selector("#rollout-title")
        shown = page.inner_text("#rollout-item")
        assert HOSTILE.split("\n")[0] in shown
        for sign in ("{{ 7 * 7 }}", "&lt;b&gt;", "␛[31mred␇", "⟨U+202E⟩", "⟨U+200B⟩", "⟨U+D800⟩", "שלום"):
            assert sign in shown
        alive = "#rollout-item :is(script, img, style, iframe), #rollout-table :is(script, img, style)"
        assert page.locator(alive).count() == 0
        page.select_option("#scene-choice", index=1)
        page.wait_for_selector("#scene-steps .item")
        assert page.locator("#scene-steps :is(script, img, style)").count() == 0
        assert page.title().startswith("run </title><script>")
        assert page.complaints == []


def test_names_in_tooltips_are_text(browser, tmp_path):
    name = "<img src=x onerror=alert(1)>"
    runs = [make_run(tmp_path / "a", 5, name=name), make_run(tmp_path / "b", 5, name="b", objective="grpo")]
    with opened(browser, write_report(runs, tmp_path / "page.html").as_uri()) as page:
        page.wait_for_selector("#all-reward[data-drawn] svg")
        box = page.locator("#all-reward").bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
        page.mouse.move(box["x"] + box["width"] * 0.53, box["y"] + box["height"] * 0.5)
        page.wait_for_selector("#vg-tooltip-element.visible")
        assert name in page.inner_text("#vg-tooltip-element")
        assert page.locator("#vg-tooltip-element img").count() == 0
        assert page.complaints == []


def test_script_that_is_not_the_pages_own_does_not_run(browser, pages):
    with opened(browser, pages["full"]) as page:
        page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.owned = 1' }))"
        )
        assert page.evaluate("window.owned") is None
        assert any("Content Security Policy" in complaint for complaint in page.complaints)


def test_run_without_rollouts_says_so(browser, tmp_path):
    folder = make_run(tmp_path / "run", 3, rollouts=False)
    with opened(browser, write_report([folder]).as_uri()) as page:
        page.wait_for_selector("text=No rollouts are at hand.")
        assert page.locator("#rollout-browser").is_hidden() and page.complaints == []


def test_served_report_reads_rollouts_as_they_are_asked_for(browser, tmp_path):
    runs = [make_run(tmp_path / "a", 12, name="a", hostile=True)]
    with running_report(runs) as address, opened(browser, address) as page:
        page.wait_for_selector(_READY)
        assert _count(page) == 36
        _set(page, "change", "rose")
        assert _count(page) == 12
        page.locator("#rollout-table .tabulator-row a").first.click()
        page.wait_for_selector("#rollout-title")
        assert HOSTILE.split("\n")[0] in page.inner_text("#rollout-item")
        page.select_option("#scene-choice", index=1)
        page.wait_for_selector("#scene-steps .item")
        assert page.complaints == []
