"""One scene as it is played: whose turn it is, what everybody has heard so far, and when it ends.

In: a scene, the openings of its characters, and ports. Out: a conversation whose turns hold what was said, thoughts
included; others heard it without. The same for drafts and refined scenes. Scores nothing and writes no prompt.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Mapping, Sequence

from ditto_jax.keys import derive
from ditto_jax.tasks.base import Ports, ReplyPort
from ditto_jax.tasks.coser.files import reference_turns
from ditto_jax.tasks.coser.lines import END, ENVIRONMENT, heard, next_speaker, own_words, spoken
from ditto_jax.tasks.coser.prompts import CUE, DRAWN, START
from ditto_jax.tasks.dialogue import Voice, cut_middle
from ditto_jax.types import Chat, Conversation, Example, Turn

NARRATOR, NEXT_SPEAKER = "narrator", "next_speaker"  # roles of auxiliary models
_THINKS = re.compile(r"\A\s*<(?:seed:)?think>", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Limits:
    """max_rounds: turns that are played, those given by the row apart. min_rounds: turns before which nobody ends the
    scene. max_words: the longest turn that others hear whole.
    """

    max_rounds: int
    min_rounds: int
    max_words: int


class _Listener:
    """A participant, or the director: hears the turns since it last spoke, then speaks."""

    def __init__(self, name: str, port: ReplyPort, opening: Chat):
        self.name, self.voice = name, Voice(port, opening)
        self.voice.hear(START)
        self._known = 0

    async def speak(self, turns: Sequence[Turn], max_words: int, cue: str = "") -> str:
        for turn in turns[self._known :]:
            own = turn.speaker == self.name
            if own and turn.author != "given":
                continue  # it is in the chat already, as this listener's reply
            self.voice.hear(cut_middle(f"{turn.speaker}: {turn.text}" if own else heard(turn), max_words))
        if cue:
            self.voice.hear(cue)
        self._known = len(turns)
        return (await self.voice.speak()).text


class Stage:
    """Plays one scene. `openings` are those of the characters; the auxiliary roles have their own."""

    def __init__(
        self,
        example: Example,
        ports: Ports,
        openings: Mapping[str, Chat],
        narrator: Chat,
        director: Chat,
        limits: Limits,
    ):
        self._example, self._ports, self._limits = example, ports, limits
        self._openings = {**openings, ENVIRONMENT: narrator}
        self._director_opening = director
        self._director: _Listener | None = None
        self._earliest_end = 0
        self._listeners: dict[str, _Listener] = {}
        self._turns: list[Turn] = []
        self._thinkers: set[str] = set()
        self._drawn = self._for_others = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Everybody who can have a turn."""
        return tuple(self._openings)

    async def play(self) -> Conversation:
        """Returns the scene once it has ended. A failed auxiliary model raises AuxiliaryFailure."""
        payload = self._example.payload
        given = reference_turns(payload)[: payload["continue_from"]]
        self._turns += given
        self._earliest_end = max(self._limits.min_rounds, len(given) + 1)
        speaker = str(payload["first"]) if not given else await self._next_speaker(given[-1].speaker)
        ended, last, reply = "rounds", None, ""
        for _ in range(self._limits.max_rounds):
            if speaker == END:
                ended = "director"
                break
            is_character = speaker != ENVIRONMENT
            text = await self._listener(speaker).speak(self._turns, self._limits.max_words)
            if is_character:
                last, reply = self._listener(speaker), text
                if _THINKS.match(text):
                    self._thinkers.add(speaker)
            words, for_others = own_words(text, speaker, self.names)
            self._for_others += for_others
            if not words:
                ended = "silence"
                break
            self._turns.append(Turn(speaker, words, "policy" if is_character else "llm"))
            if len(self._turns) < len(given) + self._limits.max_rounds:
                speaker = await self._next_speaker(speaker)
        return Conversation(last.voice.chat if last else (), reply, tuple(self._turns), self._facts(ended))

    def _listener(self, name: str) -> _Listener:
        """The participant, asked for when it first speaks: a character without a turn leaves no transcript."""
        if name not in self._listeners:
            port = self._ports.llm(NARRATOR) if name == ENVIRONMENT else self._ports.policy(name)
            self._listeners[name] = _Listener(name, port, self._openings[name])
        return self._listeners[name]

    async def _next_speaker(self, current: str) -> str:
        names = [name for name in self.names if name != current]
        if self._director is None:
            self._director = _Listener("", self._ports.llm(NEXT_SPEAKER), self._director_opening)
        cue = CUE.format(names=", ".join(names), end=END)
        chosen = next_speaker(await self._director.speak(self._turns, self._limits.max_words, cue), names)
        if chosen is not None and (chosen != END or len(self._turns) >= self._earliest_end):
            return chosen
        self._drawn += 1
        drawn = self._draw([name for name in (*self._example.payload["major"], ENVIRONMENT) if name != current])
        self._director.voice.hear(DRAWN.format(name=drawn))
        return drawn

    def _draw(self, names: Sequence[str]) -> str:
        """A name by a hash of what was said: other scenes draw anew, the same scene draws the same."""
        return random.Random(derive(0, "coser", self._example.id, spoken(self._turns))).choice(list(names))

    def _facts(self, ended: str) -> dict[str, str | float]:
        heard_from = {turn.speaker for turn in self._turns if turn.author == "policy"} | self._thinkers
        return {
            "ended": ended,
            "turns": float(len(self._turns)),
            "drawn_speakers": float(self._drawn),
            "spoke_for_others": float(self._for_others),
            "thinking_share": len(self._thinkers) / max(1, len(heard_from)),
        }
