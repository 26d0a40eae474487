"""Played episode → what a simulator of people did that no person does: counted beside the score, never part of it.

checkpoint, **evaluation**, report

In: a conversation in which the policy spoke as somebody, and how the task says that it ended. Out: names of faults. All
signs are words and counts that a reader can check in the transcript; no model is asked. Knows no task.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ditto_jax.tasks.answers import visible_text
from ditto_jax.types import Conversation, Turn

ROLE_INVERSION = "role_inversion"  # speaks as the assistant, or writes the other side's lines
REASONING_LEAK = "reasoning_leak"  # says aloud what it thinks about its task
PREMATURE_ENDING = "premature_ending"  # ends, or falls silent, while there is something left to say
MISSING_ENDING = "missing_ending"  # goes on when all is said
REPETITION = "repetition"  # says again what was said, or loops within a turn
EMPTY_TURN = "empty_turn"  # says nothing visible
FAULTS = (ROLE_INVERSION, REASONING_LEAK, PREMATURE_ENDING, MISSING_ENDING, REPETITION, EMPTY_TURN)

_ENDINGS = {"premature": PREMATURE_ENDING, "missing": MISSING_ENDING}
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_SHORTEST_REPEATED = 4  # words: people do say "yes, please" twice
_LOOP_WORDS, _LOOP_GRAM, _LOOP_DISTINCT = 20, 4, 0.5

_IS_MACHINE = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|\bi(?:['’]m| am) (?:just |only )?an? (?:ai|(?:large )?language model|virtual assistant|chatbot)\b",
    re.IGNORECASE,
)
_SERVES = re.compile(
    r"\bhow (?:can|may) i (?:help|assist)(?: you)?\b"
    r"|\bi(?:['’]d| would) be (?:happy|glad) to (?:help|assist)\b"
    r"|\bi(?:['’]m| am) here to (?:help|assist)\b"
    r"|\banything else (?:i can|you(?:['’]d| would) like)\b"
    r"|\blet me know if you (?:need|have) any\b",
    re.IGNORECASE,
)
_THINKS_ALOUD = re.compile(
    r"</?(?:seed:)?(?:think|thinking|thought|reasoning|analysis|scratchpad)>"
    r"|^\W*(?:my )?(?:thoughts?|thinking|reasoning|rationale|analysis|internal monologue)\s*:"
    r"|\bthe user (?:wants|is asking|asks|asked|said)\b"
    r"|\bi (?:need|have|should|am (?:asked|supposed)) (?:to )?(?:respond|reply|act|answer|write|simulate) as\b"
    r"|\b(?:stay|staying|remain) in character\b"
    r"|\bthe next user (?:message|turn)\b",
    re.IGNORECASE | re.MULTILINE,
)


def simulator_faults(conversation: Conversation, ending: str = "", as_user: bool = False) -> frozenset[str]:
    """Returns which of FAULTS an episode shows.

    ending: "premature", "missing", or "" for one that is right or that the task cannot tell. as_user: whether the
    policy plays the user of an assistant, who never offers to help.
    """
    said = [visible_text(text) for text in conversation.policy_texts]
    found = {_ENDINGS[ending]} if ending else set()
    if any(not text for text in said) or conversation.facts.get("ended") == "silence":
        found.add(EMPTY_TURN)
    if any(_THINKS_ALOUD.search(text) for text in said):
        found.add(REASONING_LEAK)
    if any(_IS_MACHINE.search(text) or (as_user and _SERVES.search(text)) for text in said):
        found.add(ROLE_INVERSION)
    if _speaks_for_others(conversation, said, as_user):
        found.add(ROLE_INVERSION)
    if any(map(_loops, said)) or _says_again(conversation.turns):
        found.add(REPETITION)
    return frozenset(found)


def _speaks_for_others(conversation: Conversation, said: Sequence[str], as_user: bool) -> bool:
    if float(conversation.facts.get("spoke_for_others") or 0) > 0:
        return True
    names = {turn.speaker for turn in conversation.turns if turn.author != "policy"}
    names -= {turn.speaker for turn in conversation.turns if turn.author == "policy"}
    names |= {"Assistant", "AI"} if as_user else set()
    if not names:
        return False
    line = re.compile(rf"^\W*(?:{'|'.join(map(re.escape, sorted(names)))})\W*:", re.IGNORECASE | re.MULTILINE)
    return any(line.search(text) for text in said)


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def _loops(text: str) -> bool:
    words = _words(text)
    if len(words) < _LOOP_WORDS:
        return False
    grams = [words[i : i + _LOOP_GRAM] for i in range(len(words) - _LOOP_GRAM + 1)]
    return len(set(grams)) < _LOOP_DISTINCT * len(grams)


def _says_again(turns: Sequence[Turn]) -> bool:
    """Whether the policy says what was said before word for word, by itself or by anybody else."""
    heard: set[tuple[str, ...]] = set()
    for turn in turns:
        words = _words(turn.text)
        if len(words) < _SHORTEST_REPEATED:
            continue
        if turn.author == "policy" and words in heard:
            return True
        heard.add(words)
    return False


def fault_counts(episodes: Iterable[Iterable[str]]) -> Mapping[str, int]:
    """Returns how many episodes show each of FAULTS, zeros included; episodes: the faults of each."""
    counts = Counter(fault for faults in episodes for fault in set(faults))
    return {name: counts[name] for name in FAULTS}
