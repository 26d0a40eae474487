"""Training as it happens, in a terminal: step, rewards, gap, tokens per second, where the time goes, time left.

On a terminal a live bar below the notes; elsewhere (a log file, a pipe, a notebook) plain lines, not more than needed.
Colours follow NO_COLOR. Reads metrics and evaluation records; writes no file and decides nothing. Imports no jax.
"""

from __future__ import annotations

import collections
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ditto_jax.evaluation.comparison import (
    Measured,
    Pair,
    intervals_overlap,
    pair_evaluations,
    reading_controls,
)
from ditto_jax.runs.readings import number, reward_gap, time_split
from ditto_jax.text.visible_text import one_line, visible

_RECENT = 9  # steps whose median duration predicts the rest: the first compiles, a few evaluate
_PLAIN_EVERY_S = 2.0


class TrainProgress:
    """A context manager that shows the steps of a training run.

    console: where to write; default standard output. logging_steps: off a terminal, a line is printed every so many
    steps, whenever two seconds have passed, for the first step seen and for the last. clock: seconds, for tests.
    """

    def __init__(
        self, console: Console | None = None, logging_steps: int = 10, clock: Callable[[], float] = time.monotonic
    ):
        self._console = console or Console(highlight=False)
        self._logging_steps = max(1, logging_steps)
        self._clock = clock
        self._started = self._last_end = clock()
        self._durations: collections.deque[float] = collections.deque(maxlen=_RECENT)
        self._metrics: Mapping[str, Any] = {}
        self._step, self._total = 0, 0
        self._printed: tuple[int, float] | None = None  # step and time of the last plain line
        self._live: Live | None = None

    def __enter__(self) -> TrainProgress:
        self._started = self._last_end = self._clock()
        console = self._console
        if console.is_terminal and not console.is_dumb_terminal and not console.is_jupyter:
            self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._stop()

    def step(self, metrics: Mapping[str, Any], step: int, total: int) -> None:
        """Shows the metrics of a step that has just ended, `step` of `total`."""
        now = self._clock()
        self._durations.append(now - self._last_end)
        self._last_end = now
        self._metrics, self._step, self._total = dict(metrics), step, total
        if self._live is not None:
            self._live.refresh()
        elif self._is_due(now):
            self._printed = (step, now)
            self._print(plain_line(metrics, step, total, self._elapsed(), self._remaining()))

    def note(self, text: str) -> None:
        """Prints one message, above the bar if there is one. Control characters in it are shown, not obeyed."""
        self._print(visible(text))

    def summary(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Ends the live display and prints the evaluations of a run, before and after, by question order."""
        self._stop()
        _print_pairs(pair_evaluations(records), self._console)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _is_due(self, now: float) -> bool:
        if self._printed is None or self._step >= self._total:
            return True
        step, at = self._printed
        return self._step - step >= self._logging_steps or now - at >= _PLAIN_EVERY_S

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _elapsed(self) -> float:
        return self._clock() - self._started

    def _remaining(self) -> float | None:
        """Seconds to go; None until a second step has shown how long one takes without compilation."""
        if self._step >= self._total:
            return 0.0
        if len(self._durations) < 2:
            return None
        typical = statistics.median(list(self._durations)[1:] if len(self._durations) < _RECENT else self._durations)
        return max(0.0, typical * (self._total - self._step) - (self._clock() - self._last_end))

    def _render(self) -> RenderableType:
        times = f"{_clock_text(self._elapsed())} elapsed"
        if not self._total:
            return Text(f"preparing the first step  {times}", style="dim")
        remaining = self._remaining()
        if remaining is not None:
            times += f", {_clock_text(remaining)} left"
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        bar = ProgressBar(total=self._total, completed=self._step, width=None)
        row.add_row(f"step {self._step}/{self._total}", bar, times)
        figures = Text()
        for name, value, style in _figures(self._metrics):
            figures.append(f"{name} ", style="dim").append(f"{value}  ", style=style)
        return Group(row, figures, Text(_split_text(self._metrics), style="dim"))


def _figures(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, style) of what a person watches; what a run does not have is left out."""
    candidates = (
        ("draft", number(metrics, "reward"), "{:.3f}", "bold cyan"),
        ("with feedback", number(metrics, "feedback/with_feedback_reward"), "{:.3f}", "bold yellow"),
        ("gap", reward_gap(metrics), "{:+.3f}", "bold"),
        ("tokens/s", number(metrics, "tokens_per_s"), "{:,.0f}", "bold"),
    )
    return [(name, form.format(value), style) for name, value, form, style in candidates if value is not None]


def _split_text(metrics: Mapping[str, Any]) -> str:
    split = time_split(metrics)
    whole = sum(split.values())
    if whole <= 0.0:
        return ""
    shares = ((name, round(100 * seconds / whole)) for name, seconds in split.items())
    shown = " ".join(f"{one_line(name)} {share}%" for name, share in shares if share)
    return f"{whole:.2f} s/step: {shown}"


def plain_line(metrics: Mapping[str, Any], step: int, total: int, elapsed: float, remaining: float | None) -> str:
    """Returns one step as a line of plain text."""
    parts = [f"step {step:>{len(str(total))}}/{total}"]
    parts += [f"{name} {value}" for name, value, _ in _figures(metrics)]
    parts += [text for text in (_split_text(metrics),) if text]
    parts.append(f"{_clock_text(elapsed)} elapsed")
    if remaining:
        parts.append(f"{_clock_text(remaining)} left")
    return "  ".join(parts)


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def summary_table(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], console: Console | None = None
) -> None:
    """Prints two lists of evaluation records side by side: per label and question order, with intervals.

    Records are matched by label; a label in one list only has an empty side.
    """
    firsts, lasts = ({str(r.get("label", "")): r for r in records} for records in (before, after))
    labels = list(dict.fromkeys([*firsts, *lasts]))
    _print_pairs(
        [Pair(name, firsts.get(name), lasts.get(name)) for name in labels], console or Console(highlight=False)
    )


def _print_pairs(pairs: Sequence[Pair], console: Console) -> None:
    if not pairs:
        return
    unit = "percent" if all(pair.in_unit for pair in pairs) else "mean scores; percent within 0 to 1"
    title = f"Evaluation without feedback ({unit}, with intervals)"
    table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False, box=SIMPLE_HEAD)
    for name in ("evaluation", "order"):
        table.add_column(name)
    for name in ("before", "after", "change", "n"):
        table.add_column(name, justify="right")
    for pair in pairs:
        groups = [*pair.groups("order"), pair.whole]
        for index, group in enumerate(groups):
            label = one_line(pair.label) if index == 0 else ""
            last = group.after or group.before
            table.add_row(
                Text(label),
                Text(one_line(group.name)),
                _cell(group.before, pair.in_unit),
                _cell(group.after, pair.in_unit),
                Text("" if group.change is None else _short(group.change, pair.in_unit, "+")),
                Text(str(last.n) if last else "0"),
                style="bold" if group.name == pair.whole.name and len(groups) > 1 else None,
                end_section=index == len(groups) - 1,
            )
    console.print(table)
    doubtful = [one_line(pair.label) for pair in pairs if intervals_overlap(pair.whole)]
    if doubtful:
        console.print(
            Text(f"within the intervals, so not shown by this run alone: {', '.join(doubtful)}"), soft_wrap=True
        )
    _print_controls(pairs, console)
    official = [one_line(pair.label) for pair in pairs if pair.is_official]
    if official:
        console.print(Text(f"reported, not trained for: {', '.join(official)}"), soft_wrap=True)


def _print_controls(pairs: Sequence[Pair], console: Console) -> None:
    for control in (control for pair in pairs for control in reading_controls(pair)):
        sides = (("by feedback", control.feedback), ("by content-free words", control.content_free))
        shown = [f"{m.value:.3f} {name} (n={m.n})" for name, m in sides if m is not None]
        if shown:
            text = f"wrong drafts fixed, {one_line(control.label)}, step {control.step}: {', '.join(shown)}"
            console.print(Text(text), soft_wrap=True)


def _cell(m: Measured | None, in_unit: bool) -> Text:
    """Value and interval, short: five of these columns fit in 80 characters."""
    if m is None:
        return Text("-")
    if m.low is None or m.high is None:
        return Text(_short(m.value, in_unit))
    return Text(f"{_short(m.value, in_unit)} [{_short(m.low, in_unit)}, {_short(m.high, in_unit)}]")


def _short(value: float, in_unit: bool, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f}" if in_unit else f"{value:{sign}.3g}"
