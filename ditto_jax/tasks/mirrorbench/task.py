"""The task `mirrorbench`: the policy writes every user turn of a chat, given what the user is after.

In: conversations of real users. Out: an episode over the slots of the real conversation, in which an assistant model
(or a replay of the real one) answers; the judge's questions; lexical gaps to the real users. What the real user said is
never shown to the policy, unless `gold_in_prompt` says so.
"""

from __future__ import annotations

import dataclasses
import random
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pydantic

from ditto_jax.judge.fence import FENCE_NOTE, fence
from ditto_jax.tasks.answers import visible_text
from ditto_jax.tasks.base import JudgeRequest, PairQuestion, Ports, Scored, Source
from ditto_jax.tasks.dialogue import Voice, cut_middle, transcript
from ditto_jax.tasks.leak import reference_ngram
from ditto_jax.tasks.lexical import TOKENIZER, hdd, mattr, word_tokens, yules_k, z_scores
from ditto_jax.tasks.mirrorbench.files import mirror_example, read_mirrorbench
from ditto_jax.tasks.mirrorbench.pairwise import realness_question
from ditto_jax.tasks.option_checks import check_at_least, check_choice
from ditto_jax.tasks.soul_task import SoulOptions, SoulTask
from ditto_jax.tasks.splits import SPLITS, group_name
from ditto_jax.types import Chat, Conversation, Example, Message, Outcome, Turn, Verdict

ASSISTANT = "assistant"
_USER, _AI = "User", "Assistant"
_PREFIX = re.compile(r"\A(?:user|human|me)\s*:\s*", re.IGNORECASE)
_STATISTICS = {f"mattr_{TOKENIZER}": mattr, f"hdd_{TOKENIZER}": hdd, f"yules_k_{TOKENIZER}": yules_k}

_SYSTEM = (
    "You are a person who uses an AI assistant. Write only that person's next message: no name before it, no notes, no "
    "quotation marks around it. Match how long, how polished and how specific the messages of real people are.\n"
    "What this person is after: {goal}"
)
FIRST_TURN = "The chat is empty. Write your first message."
NEXT_TURN = "The assistant said:\n{text}\n\nWrite your next message."
_ASSISTANT_SYSTEM = (
    "You are the AI assistant in the chat below. Answer the person's latest message. For consistency, this is how the "
    "original chat went; keep to its facts and its manner, but answer what is said now:\n{original}"
)
_JUDGE = (
    "You compare the messages of a simulated user with those of the real user of the same chat. Look at the user's "
    "turns only, and only at three things: style (length, tone, polish), realism, and fit to the moment of the chat. "
    "Do not compare content: other wishes in the same style are similar. "
    f"{FENCE_NOTE}\n"
    'Reply as JSON {"reasoning": "two or three sentences", "score": number}; '
    "0 is unlike, 0.5 partly alike, 1 highly alike."
)


def user_system(goal: str) -> str:
    """Returns what the person is told who uses the assistant."""
    return _SYSTEM.format(goal=goal)


class Likeness(pydantic.BaseModel):
    """Reply of the judge: how like the real user the simulated one writes."""

    model_config = pydantic.ConfigDict(extra="ignore")
    reasoning: str = pydantic.Field(max_length=8000)
    score: float = pydantic.Field(ge=0.0, le=1.0, allow_inf_nan=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MirrorBenchOptions(SoulOptions):
    """Options of the task `mirrorbench`, beside those of every task.

    max_turns: turns of the real chat that are played, both sides counted. assistant: "llm" answers with the model of
    the role "assistant"; "replay" with the real assistant's turns, without a model. seed_opening: a chat that the
    assistant opens begins with its real words (the release generates them). gold_in_prompt: the refined prompt shows
    the real user's messages.
    """

    feedback_placement: str = "system"
    max_turns: int = 10
    assistant: str = "llm"
    seed_opening: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_at_least("tasks.mirrorbench.options.max_turns", self.max_turns, 1, example=10)
        check_choice("tasks.mirrorbench.options.assistant", self.assistant, ("llm", "replay"))


class MirrorBench(SoulTask[MirrorBenchOptions]):
    """Likeness of simulated to real user turns, judged; with lexical gaps to the real users over a whole evaluation."""

    name = "mirrorbench"
    version = "1"
    options_type = MirrorBenchOptions
    many_turns = True
    in_character = True
    simulates_user = True
    sources: ClassVar = {"files": ("test",), "parquet": SPLITS}

    @property
    def auxiliary_roles(self) -> tuple[str, ...]:
        return (ASSISTANT,) if self.options.assistant == "llm" else ()

    def read_files(self, path: Path, source: Source) -> list[Example]:
        return read_mirrorbench(path, source.split, source.rows)

    def released_row(self, file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
        return mirror_example(file, where, example_id, info)

    def evaluation_only(self, source: Source) -> str:
        return "the public MirrorBench conversations are its test set" if source.kind == "files" else ""

    def groups(self, example: Example) -> frozenset[str]:
        return frozenset({group_name("conversation", str(example.payload["conversation_id"]))})

    def breakdown(self, example: Example) -> Mapping[str, str]:
        return {"dataset": str(example.payload["dataset"])}

    def ending(self, example: Example, conversation: Conversation) -> str:
        """Returns "premature" for a user who falls silent while the real one went on."""
        return "premature" if conversation.facts.get("ended") == "silence" else ""

    def slots(self, example: Example) -> tuple[Mapping[str, str], ...]:
        """Returns the turns of the real chat that are played: the first `max_turns`, up to the last user turn."""
        turns = tuple(example.payload["turns"])[: self.options.max_turns]
        while turns and turns[-1]["role"] == "assistant":
            turns = turns[:-1]
        return turns

    def opening(self, example: Example, feedback: str | None = None) -> tuple[Message, ...]:
        slots = self.slots(example)
        goal = cut_middle(str(example.payload["task_description"]), self.options.max_words)
        first = FIRST_TURN
        if slots and slots[0]["role"] == "assistant" and self.options.seed_opening:
            first = NEXT_TURN.format(text=self._shown(slots[0]["content"]))
        chat = self.placed((Message("system", user_system(goal)), Message("user", first)), feedback)
        if feedback is not None and self.options.gold_in_prompt:
            messages = "\n".join(cut_middle(turn["content"], 500) for turn in slots if turn["role"] == "user")
            note = f"\n\nMessages of the real person, for their style:\n{cut_middle(messages, 2000)}"
            chat = (Message("system", chat[0].content + note), *chat[1:])
        return chat

    async def episode(self, example: Example, ports: Ports, feedback: str | None = None) -> Conversation:
        """Plays the slots in order; ends early when the policy says nothing visible."""
        user = Voice(ports.policy(), self.opening(example, feedback))
        turns: list[Turn] = []
        reply, ended = "", "slots"
        for number, slot in enumerate(self.slots(example)):
            if slot["role"] == "user":
                reply = (await user.speak()).text
                text = user_words(reply)
                if not text:
                    ended = "silence"
                    break
                turns.append(Turn(_USER, text, "policy"))
            elif number == 0 and self.options.seed_opening:
                turns.append(Turn(_AI, slot["content"], "given"))
            else:
                turn = await self._answer(example, ports, turns, number)
                turns.append(turn)
                user.hear(NEXT_TURN.format(text=self._shown(turn.text)))
        return Conversation(user.chat, reply, tuple(turns), {"ended": ended, "turns": float(len(turns))})

    async def _answer(self, example: Example, ports: Ports, turns: Sequence[Turn], number: int) -> Turn:
        if self.options.assistant == "replay":
            return Turn(_AI, self.slots(example)[number]["content"], "given")
        original = cut_middle(transcript(real_turns(self.slots(example))), self.options.max_words)
        chat = [Message("system", _ASSISTANT_SYSTEM.format(original=original))]
        for turn in turns:
            role = "assistant" if turn.speaker == _AI else "user"
            chat.append(Message(role, turn.text))
        if chat[1:] and chat[1].role == "assistant":  # chat templates want the user first
            chat.insert(1, Message("user", "Hello."))
        return Turn(_AI, visible_text((await ports.llm(ASSISTANT).reply(chat)).text), "llm")

    def scripted_reply(self, example: Example, role: str, chat: Chat, rng: random.Random) -> str | None:
        """Returns what the real assistant said at the same place."""
        if role != ASSISTANT:
            return None
        spoken = sum(message.role == "user" for message in chat[1:])
        real = [turn["content"] for turn in self.slots(example) if turn["role"] == "assistant"]
        return real[min(spoken, len(real)) - 1] if real and spoken else "How can I help?"

    def _shown(self, text: str) -> str:
        return cut_middle(text, self.options.max_words)

    def rule_score(self, example: Example, conversation: Conversation) -> Verdict | None:
        """Returns 0 for a user who said nothing; everything else is for the judge."""
        if any(turn.author == "policy" for turn in conversation.turns):
            return None
        return Verdict(Outcome.OK, 0.0, {"likeness": 0.0}, detail="no visible user turn")

    def score_requests(self, example: Example, conversation: Conversation) -> Mapping[str, JudgeRequest]:
        real, simulated = transcript(real_turns(self.slots(example))), transcript(conversation.turns)
        goal = example.payload["task_description"]
        user = f"What the user is after: {goal}\n\nReal chat:\n{fence(real)}\n\nSimulated chat:\n{fence(simulated)}"
        messages = (Message("system", _JUDGE), Message("user", user))
        return {"likeness": JudgeRequest(messages, Likeness, f"{self.name}-likeness-{self.version}")}

    def judged_score(
        self, example: Example, conversation: Conversation, replies: Mapping[str, pydantic.BaseModel]
    ) -> Verdict:
        reply = replies["likeness"]
        assert isinstance(reply, Likeness)
        dimensions = {"likeness": reply.score, **self._gaps(example, conversation)}
        return Verdict(Outcome.OK, reply.score, dimensions, critique=reply.reasoning)

    def proxy_score(self, example: Example, conversation: Conversation) -> Verdict:
        """Returns how close the length of turns and the variety of words are to the real user's: style in part only."""
        gaps = self._gaps(example, conversation)
        lengths = [len(word_tokens(text)) for text in (_said(conversation.turns), example.gold)]
        score = statistics.fmean((min(lengths) / max(1, *lengths), 1.0 - min(1.0, gaps[f"mattr_{TOKENIZER}_gap"])))
        return Verdict(Outcome.OK, score, {"lexical_likeness": score, **gaps}, detail="lexical stand-in")

    def controls(self, example: Example, conversation: Conversation) -> Mapping[str, tuple[Example, Conversation]]:
        """Returns the real chat judged as if it were simulated, and the simulated one as if it were the real one."""
        as_slots = tuple(
            {"role": "assistant" if turn.speaker == _AI else "user", "content": turn.text}
            for turn in conversation.turns
        )
        real = real_turns(self.slots(example))
        human = Conversation((), "", tuple(dataclasses.replace(turn, author=_author(turn)) for turn in real))
        as_real = dataclasses.replace(example, payload={**example.payload, "turns": as_slots})
        return {"human_vs_human": (example, human), "proxy_vs_proxy": (as_real, conversation)}

    def pair_questions(self, example: Example, conversation: Conversation) -> Mapping[str, PairQuestion]:
        goal = str(example.payload["task_description"])
        human, proxy = transcript(real_turns(self.slots(example))), transcript(conversation.turns)

        def question(first: str, second: str) -> PairQuestion:
            in_order = realness_question(goal, first, second, self.version)
            return PairQuestion(in_order, realness_question(goal, second, first, self.version))

        return {
            "proxy_vs_human": question(proxy, human),
            "human_vs_human": question(human, human),
            "proxy_vs_proxy": question(proxy, proxy),
        }

    def _gaps(self, example: Example, conversation: Conversation) -> dict[str, float]:
        own, real = word_tokens(_said(conversation.turns)), word_tokens(_said(real_turns(self.slots(example))))
        return {f"{name}_gap": abs(measure(own) - measure(real)) for name, measure in _STATISTICS.items()}

    def batch_metrics(self, scored: Sequence[Scored]) -> Mapping[str, float]:
        """Mean z-score of each lexical statistic of the simulated users among the real ones."""
        own = [word_tokens(_said(one.conversation.turns)) for one in scored]
        real = [word_tokens(_said(real_turns(self.slots(one.example)))) for one in scored]
        return {
            f"{name}_z": statistics.fmean(z_scores([measure(t) for t in own], [measure(t) for t in real]))
            for name, measure in _STATISTICS.items()
            if own
        }

    def rule_feedback(
        self, example: Example, conversation: Conversation, verdict: Verdict, rng: random.Random
    ) -> str | None:
        """Returns words about the length of messages, the one fault of style that a rule can see."""
        spoken = [len(turn.text.split()) for turn in conversation.turns if turn.author == "policy"]
        real = [len(turn["content"].split()) for turn in self.slots(example) if turn["role"] == "user"]
        if not spoken or not real:
            return None
        own, wanted = statistics.fmean(spoken), statistics.fmean(real)
        if own > 1.5 * wanted:
            return "Your messages are far longer than this person's; say less, and leave out polish."
        if own < wanted / 1.5:
            return "Your messages are far shorter than this person's; say more of what you are after."
        return None

    def feedback_request(self, example: Example, conversation: Conversation, verdict: Verdict) -> JudgeRequest:
        system = (
            "You coach someone who imitates how real people write to an AI assistant. From the assessment, name the "
            "one most important fault of style in one sentence, and say what to do instead. Quote nobody."
        )
        user = f"Score: {verdict.score}\nAssessment:\n{fence(verdict.critique or verdict.detail)}"
        return self.words_request(system, user)

    def leak(self, example: Example, feedback: str) -> str:
        """Names "reference_ngram" if the words hold eight words in a row of the real user."""
        return "" if self.options.gold_in_prompt else reference_ngram(feedback, example.gold)


def user_words(reply: str) -> str:
    """Returns the user's words in a reply: without thoughts, then without a leading "User:"."""
    return _PREFIX.sub("", visible_text(reply)).strip()


def real_turns(slots: Sequence[Mapping[str, str]]) -> list[Turn]:
    """Returns turns of the real chat as a dialogue."""
    return [Turn(_AI if slot["role"] == "assistant" else _USER, slot["content"], "given") for slot in slots]


def _author(turn: Turn) -> str:
    return "given" if turn.speaker == _AI else "policy"


def _said(turns: Sequence[Turn]) -> str:
    return " ".join(turn.text for turn in turns if turn.speaker == _USER)
