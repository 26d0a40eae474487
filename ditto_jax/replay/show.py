"""A replay → tables for a terminal or a page: what is equal, the rollouts of the prompt, tokens, own words.

Text of policies, judges and users is shown with nothing hidden and never as markup. Computes nothing.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ditto_jax.replay.differences import Difference
from ditto_jax.replay.replay import Replay
from ditto_jax.replay.tokens import ViewTokens
from ditto_jax.runs.run_dir import write_atomically
from ditto_jax.text.visible_text import one_line, visible

_MOST_DIFFERENCES = 5
_PAGE_WIDTH = 150


def print_replay(replay: Replay, console: Console, tokens: int) -> None:
    """Prints a replay; of each view at most `tokens` tokens."""
    for part in _parts(replay, tokens):
        console.print(part)


def write_page(replay: Replay, path: Path) -> None:
    """Writes what `print_replay` prints, with all tokens, as one HTML file."""
    console = Console(record=True, width=_PAGE_WIDTH, file=io.StringIO(), highlight=False, markup=False)
    print_replay(replay, console, tokens=max((len(view.ids) for view in replay.views), default=0))
    write_atomically(path, console.export_html(inline_styles=True))


def _parts(replay: Replay, tokens: int) -> Iterator[RenderableType]:
    yield Text(f"{replay.run}: step {replay.step}, prompt {replay.prompt} ({one_line(replay.prompt_id)})", style="bold")
    yield Text("\n".join(_verdict(replay)))
    if replay.reached:
        yield _rollouts(replay)
        for view in replay.views:
            if view.sample == replay.sample:
                yield _tokens(view, tokens)
    if replay.own is not None:
        yield _side_by_side(replay, replay.own)


def _verdict(replay: Replay) -> Iterator[str]:
    """Whether the record was regenerated, and if not, where it first was not and what may be why."""
    if replay.is_exact:
        yield f"{replay.compared} of {replay.compared} rollouts regenerated, bit for bit"
    else:
        equal = replay.compared - len(replay.different)
        yield f"{equal} of {replay.compared} rollouts regenerated bit for bit; {len(replay.different)} differ:"
        yield from map(_difference, replay.different[:_MOST_DIFFERENCES])
        if len(replay.different) > _MOST_DIFFERENCES:
            yield f"  and {len(replay.different) - _MOST_DIFFERENCES} more"
    if not replay.reached:
        yield (
            f"step {replay.repeated[-1]} has other tokens here, so that the weights of step {replay.step} cannot be "
            f"had; step {replay.checkpoint + 1} can be replayed without repeating others"
        )
    for name, (then, here) in replay.environment.items():
        yield f"differs from where the run began: {name}: {_short(then)} there, {_short(here)} here"


def _difference(one: Difference) -> str:
    where = f"  step {one.step}, prompt {one.prompt}, {one.role} {one.sample}: {', '.join(one.fields)}"
    if one.token is not None:
        then, now = ("the end" if x is None else f"token {x}" for x in (one.token.then, one.token.now))
        where += f"; first at position {one.token.position} of '{one.token.transcript}': {then} there, {now} here"
    return where + (f"; log-probs of equal tokens up to {one.logprob:.2g} apart" if one.logprob else "")


def _short(value: Any) -> str:
    if isinstance(value, list) and value and len(set(value)) == 1:
        return f"{len(value)} x {value[0]}"
    return str(value)


def _rollouts(replay: Replay) -> Table:
    different = {(one.prompt, one.role, one.sample) for one in replay.different if one.step == replay.step}
    columns = ("sample", "rollout", "score", "advantage", "tokens", "reply", "as recorded")
    table = _table("rollouts of the prompt", *columns, flexible=("reply",))
    for row in replay.of_prompt(replay.regenerated):
        advantage = "\n".join(f"{name} {value:+.3f}" for name, value in row["advantage"].items())
        table.add_row(
            str(row["sample"]),
            row["role"],
            _score(row),
            advantage or "not trained",
            str(sum(map(len, row["tokens"].values()))),
            Text(one_line(row["reply"]), no_wrap=True, overflow="ellipsis"),
            "no" if (replay.prompt, row["role"], row["sample"]) in different else "yes",
        )
    return table


def _tokens(view: ViewTokens, most: int) -> Table:
    title = f"{view.role} {view.sample} as {view.view}: advantage {view.advantage:+.4f}, update {view.update}"
    if view.left_out:
        title += f"; not trained: {view.left_out}"
    columns = ("#", "token", "id", "sampled at", "log-prob", "ratio", "limit", "loss", "share")
    table = _table(title, *columns, flexible=("token",))
    for i in range(min(most, len(view.ids))):
        cells = [str(i), Text(_quoted(view.texts[i])), str(view.ids[i])]
        if not view.sampled[i]:
            table.add_row(*cells, "not sampled")
            continue
        cells.append(f"{view.behaviour[i]:.4f}")
        if not view.left_out:
            cells += [f"{view.logprob[i]:.4f}", f"{view.ratio[i]:.4f}", view.limit[i]]
            cells += [f"{view.loss[i]:+.1e}", f"{view.share[i]:.2%}"]
        table.add_row(*cells)
    if len(view.ids) > most:
        table.caption = f"{most} of {len(view.ids)} tokens; --tokens {len(view.ids)} shows all"
    return table


def _side_by_side(replay: Replay, own: Mapping[str, Any]) -> Table:
    rows = [row for row in replay.of_prompt(replay.recorded) if row["sample"] == replay.sample]
    draft = next(row for row in rows if row["role"] == "draft")
    theirs = next((row for row in rows if row["role"] == "refined"), None)
    sides = ("draft", "refined in the run", "refined here")
    table = _table(f"draft {replay.sample} refined under other words", "", *sides, flexible=sides)
    table.show_lines = True
    table.add_row("words", "", _said(theirs or {}) or "none: not refined", _said(own))
    table.add_row("reply", *(Text(visible(row["reply"])) if row else "" for row in (draft, theirs, own)))
    table.add_row("score", *(_score(row) if row else "" for row in (draft, theirs, own)))
    for name in dict.fromkeys(name for row in (draft, theirs, own) if row for name in row["dimensions"]):
        table.add_row(name, *(f"{row['dimensions'].get(name, '')}" if row else "" for row in (draft, theirs, own)))
    table.add_row("why", *(Text(visible(row["detail"])) if row else "" for row in (draft, theirs, own)))
    table.add_row("judge", *(Text(one_line(row["judge"])) if row else "" for row in (draft, theirs, own)))
    table.add_row("mean log-prob", *(_mean_logprob(row) if row else "" for row in (draft, theirs, own)))
    return table


def _said(row: Mapping[str, Any]) -> Text:
    return Text(visible(row.get("used_feedback") or ""))


def _score(row: Mapping[str, Any]) -> str:
    return row["outcome"] if row["score"] is None else f"{row['score']:.3f}"


def _mean_logprob(row: Mapping[str, Any]) -> str:
    """Of tokens that the policy sampled: others have exactly 0."""
    values = [x for values in row["logprobs"].values() for x in values if x != 0.0]
    return f"{statistics.fmean(values):.4f}" if values else ""


def _quoted(text: str) -> str:
    return visible(text).replace("\n", "⏎").replace(" ", "␣")


def _table(title: str, *columns: str, flexible: Collection[str] = ()) -> Table:
    """A table in which only the flexible columns give way where a terminal is narrow."""
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, no_wrap=column not in flexible, overflow="fold")
    return table
