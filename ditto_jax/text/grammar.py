"""Form or JSON schema of a reply → which tokens may come next, so that the reply cannot break it.

In: a tokenizer; for each reply what it is held to. Out: masks for a sampler. The grammar itself is the work of
llguidance; a schema that it does not know in full is refused, never half obeyed. Thoughts come before the form and are
free. Which tokens may come depends on the tokens before and on nothing else, so that it can be found out again.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ditto_jax.reply_form import FormError, HeldTo, ReplyForm, literal
from ditto_jax.text.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer

_COMPILED = 512  # grammars that are kept
_SPELLED = 256  # tokens of a form that `check` tries to spell
_THOUGHT = "(?:seed:)?think>"  # as `tasks.answers` reads it
_OPENED = re.compile(rf"<{_THOUGHT}\s*\Z")
_CLOSED = re.compile(rf"</{_THOUGHT}".encode())
_CLOSING = "</think>\n"
_SPACE = r"\s{0,2}"  # before an answer; replies are stripped
# Free white space would let a model write nothing else. The separators are those that models write most.
_AS_WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class GrammarMask:
    """How far one reply has come in its grammar."""

    def __init__(self, matcher: Any):
        self._matcher = matcher

    def fill(self, words: np.ndarray) -> None:
        """Writes the bits of the tokens that may come next into int32[ceil(V / 32)].

        Raises FormError if there is none: the tokenizer cannot spell what must come.
        """
        from llguidance.numpy import fill_next_token_bitmask

        bits = np.zeros((1, len(words)), np.int32)
        fill_next_token_bitmask(self._matcher, bits, 0)
        if self._matcher.is_error() or not bits.any():
            raise self._unspelled("no token")
        words[:] = bits[0]

    def take(self, token: int) -> bool:
        """Returns whether the reply is complete with this token. Raises FormError for one that cannot come."""
        if not self._matcher.consume_token(token):
            # What is forced and has no tokens is only noticed once one of them was drawn.
            raise self._unspelled(f"token {token} cannot, and so none")
        return self._matcher.is_stopped()

    def _unspelled(self, what: str) -> FormError:
        found = _first_line(self._matcher) or "nothing is allowed"
        return FormError(
            f"{what} can go on a reply in its form ({found}): this tokenizer cannot spell it; use a model whose "
            "tokenizer has all bytes, or turn the constraint off"
        )


class Grammars:
    """Makes masks for one tokenizer. stop_ids: tokens that may end a reply once its form is complete."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int]):
        self.words = -(-vocab_size // 32)
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._stop_ids = [token for token in dict.fromkeys(stop_ids) if 0 <= token < vocab_size]
        self._compiled = functools.lru_cache(_COMPILED)(self._compile)
        self._opening_id, self._closing_id = map(tokenizer.control_id, ("<think>", "</think>"))

    def json(self, schema: Mapping[str, Any]) -> GrammarMask:
        """Returns the mask of a reply that is compact JSON; raises FormError for a schema that cannot be enforced."""
        self._require_library()
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_flexible": False})
        except ValueError as error:
            raise FormError(str(error)) from None
        return GrammarMask(self._matcher(grammar))

    def mask(self, held: HeldTo) -> FormMask:
        """Returns the mask of a reply that begins now; raises FormError for a form that cannot be enforced."""
        return FormMask(self, held)

    def is_in_thought(self, prompt: Sequence[int]) -> bool:
        """Returns whether a prompt ends inside a thought that its chat template has opened."""
        last = list(prompt[-4:])
        if self._opening_id is not None and self._opening_id in last:
            return self._closing_id not in last
        return _OPENED.search(self._tokenizer.decode(prompt[-16:])) is not None

    def check(self, form: ReplyForm) -> None:
        """Returns nothing; raises FormError if a form cannot be enforced, or cannot be spelled in these tokens.

        The shortest way through the form is tried; another may still meet a text without tokens.
        """
        mask = FormMask(self, HeldTo(form, budget=0))
        wanted = [ids[0] for text in ('"', "<") if len(ids := self.prepared.tokenize_str(text)) == 1]
        for _ in range(_SPELLED):
            words = np.zeros(self.words, np.int32)
            mask.fill(words)
            allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
            if mask.take(next((token for token in wanted if token in allowed), int(allowed[0]))):
                return

    @functools.cached_property
    def prepared(self) -> Any:
        """The tokenizer as llguidance knows it."""
        self._require_library()
        if not self._stop_ids:
            raise FormError("this model has no token that ends a reply, so that no form can be complete; use another")
        import llguidance
        import llguidance.hf

        if isinstance(self._tokenizer, HuggingFaceTokenizer):
            backend: Any = self._tokenizer.backend
            return llguidance.hf.from_tokenizer(backend, n_vocab=self._vocab_size, eos_token=self._stop_ids)
        assert isinstance(self._tokenizer, SentencePieceTokenizer)
        wrapper = _wrapped(self._tokenizer, self._vocab_size, self._stop_ids)
        return llguidance.LLTokenizer(wrapper, n_vocab=self._vocab_size, eos_token=self._stop_ids)

    def whole(self, form: ReplyForm, in_thought: bool) -> Any:
        """Returns a matcher of a reply from its beginning."""
        rules, parts = [], []
        if form.thinks and not in_thought:
            parts.append(self._special(self._opening_id, f"/{_SPACE}<{_THOUGHT}/"))
        if form.thinks or in_thought:
            parts.append("thought")
            closing = self._special(self._closing_id, "")
            text = "/(?s:.*)/"
            rules.append(f"thought: {text} {closing}" if closing else rf"thought[lazy]: /(?s:.*)<\/{_THOUGHT}/")
        return self._compiled(self._lark(form, parts, rules)).deep_copy()

    def closing(self, form: ReplyForm, in_thought: bool) -> Any:
        """Returns a matcher of what is left of a reply whose thought, or else reasoning, ends now."""
        pattern = f"/{_slashed(literal(form.before) if in_thought else '')}({_slashed(form.regex)})/"
        closing = [self._special(self._closing_id, f"/{_slashed(literal(_CLOSING))}/")] if in_thought else []
        return self._compiled(" ".join(["start:", *closing, pattern])).deep_copy()

    def ends_thought(self, token: int, text: bytes) -> int:
        """Returns where in the text of a reply, `token` its last, the visible part begins; -1 inside a thought."""
        if token == self._closing_id:
            return len(text)
        found = _CLOSED.search(text)
        return -1 if found is None else found.end()

    @staticmethod
    def _special(token: int | None, otherwise: str) -> str:
        return otherwise if token is None else f"<[{token}]>"

    @staticmethod
    def _lark(form: ReplyForm, parts: list[str], rules: list[str]) -> str:
        if form.schema is None:
            return "\n".join([" ".join(["start:", *parts, f"/{_SPACE}({_slashed(form.pattern)})/"]), *rules])
        body = json.dumps({"x-guidance": _AS_WRITTEN, **form.schema})
        return "\n".join([" ".join(["start:", *parts, f"/{_SPACE}/", "body"]), *rules, f"body: %json {body}"])

    def _compile(self, lark: str) -> Any:
        self._require_library()
        from llguidance import LLMatcher

        return self._matcher(LLMatcher.grammar_from_lark(lark))

    def _matcher(self, grammar: str) -> Any:
        from llguidance import LLMatcher

        matcher = LLMatcher(self.prepared, grammar, log_level=0)
        if matcher.is_error():
            raise FormError(f"the form cannot be enforced: {matcher.get_error().strip()}")
        return matcher

    @staticmethod
    def _require_library() -> None:
        if importlib.util.find_spec("llguidance") is None:
            raise FormError("forms of replies need llguidance, which is not here; pip install 'ditto-jax[constrained]'")


class FormMask:
    """How far one reply has come in its form.

    A thought, or reasoning before the answer, is ended where the answer needs the tokens that are left.
    """

    def __init__(self, grammars: Grammars, held: HeldTo):
        form = held.form
        self._grammars = grammars
        self._form = form
        self._left = held.budget
        self._in_thought = form.thinks or held.in_thought
        self._is_free = bool(form.room) and (self._in_thought or form.reasoning)
        self._half = held.budget // 2
        self._text = b""
        self._visible_from = -1 if self._in_thought else 0
        self._mask = GrammarMask(grammars.whole(form, held.in_thought))

    def fill(self, words: np.ndarray) -> None:
        """Writes the bits of the tokens that may come next into int32[ceil(V / 32)]; raises FormError without any."""
        if self._is_free and self._left <= self._reserve:
            self._mask = GrammarMask(self._grammars.closing(self._form, self._in_thought))
            self._is_free = False
        self._mask.fill(words)

    def take(self, token: int) -> bool:
        """Returns whether the reply is complete with this token; raises FormError for one that may not come."""
        self._left -= 1
        if self._is_free:
            self._read(token)
        return self._mask.take(token)

    @property
    def _reserve(self) -> int:
        """Tokens that are kept for what must still be said."""
        closing = len(_CLOSING) + len(self._form.before) if self._in_thought else 0
        return min(closing + self._form.room, self._half)

    def _read(self, token: int) -> None:
        """Finds out whether the free part is over."""
        self._text += self._grammars.prepared.decode_bytes([token])
        if self._in_thought:
            self._visible_from = self._grammars.ends_thought(token, self._text)
            self._in_thought = self._visible_from < 0
        if not self._in_thought:
            visible = self._text[self._visible_from :].lstrip()
            self._is_free = self._form.reasoning and b"<" not in visible[len(self._form.before.encode()) :]


def _first_line(matcher: Any) -> str:
    """What went wrong, without the state that the library prints with it."""
    return matcher.get_error().partition("\n")[0]


def _slashed(pattern: str) -> str:
    """A regular expression as it stands between slashes."""
    return re.sub(r"(?<!\\)/", r"\\/", pattern).replace("\n", "\\n")


def _wrapped(tokenizer: SentencePieceTokenizer, vocab_size: int, stop_ids: list[int]) -> Any:
    from llguidance import TokenizerWrapper

    pieces = tokenizer.piece_bytes()
    pieces += [b""] * (vocab_size - len(pieces))  # embeddings may be padded
    # Of several pieces that write the same the last one: single bytes come first, and no text is made of them.
    ids = {piece: token for token, piece in enumerate(pieces) if piece}
    longest = max(map(len, ids))
    named = [piece or b"<control %d>" % token for token, piece in enumerate(pieces)]  # no two controls are alike

    class Pieces:
        eos_token_id = stop_ids[0]
        bos_token_id = tokenizer.bos_id
        tokens = named
        special_token_ids = tuple(token for token, piece in enumerate(pieces) if not piece)

        def __call__(self, text: bytes) -> list[int]:
            """Longest pieces first: the tokenizer itself would put a space before what is in the middle of a text."""
            found = []
            while text:
                length = next((n for n in range(min(longest, len(text)), 0, -1) if text[:n] in ids), 0)
                if not length:
                    return []
                found.append(ids[text[:length]])
                text = text[length:]
            return found

    return TokenizerWrapper(Pieces())
