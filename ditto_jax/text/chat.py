"""Messages → token ids, append-only: what was sampled is never encoded again.

In: a chat (messages), later the reply that was sampled and the messages that follow it. Out: the ids that open the
prompt, and the ids to append after a sampled reply. Three formats: the chat template of a Hugging Face tokenizer,
markers that are control pieces of the vocabulary, and plain text for base models. Where there are turns, text cannot
open or close one. Who wrote which span is recorded by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ditto_jax.errors import ConfigError, ModelError
from ditto_jax.text.tokenizer import HuggingFaceTokenizer, Tokenizer
from ditto_jax.types import Chat, Message

ROLES = ("system", "user", "assistant")

# Given to templates that know them. Without the second they write today's date, and a run continued tomorrow would see
# other prompts.
_TEMPLATE_OPTIONS: Mapping[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}

# Stands in a rendered chat for text that only looks like a special token: the text in hexadecimal digits.
_REFERENCE = re.compile("\ue000((?:[0-9a-f]{2})+)\ue001")


class ChatFormat(Protocol):
    """How a policy is spoken to."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a reply."""
        ...

    def open(self, chat: Chat, speaker: str = "assistant") -> list[int]:
        """Returns the ids of a prompt: `chat` and the header after which the policy writes its reply.

        speaker: the role whose turn that is; "user" for models that were trained to write users' turns.
        """
        ...

    def extend(self, previous: Chat, new: Chat, *, last_id: int | None) -> list[int]:
        """Returns the ids to append after a sampled reply, so that the policy can write its next one.

        previous: everything so far, the sampled reply (its text) as last message. new: the messages that follow it.
        last_id: the last sampled id; unless it is the token that closes a turn, that token comes first. Raises
        ValueError if `previous` does not end with the assistant.
        """
        ...

    def reply(self, text: str) -> list[int]:
        """Returns the ids of a reply as the policy would write it: the text, and the token that ends it, if any.

        For text that somebody else wrote; what the policy sampled is never encoded again.
        """
        ...


class MarkerChat:
    """Turns between control pieces: <|role|> content <|end|>. For models that this project trains from scratch."""

    END = "<|end|>"

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        markers = {role: tokenizer.control_id(f"<|{role}|>") for role in ROLES}
        end = tokenizer.control_id(self.END)
        missing = [f"<|{role}|>" for role, marker in markers.items() if marker is None]
        if missing or end is None:
            raise ModelError(
                f"tokenizer without control pieces {', '.join(missing or [self.END])}: markers need all four"
            )
        self._markers = {role: marker for role, marker in markers.items() if marker is not None}
        self._end = end

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return (self._end, *self._tokenizer.eos_ids)

    def open(self, chat: Chat, speaker: str = "assistant") -> list[int]:
        return [*self._turns(chat), self._markers[speaker]]

    def extend(self, previous: Chat, new: Chat, *, last_id: int | None) -> list[int]:
        _check_reply_is_last(previous)
        return [*([] if last_id == self._end else [self._end]), *self.open(new)]

    def reply(self, text: str) -> list[int]:
        return [*self._tokenizer.encode(text), self._end]

    def _turns(self, chat: Chat) -> list[int]:
        ids = []
        for message in chat:
            _check_role(message)
            ids += [self._markers[message.role], *self._tokenizer.encode(message.content), self._end]
        return ids


class PlainChat:
    """Contents one after the other, a line each, without roles. For base models, which know no turns."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self._tokenizer.eos_ids

    def open(self, chat: Chat, speaker: str = "assistant") -> list[int]:
        bos = self._tokenizer.bos_id
        ids = [*([] if bos is None else [bos]), *self._tokenizer.encode(_lines(chat))]
        if not ids:
            raise ConfigError(
                "prompt='': this tokenizer has no token to begin with; give a prompt of at least one word"
            )
        return ids

    def extend(self, previous: Chat, new: Chat, *, last_id: int | None) -> list[int]:
        _check_reply_is_last(previous)
        return self._tokenizer.encode("\n" + _lines(new))

    def reply(self, text: str) -> list[int]:
        return [*self._tokenizer.encode(text), *self.stop_ids[:1]]


class TemplateChat:
    """The chat template that came with a Hugging Face tokenizer.

    Templates trim, rewrite or shorten earlier turns, so an extension is not found by rendering the reply again: a word
    stands in for it, and what the template writes after that word is what follows the sampled ids. Where the template
    leaves earlier turns alone, the appended ids equal those of the whole chat rendered at once.
    """

    def __init__(self, tokenizer: HuggingFaceTokenizer):
        self._tokenizer = tokenizer
        self._specials = re.compile(f"({'|'.join(map(re.escape, tokenizer.special_tokens)) or '(?!)'})")
        template = str(tokenizer.backend.get_chat_template())
        self._options = {name: value for name, value in _TEMPLATE_OPTIONS.items() if name in template}
        self._end = self._end_of_turn()

    @property
    def stop_ids(self) -> tuple[int, ...]:
        end = () if self._end is None else (self._end,)
        return tuple(dict.fromkeys((*end, *self._tokenizer.eos_ids)))

    def open(self, chat: Chat, speaker: str = "assistant") -> list[int]:
        if speaker == "assistant":
            return self._encode(self._render(chat, add_generation_prompt=True))
        stand_in = _absent_word(chat)  # templates open no turn but the assistant's: this one is opened by its content
        rendered = self._render([*chat, Message(speaker, stand_in)], add_generation_prompt=False)
        return self._encode(rendered.rpartition(stand_in)[0])

    def extend(self, previous: Chat, new: Chat, *, last_id: int | None) -> list[int]:
        _check_reply_is_last(previous)
        stand_in = _absent_word([*previous, *new])
        chat = [*previous[:-1], Message("assistant", stand_in), *new]
        ids = self._encode(self._after(stand_in, self._render(chat, add_generation_prompt=True)))
        return ids[1:] if ids[:1] == [last_id] == [self._end] else ids

    def reply(self, text: str) -> list[int]:
        return [*self._tokenizer.encode(text), *self.stop_ids[:1]]

    def _end_of_turn(self) -> int | None:
        """The special token that the template writes after a reply, if any."""
        chat = [Message("user", "question"), Message("assistant", _absent_word([]))]
        tail = self._after(chat[-1].content, self._render(chat, add_generation_prompt=False))
        ids = self._encode(tail)
        specials = {self._tokenizer.control_id(name) for name in self._tokenizer.special_tokens}
        return ids[0] if ids and ids[0] in specials else None

    def _after(self, stand_in: str, text: str) -> str:
        _, found, tail = text.rpartition(stand_in)
        if not found:
            raise ModelError(
                "the chat template drops replies of earlier turns; multi-turn tasks need one that keeps them"
            )
        return tail

    def _render(self, chat: Chat, *, add_generation_prompt: bool) -> str:
        import jinja2

        for message in chat:
            _check_role(message)
        try:
            text = self._tokenizer.backend.apply_chat_template(
                [{"role": message.role, "content": self._disarm(message.content)} for message in chat],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self._options,
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(message.role for message in chat)
            raise ModelError(f"the chat template refuses a chat with the roles {roles}: {error}") from error
        assert isinstance(text, str)  # ids only with tokenize=True
        return text

    def _disarm(self, content: str) -> str:
        """Replaces the text of special tokens by references, which `_encode` turns back into ordinary text."""
        return self._specials.sub(lambda found: f"\ue000{found.group().encode().hex()}\ue001", content)

    def _encode(self, rendered: str) -> list[int]:
        """The ids of a rendered chat; text with a reference in it is encoded as a whole, not in pieces."""
        ids, plain = [], ""
        for part in self._specials.split(rendered):
            if _REFERENCE.search(part):
                text = _REFERENCE.sub(lambda found: _dereference(found[1]), part)
                ids += [*self._tokenizer.encode_rendered(plain), *self._tokenizer.encode(text)]
                plain = ""
            else:
                plain += part
        return [*ids, *self._tokenizer.encode_rendered(plain)]


def make_chat_format(tokenizer: Tokenizer) -> ChatFormat:
    """Returns the format that the tokenizer is made for: its chat template, its turn markers, or plain text."""
    if isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.backend.chat_template:
        return TemplateChat(tokenizer)
    if tokenizer.control_id(MarkerChat.END) is not None:
        return MarkerChat(tokenizer)
    return PlainChat(tokenizer)


def common_prefix(a: Sequence[int] | np.ndarray, b: Sequence[int] | np.ndarray) -> int:
    """Returns how many leading ids two sequences share."""
    length = min(len(a), len(b))
    differs = np.asarray(a)[:length] != np.asarray(b)[:length]
    return int(np.argmax(differs)) if differs.any() else length


def _dereference(digits: str) -> str:
    return bytes.fromhex(digits).decode(errors="replace")


def _absent_word(chat: Chat) -> str:
    """A word that no message contains, made of letters so that no template touches it."""
    word = "standin"
    while any(word in message.content for message in chat):
        word += "x"
    return word


def _lines(chat: Chat) -> str:
    for message in chat:
        _check_role(message)
    return "\n".join(message.content for message in chat)


def _check_role(message: Message) -> None:
    if message.role not in ROLES:
        raise ValueError(f"message role={message.role!r}: choose one of {', '.join(ROLES)}")


def _check_reply_is_last(previous: Chat) -> None:
    if not previous or previous[-1].role != "assistant":
        last = previous[-1].role if previous else "nothing"
        raise ValueError(f"a chat is extended after the policy's reply, but it ends with {last}")
