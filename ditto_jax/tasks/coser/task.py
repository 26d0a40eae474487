"""The task `coser`: the policy plays every character of a book scene; what was played is judged against the book.

In: the benchmark's circumstances, scenes rebuilt from its training sample, or released parquet rows. Out: a scene among
the characters, a narrator and a director who names the next speaker; the judge's question and its score; words for the
actors; overlap with the book's dialogue as a metric. The book's dialogue is never shown to the policy, unless
`gold_in_prompt` says so.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pydantic

from ditto_jax.errors import ConfigError, MissingInputError
from ditto_jax.tasks.base import JudgeRequest, Ports, Scored, Source
from ditto_jax.tasks.coser import prompts, rubrics
from ditto_jax.tasks.coser.files import read_circumstances, reference_turns, released_circumstance
from ditto_jax.tasks.coser.lines import END, ENVIRONMENT, spoken, without_thoughts
from ditto_jax.tasks.coser.overlap import BLEU, ROUGE_L, bleu, rouge_l
from ditto_jax.tasks.coser.rebuilt import read_rebuilt
from ditto_jax.tasks.coser.stage import NARRATOR, NEXT_SPEAKER, Limits, Stage
from ditto_jax.tasks.data_files import find_file
from ditto_jax.tasks.dialogue import cut_middle
from ditto_jax.tasks.leak import reference_ngram
from ditto_jax.tasks.lexical import word_tokens
from ditto_jax.tasks.option_checks import check_at_least, check_choice
from ditto_jax.tasks.soul_task import SoulOptions, SoulTask
from ditto_jax.tasks.splits import SPLITS, group_name
from ditto_jax.types import Chat, Conversation, Example, Message, Outcome, Turn, Verdict

SCORINGS = ("levels", "severity")
_TURN_WORDS_SHOWN, _REFERENCE_WORDS_SHOWN = 500, 2000  # what judge and coach read of the book's dialogue
_SURROUNDINGS = (
    "Somewhere a door falls shut.",
    "The light changes as a cloud passes.",
    "A clock is heard in the silence.",
    "Outside, steps come near and go away again.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoSEROptions(SoulOptions):
    """Options of the task `coser`, beside those of every task (`max_words` holds for each part of a prompt).

    max_rounds: turns of everybody together, the same for drafts and refined scenes. min_rounds: the director can end a
    scene once it has that many turns. turn_words: the length that characters are told to keep to. scoring: "levels"
    (four levels from 1 to 10) or "severity" (listed flaws, the formula of the paper). think_penalty: a character who
    opens a turn with a think block is worth its score divided by this; 1 forgives it. gold_in_prompt: the refined
    prompt shows the book's dialogue.
    """

    feedback_placement: str = "system"
    max_words: int = 1000
    max_rounds: int = 10
    min_rounds: int = 6
    turn_words: int = 60
    scoring: str = "levels"
    think_penalty: float = 2.0

    def __post_init__(self):
        super().__post_init__()
        where = "tasks.coser.options"
        if self.feedback_placement != "system":
            raise ConfigError(
                f"{where}.feedback_placement={self.feedback_placement!r}: must be system: a character may hear others "
                "before anybody addresses it, so there is no user message to end with"
            )
        for name, example in (("max_rounds", 10), ("min_rounds", 6), ("turn_words", 60)):
            check_at_least(f"{where}.{name}", getattr(self, name), 1, example)
        check_choice(f"{where}.scoring", self.scoring, SCORINGS)
        if not 1.0 <= self.think_penalty < float("inf"):
            raise ConfigError(f"{where}.think_penalty={self.think_penalty}: must be 1 (no penalty) or more, usually 2")


class CoSER(SoulTask[CoSEROptions]):
    """Scenes from books, scored in four dimensions by a judge, with overlap measures beside."""

    name = "coser"
    version = "1"
    options_type = CoSEROptions
    many_turns = True
    in_character = True
    sources: ClassVar = {"files": ("train", "test"), "parquet": SPLITS}

    @property
    def auxiliary_roles(self) -> tuple[str, ...]:
        return NEXT_SPEAKER, NARRATOR

    def read_files(self, path: Path, source: Source) -> list[Example]:
        """Reads the circumstances for the split "test" and rebuilds the training sample for "train"."""
        if source.split == "test":
            what, name, read = "CoSER circumstances test_set.json", "test_set.json", read_circumstances
        elif source.split == "train":
            what, name, read = "CoSER training sample sft_sharegpt.json", "sft_sharegpt.json", read_rebuilt
        else:
            raise MissingInputError(f"{path}: the public files have the splits train and test; set source.split to one")
        return read(find_file(path, (name, f"CoSER/{name}", f"test/{name}", f"train/{name}"), what), source.rows)

    def released_row(self, file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
        return released_circumstance(file, where, example_id, info)

    def evaluation_only(self, source: Source) -> str:
        is_test = source.kind == "files" and source.split == "test"
        return "the public circumstances of CoSER are its test set" if is_test else ""

    def groups(self, example: Example) -> frozenset[str]:
        """Returns scene and book; the scene alone where the benchmark marks a scene as taken from a training book."""
        payload = example.payload
        scene = group_name("scene", f"{payload['book']} {payload['scenario']}")
        return frozenset({scene} if payload["tag"] == "id" else {scene, group_name("book", str(payload["book"]))})

    def ending(self, example: Example, conversation: Conversation) -> str:
        """Returns "premature" for silence; otherwise the director ends a scene, and not the policy."""
        return "premature" if conversation.facts.get("ended") == "silence" else ""

    def breakdown(self, example: Example) -> Mapping[str, str]:
        return {"tag": str(example.payload["tag"]), "characters": str(len(example.payload["characters"]))}

    def opening(self, example: Example, feedback: str | None = None) -> tuple[Message, ...]:
        """Returns the opening of the first character."""
        return next(iter(self.openings(example, feedback).values()))

    def openings(self, example: Example, feedback: str | None = None) -> Mapping[str, tuple[Message, ...]]:
        return {name: self._character(example, name, feedback) for name in example.payload["characters"]}

    def _character(self, example: Example, name: str, feedback: str | None) -> tuple[Message, ...]:
        system = prompts.character_system(example.payload, name, self.options.turn_words, self._cut)
        if feedback is None:
            return (Message("system", system),)
        words = prompts.guidance(name, feedback)
        if self.options.gold_in_prompt:
            words += f"\nThe book's dialogue:\n{self._reference_shown(example)}"
        return self.placed((Message("system", system),), words)

    def _cut(self, text: str) -> str:
        return cut_middle(text, self.options.max_words)

    def _reference_shown(self, example: Example) -> str:
        lines = spoken(reference_turns(example.payload)).split("\n")
        return cut_middle("\n".join(cut_middle(line, _TURN_WORDS_SHOWN) for line in lines), _REFERENCE_WORDS_SHOWN)

    async def episode(self, example: Example, ports: Ports, feedback: str | None = None) -> Conversation:
        """Plays the scene until the director ends it, its rounds are over, or somebody says nothing."""
        payload, options = example.payload, self.options
        names = (*payload["characters"], ENVIRONMENT)
        stage = Stage(
            example,
            ports,
            self.openings(example, feedback),
            narrator=prompts.narrator_opening(payload, self._cut),
            director=prompts.director_opening(payload, names, self._cut),
            limits=Limits(options.max_rounds, options.min_rounds, options.max_words),
        )
        return await stage.play()

    def scripted_reply(self, example: Example, role: str, chat: Chat, rng: random.Random) -> str | None:
        """Names the speakers in the book's order, and narrates what the book narrates; then stock phrases."""
        said = sum(message.role == "assistant" for message in chat)
        reference = reference_turns(example.payload)
        if role == NARRATOR:
            told = [turn.text for turn in reference if turn.speaker == ENVIRONMENT]
            return told[said] if said < len(told) else rng.choice(_SURROUNDINGS)
        if role == NEXT_SPEAKER:
            after = reference[example.payload["continue_from"] :][said + 1 :]
            return f"Reasoning: the order of the book.\nNext speaker: {after[0].speaker if after else END}"
        return None

    def rule_score(self, example: Example, conversation: Conversation) -> Verdict | None:
        """Returns 0 for a scene in which no character said or did anything; everything else is for the judge."""
        if any(without_thoughts(turn.text) for turn in conversation.turns if turn.author == "policy"):
            return None
        nothing = {rubrics.metric_name(dimension): 0.0 for dimension in rubrics.DIMENSIONS}
        return Verdict(Outcome.OK, 0.0, nothing, detail="no character said or did anything")

    def score_requests(self, example: Example, conversation: Conversation) -> Mapping[str, JudgeRequest]:
        by_flaws = self.options.scoring == "severity"
        reference, played = self._reference_shown(example), spoken(conversation.turns)
        messages = prompts.judge_messages(example.payload, reference, played, by_flaws, self._cut)
        model = rubrics.Flaws if by_flaws else rubrics.LEVELS.reply_model
        return {"scene": JudgeRequest(messages, model, f"{self.name}-{self.options.scoring}-{self.version}")}

    def judged_score(
        self, example: Example, conversation: Conversation, replies: Mapping[str, pydantic.BaseModel]
    ) -> Verdict:
        reply = replies["scene"]
        if isinstance(reply, rubrics.Flaws):
            turns = sum(turn.speaker != ENVIRONMENT for turn in conversation.turns)
            flaws = {name: reply.of(name) for name in rubrics.DIMENSIONS}
            points = {
                name: rubrics.severity_points([flaw.severity for flaw in found], turns) for name, found in flaws.items()
            }
            remarks = {name: "; ".join(flaw.flaw for flaw in found) for name, found in flaws.items()}
        else:
            points = {name: rubrics.level_points(level) for name, level in rubrics.LEVELS.scores(reply).items()}
            remarks = {name: getattr(reply, rubrics.metric_name(name)).reasoning for name in rubrics.DIMENSIONS}
        dimensions = {rubrics.metric_name(name): value / 100.0 for name, value in points.items()}
        weakest_first = sorted(points, key=lambda name: points[name])
        critique = "\n".join(f"{name}: {' '.join(remarks[name].split())}" for name in weakest_first)
        share = self._kept_share(conversation)
        score = statistics.fmean(points.values()) / 100.0 * share
        return Verdict(Outcome.OK, score, {**dimensions, "think_format": share}, critique=critique)

    def _kept_share(self, conversation: Conversation) -> float:
        """What the think-format rule leaves of the score, as a mean over the characters who spoke."""
        broken = float(conversation.facts["thinking_share"])
        return 1.0 - broken * (1.0 - 1.0 / self.options.think_penalty)

    def proxy_score(self, example: Example, conversation: Conversation) -> Verdict:
        """Returns overlap with the book times the shares of turns of fair length and of new ones: form alone."""
        own = [without_thoughts(turn.text) for turn in conversation.turns if turn.author == "policy"]
        played, reference = self._played_words(example, conversation), self._reference_words(example)
        parts = {
            "overlap": rouge_l(word_tokens(played), word_tokens(reference)),
            "brief": sum(len(text.split()) <= self.options.turn_words for text in own) / len(own),
            "varied": len({text.casefold() for text in own}) / len(own),
        }
        return Verdict(Outcome.OK, math.prod(parts.values()), parts, detail="form only: a stand-in")

    def batch_metrics(self, scored: Sequence[Scored]) -> Mapping[str, float]:
        """Overlap of played with book dialogues (no names, no thoughts, no given lines), and how scenes ended."""
        if not scored:
            return {}
        played = [self._played_words(one.example, one.conversation) for one in scored]
        references = [self._reference_words(one.example) for one in scored]
        pairs = zip(played, references, strict=True)
        facts = [one.conversation.facts for one in scored]
        return {
            BLEU: bleu(played, references),
            ROUGE_L: statistics.fmean(rouge_l(word_tokens(a), word_tokens(b)) for a, b in pairs),
            "ended_by_director": statistics.fmean(fact["ended"] == "director" for fact in facts),
            "ended_in_silence": statistics.fmean(fact["ended"] == "silence" for fact in facts),
            "turns": statistics.fmean(float(fact["turns"]) for fact in facts),
            "drawn_speakers": statistics.fmean(float(fact["drawn_speakers"]) for fact in facts),
        }

    def _played_words(self, example: Example, conversation: Conversation) -> str:
        return _words(conversation.turns[example.payload["continue_from"] :])

    def _reference_words(self, example: Example) -> str:
        return _words(reference_turns(example.payload)[example.payload["continue_from"] :])

    def wants_feedback(self, example: Example, conversation: Conversation, verdict: Verdict) -> bool:
        """Returns whether any character had a turn: without one there is nobody to tell anything."""
        return bool(conversation.messages)

    def rule_feedback(
        self, example: Example, conversation: Conversation, verdict: Verdict, rng: random.Random
    ) -> str | None:
        """Returns words about the form of the scene (silence, speaking for others); rules know nothing of its worth."""
        words = []
        if conversation.facts["ended"] == "silence":
            words.append("The scene broke off because somebody said nothing: every turn needs a word or an action.")
        if conversation.facts["spoke_for_others"]:
            words.append("Somebody spoke for others: write your own turn and leave theirs to them.")
        return " ".join(words) or None

    def feedback_request(self, example: Example, conversation: Conversation, verdict: Verdict) -> JudgeRequest:
        weakest = "\n".join(verdict.critique.split("\n")[:2]) or verdict.detail
        system, user = prompts.coach_messages(self._reference_shown(example), spoken(conversation.turns), weakest)
        return self.words_request(system, user)

    def leak(self, example: Example, feedback: str) -> str:
        """Names "reference_ngram" if the words hold eight words in a row of the book's dialogue."""
        return "" if self.options.gold_in_prompt else reference_ngram(feedback, example.gold)


def _words(turns: Iterable[Turn]) -> str:
    return "\n".join(text for turn in turns if (text := without_thoughts(turn.text)))
