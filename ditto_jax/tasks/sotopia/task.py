"""The task `sotopia`: one side of a talk between two people, scored on seven dimensions of getting on.

In: generated scenes (a stand-in), the public profiles, or released rows. Out: an episode that alternates with a
partner, the judge's and the audit's questions or a score by rule, words for a second try. Neither side is ever told
what the other keeps to itself.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pydantic

from ditto_jax.reply_form import ReplyForm
from ditto_jax.tasks.base import AuxiliaryFailure, JudgeRequest, Ports, Source
from ditto_jax.tasks.dialogue import Voice, transcript
from ditto_jax.tasks.leak import leak_rule
from ditto_jax.tasks.option_checks import check_at_least, check_choice
from ditto_jax.tasks.sotopia import scoring
from ditto_jax.tasks.sotopia.actions import GESTURE, LEAVE, SPEAK, Action, ActionReply, heard, read_action
from ditto_jax.tasks.sotopia.coaching import brief_question, private_leak
from ditto_jax.tasks.sotopia.files import read_sotopia
from ditto_jax.tasks.sotopia.generator import STAND_INS, generate_sotopia
from ditto_jax.tasks.sotopia.prompts import START, side_system
from ditto_jax.tasks.sotopia.released import released_scene
from ditto_jax.tasks.sotopia.scene import Scene, scene_of
from ditto_jax.tasks.soul_task import SoulOptions, SoulTask
from ditto_jax.tasks.splits import SPLITS
from ditto_jax.types import Chat, Conversation, Example, Message, Outcome, Turn, Verdict

PARTNER = "partner"
_THOUGHT = ("<think>", "<seed:think>")
_RISK_LEVELS = tuple(scoring.RISKS)
_SMALL_TALK = (
    "I see. Tell me more about what you have in mind.",
    "That is one way to look at it. What would it mean for both of us?",
    "I am not sure yet. Why does it matter to you?",
    "Perhaps we can meet in the middle. What would you give up for it?",
    "All right, let me think about it for a moment.",
)
_SCRIPT_LEAVES_AFTER = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class SotopiaOptions(SoulOptions):
    """Options of the task `sotopia`, beside those of every task.

    max_turns: turns of both sides together (15 as released; the paper says up to 20). leave_from: the turn, counted
    from 0, from which leaving ends the talk; earlier it is a turn like others. max_turn_words: longest turn.
    scale: "average" (0.1 times the mean of raw scores, -0.429 … 0.571) or "weighted" (0 … 1); not read if `reward` is
    "release". audit: whether a second question looks for play to the judge. thinking: "off" or "on", the format that
    replies must keep; "any" is not checked. stand_in_score: generated scenes by "rules" or by the "judge".
    only_hard: of the public test scenes, those of Sotopia-hard. feedback_words: length of the brief.
    gold_in_prompt: the coach is told the other side's background and goal, and no words are refused (the release).
    """

    feedback_placement: str = "system"
    max_turns: int = 15
    leave_from: int = 5
    max_turn_words: int = 2048
    scale: str = "average"
    audit: bool = True
    thinking: str = "off"
    stand_in_score: str = "rules"
    only_hard: bool = False
    feedback_words: int = 1000

    def __post_init__(self):
        super().__post_init__()
        for name, allowed in (
            ("feedback_placement", ("system",)),  # whoever is spoken to first has no message of the user's own yet
            ("scale", ("average", "weighted")),
            ("thinking", ("off", "on", "any")),
            ("stand_in_score", ("rules", "judge")),
        ):
            check_choice(f"tasks.sotopia.options.{name}", getattr(self, name), allowed)
        for name, least, example in (
            ("max_turns", 2, 15),
            ("leave_from", 0, 5),
            ("max_turn_words", 2, 2048),
            ("feedback_words", 20, 1000),
        ):
            check_at_least(f"tasks.sotopia.options.{name}", getattr(self, name), least, example)


class Sotopia(SoulTask[SotopiaOptions]):
    """Seven judged dimensions and their reward; generated scenes by those dimensions that rules can read off."""

    name = "sotopia"
    version = "1"
    options_type = SotopiaOptions
    many_turns = True
    in_character = True
    sources: ClassVar = {"generated": SPLITS, "files": SPLITS, "parquet": SPLITS}

    @property
    def questions(self) -> int:
        return 1 + self.options.audit

    @property
    def auxiliary_roles(self) -> tuple[str, ...]:
        return (PARTNER,)

    def generate(self, split: str, count: int, seed: int) -> list[Example]:
        return generate_sotopia(split, count, seed)

    def read_files(self, path: Path, source: Source) -> list[Example]:
        return read_sotopia(path, source.split, source.rows, only_hard=self.options.only_hard)

    def released_row(self, file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
        return released_scene(file, where, example_id, info)

    def evaluation_only(self, source: Source) -> str:
        official = source.kind == "files" and source.split == "test"
        return "the official Sotopia environments are its test set; split train has the pilot ones" if official else ""

    def groups(self, example: Example) -> frozenset[str]:
        return frozenset({str(example.payload["group"])})

    def breakdown(self, example: Example) -> Mapping[str, str]:
        payload = example.payload
        source = payload["source"]
        kind = payload["kind"] or source
        return {"hard": payload["hard"], "position": payload["eval_position"], "kind": kind, "source": source}

    def ending(self, example: Example, conversation: Conversation) -> str:
        """Returns "premature" for silence or a try to leave too early, "missing" where turns ran out."""
        turns = conversation.turns[:-1] if conversation.facts.get("ended") == "left" else conversation.turns
        left_early = any(turn.author == "policy" and turn.text.startswith(f"[{LEAVE}]") for turn in turns)
        if conversation.facts.get("ended") == "silence" or left_early:
            return "premature"
        return "missing" if conversation.facts.get("ended") == "turns" else ""

    def scene(self, example: Example) -> Scene:
        """Returns the scene as the policy's side lives it."""
        return scene_of(example, self.options.max_words)

    def opening(self, example: Example, feedback: str | None = None) -> tuple[Message, ...]:
        """Returns x or (x, h); it ends with the system message where the partner speaks first."""
        scene = self.scene(example)
        system = Message("system", side_system(scene))
        return self.placed((system, Message("user", START)) if scene.opens else (system,), feedback)

    async def episode(self, example: Example, ports: Ports, feedback: str | None = None) -> Conversation:
        """Alternates turns from agent1 on, until someone leaves late enough, the policy is silent, or turns run out."""
        scene = self.scene(example)
        own = Voice(ports.policy(), self.opening(example, feedback))
        partner = Voice(ports.llm(PARTNER), (Message("system", side_system(scene.mirrored)),))
        partner.hear(START)
        if not scene.opens:
            own.hear(START)
        turns: list[Turn] = []
        reply, ended, malformed = "", "turns", 0
        for number in range(self.options.max_turns):
            if scene.opens == (number % 2 == 0):
                reply = (await own.speak()).text
                action = read_action(reply, self.options.max_turn_words)
                if action is None:
                    ended = "silence"
                    break
                malformed += not action.well_formed
                turns.append(Turn(scene.own.name, action.shown, "policy"))
                partner.hear(action.observed(scene.own.name))
            else:
                action = read_action((await partner.speak()).text, self.options.max_turn_words)
                if action is None:
                    raise AuxiliaryFailure(f"{PARTNER}: nothing visible was said or done", Outcome.UNPARSABLE)
                turns.append(Turn(scene.other.name, action.shown, "llm"))
                own.hear(action.observed(scene.other.name))
            if action.kind == LEAVE and number >= self.options.leave_from:
                ended = "left"
                break
        facts = {
            "ended": ended,
            "turns": float(len(turns)),
            "malformed": float(malformed),
            "guided": float(feedback is not None),
        }
        return Conversation(own.chat, reply, tuple(turns), facts)

    def reply_form(self, example: Example, role: str, turn: int) -> ReplyForm | None:
        """Returns one action in JSON; whether it says anything is the policy's own affair."""
        return ReplyForm(reply_model=ActionReply, thinks=self.options.thinking == "on")

    def scripted_reply(self, example: Example, role: str, chat: Chat, rng: random.Random) -> str | None:
        """Returns the partner's turn: by the facts of a generated scene, otherwise small talk that ends in leaving."""
        if role != PARTNER:
            return None
        scene = self.scene(example).mirrored
        spoken = sum(message.role == "assistant" for message in chat)
        if (stand_in := STAND_INS.get(scene.kind)) is not None:
            said = heard(chat[-1].content.rpartition("\n")[2], scene.other.name)
            return stand_in.answer(scene, said, spoken, rng).as_json()
        if spoken >= _SCRIPT_LEAVES_AFTER:
            return Action(LEAVE, "").as_json()
        if spoken == 0:
            return Action(SPEAK, f"Good to see you, {scene.other.name}. What is on your mind?").as_json()
        action = Action(GESTURE, "nods slowly") if rng.random() < 0.1 else Action(SPEAK, rng.choice(_SMALL_TALK))
        return action.as_json()

    def rule_score(self, example: Example, conversation: Conversation) -> Verdict | None:
        """Returns 0 for silence, the rules' verdict on a generated scene (unless the judge scores it), else None."""
        if not any(turn.author == "policy" for turn in conversation.turns):
            return Verdict(Outcome.OK, 0.0, detail="no visible turn")
        if example.payload["kind"] and self.options.stand_in_score == "rules":
            return self._by_rules(example, conversation)
        return None

    def score_requests(self, example: Example, conversation: Conversation) -> Mapping[str, JudgeRequest]:
        scene = self.scene(example)
        requests = {"scores": scoring.judge_request(scene, transcript(conversation.turns), self.version)}
        if self.options.audit:
            own = "\n".join(conversation.policy_texts)
            requests["audit"] = scoring.audit_request(scene, own, self.version)
        return requests

    def judged_score(
        self, example: Example, conversation: Conversation, replies: Mapping[str, pydantic.BaseModel]
    ) -> Verdict:
        scores, audit = scoring.RUBRIC.scores(replies["scores"]), replies.get("audit")
        risk = audit.risk_level if isinstance(audit, scoring.Audit) else "low"
        detail = f"audit {risk}: {audit.reason}" if isinstance(audit, scoring.Audit) else "no audit"
        critique = scoring.RUBRIC.critique(replies["scores"])
        extra = {"audit_risk": float(_RISK_LEVELS.index(risk))}
        if example.payload["kind"]:
            ruled = STAND_INS[example.payload["kind"]].scores(self.scene(example), conversation.turns)
            extra |= {f"rule_{name}": value for name, value in ruled.items()}
        return self._verdict(conversation, scores, risk, extra, critique=critique, detail=detail)

    def proxy_score(self, example: Example, conversation: Conversation) -> Verdict:
        """Returns the rules' verdict on a generated scene; elsewhere form and own secret only, 0.1 times their mean.

        form: 0 … 10, the share of own turns that are actions in JSON and new. secret_kept: 0, or -10 if the secret's
        words were said. Both say nothing about getting on with people.
        """
        if example.payload["kind"]:
            return self._by_rules(example, conversation)
        said = conversation.policy_texts
        fresh = len(set(said)) - float(conversation.facts["malformed"])
        secret = self.scene(example).own.secret
        told = secret and any(leak_rule(text, gold_text=secret, gold_letter=None) for text in said)
        dimensions = {"form": 10.0 * max(0.0, fresh) / len(said), "secret_kept": -10.0 if told else 0.0}
        score = scoring.reward(dimensions, "average", format_kept=self._format_kept(conversation))
        return Verdict(Outcome.OK, score, dimensions, detail="stand-in: form and secrecy only")

    def _by_rules(self, example: Example, conversation: Conversation) -> Verdict:
        stand_in, scene = STAND_INS[example.payload["kind"]], self.scene(example)
        scores = stand_in.scores(scene, conversation.turns)
        critique = stand_in.advice(scene, conversation.turns) or ""
        return self._verdict(conversation, scores, "low", {}, critique=critique, detail=f"by rules of {stand_in.name}")

    def _verdict(
        self,
        conversation: Conversation,
        scores: Mapping[str, float],
        risk: str,
        extra: Mapping[str, float],
        **words: str,
    ) -> Verdict:
        kept = self._format_kept(conversation)
        if self.options.reward == "release":
            value = scoring.release_reward(scores, bool(conversation.facts["guided"]), risk, kept)
        else:
            value = scoring.reward(scores, self.options.scale, risk, kept)
        overall = {"average": scoring.average(scores), "weighted": scoring.weighted(scores)}
        return Verdict(Outcome.OK, value, {**scores, **overall, "format_kept": float(kept), **extra}, **words)

    def _format_kept(self, conversation: Conversation) -> bool:
        """Whether every reply thinks aloud before it speaks, or none does, as the option `thinking` asks."""
        replies = [m.content.lstrip().casefold() for m in conversation.messages if m.role == "assistant"]
        thinks = [reply.startswith(_THOUGHT) for reply in replies]
        if self.options.thinking == "any":
            return True
        return all(thinks) if self.options.thinking == "on" else not any(thinks)

    def wants_feedback(self, example: Example, conversation: Conversation, verdict: Verdict) -> bool:
        """Returns False where the audit raised an alarm: such a draft is no basis for advice."""
        return verdict.dimensions.get("audit_risk", 0.0) == 0.0

    def rule_feedback(
        self, example: Example, conversation: Conversation, verdict: Verdict, rng: random.Random
    ) -> str | None:
        """Returns words about malformed or repeated turns, and about what a generated scene's facts show; else None."""
        said: Sequence[str] = [turn.text for turn in conversation.turns if turn.author == "policy"]
        words = []
        if not said or conversation.facts["malformed"]:
            words.append('Reply with one JSON object alone: {"action_type": "speak", "argument": "..."}.')
        if len(set(said)) < len(said):
            words.append("You did the same thing twice. Bring something new in every turn.")
        if (stand_in := STAND_INS.get(example.payload["kind"])) is not None and said:
            words.append(stand_in.advice(self.scene(example), conversation.turns) or "")
        return " ".join(word for word in words if word) or None

    def feedback_request(self, example: Example, conversation: Conversation, verdict: Verdict) -> JudgeRequest:
        dialogue, options = transcript(conversation.turns), self.options
        privileged = options.gold_in_prompt
        question = brief_question(self.scene(example), dialogue, verdict, options.feedback_words, privileged=privileged)
        return self.words_request(*question)

    def leak(self, example: Example, feedback: str) -> str:
        """Names what the other side keeps to itself and `feedback` tells: "private_fact" or "reference_ngram"."""
        return "" if self.options.gold_in_prompt else private_leak(self.scene(example), feedback)
