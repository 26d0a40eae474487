"""JSON schema → which tokens may come next, so that a reply cannot break it.

In: a tokenizer, a schema. Out: masks for the engine. The grammar itself is the work of llguidance; a schema that it
does not know in full is refused, never half obeyed.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ditto_jax.serving.ask import AskError
from ditto_jax.text.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer


class Grammars:
    """Makes masks for one tokenizer. stop_ids: tokens that may end a reply once the schema is satisfied."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int]):
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._stop_ids = list(stop_ids)
        self._prepared: Any = None

    def mask(self, schema: Mapping[str, Any]) -> JsonMask:
        """Returns the mask of one reply; raises AskError for a schema that cannot be enforced."""
        if importlib.util.find_spec("llguidance") is None:
            raise AskError(
                "response_format: needs llguidance on the server; pip install 'ditto-jax[serve]'", "response_format"
            )
        from llguidance import LLMatcher

        if self._prepared is None:
            self._prepared = _prepare(self._tokenizer, self._vocab_size, self._stop_ids)
        try:
            # Free white space would let a model write nothing else.
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_flexible": False})
        except ValueError as error:
            raise AskError(f"response_format: {error}", "response_format") from None
        matcher = LLMatcher(self._prepared, grammar)
        if matcher.is_error():
            raise AskError(f"response_format: the schema cannot be enforced: {matcher.get_error()}", "response_format")
        return JsonMask(matcher)


class JsonMask:
    """How far one reply has come in its grammar."""

    def __init__(self, matcher: Any):
        self._matcher = matcher

    def fill(self, words: np.ndarray) -> None:
        from llguidance.numpy import fill_next_token_bitmask

        bits = np.zeros((1, len(words)), np.int32)
        fill_next_token_bitmask(self._matcher, bits, 0)
        words[:] = bits[0]

    def take(self, token: int) -> bool:
        self._matcher.consume_token(token)
        return self._matcher.is_stopped()


def _prepare(tokenizer: Tokenizer, vocab_size: int, stop_ids: list[int]) -> Any:
    import llguidance
    import llguidance.hf

    if isinstance(tokenizer, HuggingFaceTokenizer):
        backend: Any = tokenizer.backend
        return llguidance.hf.from_tokenizer(backend, n_vocab=vocab_size, eos_token=stop_ids)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return llguidance.LLTokenizer(_wrapped(tokenizer, stop_ids), n_vocab=vocab_size)


def _wrapped(tokenizer: SentencePieceTokenizer, stop_ids: list[int]) -> Any:
    from llguidance import TokenizerWrapper

    pieces = tokenizer.piece_bytes()
    ids = {piece: token for token, piece in reversed(list(enumerate(pieces))) if piece}
    longest = max(map(len, ids))

    class Pieces:
        eos_token_id = stop_ids[0]
        bos_token_id = tokenizer.bos_id
        tokens = pieces
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
