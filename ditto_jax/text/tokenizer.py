"""Text ↔ token ids: Hugging Face tokenizers and SentencePiece models behind one small protocol.

In: a model folder. Out: a `Tokenizer`, chosen by what the folder holds, because a Hugging Face class given a bare
SentencePiece file returns wrong ids without a word. Encoding never yields special tokens, whatever the text says: turns
are opened by `ditto_jax.text.chat` alone. Imports no jax; transformers only when such a tokenizer is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ditto_jax.errors import MissingInputError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTENCEPIECE_FILE = "tokenizer.model"
HUGGINGFACE_FILE = "tokenizer.json"

# What a Hugging Face tokenizer may consist of; an export copies those that exist.
_FILES = (
    HUGGINGFACE_FILE,
    SENTENCEPIECE_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)

_PROBE = "Anne's 2 balls,\n  left in the box. Où? 😀"


class Tokenizer(Protocol):
    """Text ↔ ids.

    `decode(ids[:n])` is, apart from U+FFFD at its end (a character whose bytes are not complete), a prefix of
    `decode(ids)`: decoding a growing reply from its first id finds stop strings reliably.
    """

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_ids(self) -> tuple[int, ...]: ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files it was read from, to be copied beside exported weights."""
        ...

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text` alone: no special tokens, neither added nor parsed from the text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`, special tokens and ids beyond the vocabulary left out."""
        ...

    def control_id(self, name: str) -> int | None:
        """Returns the id of a special token such as "<|end|>", or None if `name` is ordinary text here."""
        ...


class SentencePieceTokenizer:
    """A SentencePiece `.model` file.

    SentencePiece marks a word start by a space and puts one before every text it encodes; decoding takes that one space
    away from the first piece. So decode(encode(text)) == text, and a reply that begins a word has no leading space.
    """

    def __init__(self, file: str | Path):
        import sentencepiece

        self._file = Path(file)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except (RuntimeError, OSError) as error:
            raise ModelError(f"{file}: not a SentencePiece model ({error}); fetch or export it again") from error

    @property
    def vocab_size(self) -> int:
        return self._model.get_piece_size()

    @property
    def bos_id(self) -> int | None:
        return _known(self._model.bos_id())

    @property
    def eos_ids(self) -> tuple[int, ...]:
        eos = _known(self._model.eos_id())
        return () if eos is None else (eos,)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self._file,)

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode(_within(ids, self.vocab_size))

    def piece_bytes(self) -> list[bytes]:
        """Returns what every piece writes inside a text; nothing for control pieces."""
        pieces = []
        for token in range(self.vocab_size):
            text = self._model.id_to_piece(token)
            if self._model.is_byte(token):
                pieces.append(bytes([int(text[3:-1], 16)]))  # <0x41>
            elif self._model.is_control(token) or self._model.is_unknown(token):
                pieces.append(b"")
            else:
                pieces.append(text.replace("\u2581", " ").encode())
        return pieces

    def control_id(self, name: str) -> int | None:
        token = self._model.piece_to_id(name)
        return token if self._model.is_control(token) and self._model.id_to_piece(token) == name else None


class HuggingFaceTokenizer:
    """A tokenizer of the transformers library; `backend` is the library's object (chat templates need it)."""

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        self.backend = _load_backend(self._folder)
        self._specials = {
            token.content: token_id for token_id, token in self.backend.added_tokens_decoder.items() if token.special
        }
        _check_against_file(self._folder, self.backend)
        # The library builds a new dictionary of all tokens at each question.
        self._vocab_size = max(self.backend.get_vocab().values()) + 1

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def bos_id(self) -> int | None:
        return _single_id(self.backend.bos_token_id)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        eos = _single_id(self.backend.eos_token_id)
        return () if eos is None else (eos,)

    @property
    def files(self) -> tuple[Path, ...]:
        return tokenizer_files(self._folder)

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The texts that the library would read as special tokens, longest first."""
        return tuple(sorted(self._specials, key=len, reverse=True))

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False, split_special_tokens=True)

    def encode_rendered(self, text: str) -> list[int]:
        """Returns the ids of text rendered by a chat template, in which special tokens count as such."""
        return self.backend.encode(text, add_special_tokens=False, split_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        text = self.backend.decode(
            _within(ids, self.vocab_size), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)  # a list only for a batch
        return text

    def control_id(self, name: str) -> int | None:
        return self._specials.get(name)


def load_tokenizer(folder: str | Path, *, model_vocab_size: int | None = None) -> Tokenizer:
    """Returns the tokenizer of a model folder.

    tokenizer.json decides for Hugging Face; else a tokenizer.model is read as SentencePiece; else tokenizer_config.json
    with vocab.json. With `model_vocab_size` (rows of the embedding), a larger vocabulary is an error. Raises
    MissingInputError (no folder) or ModelError (no tokenizer in it, damaged, or too large for the model).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: no such model folder; give the path of one that holds a tokenizer")
    if (folder / HUGGINGFACE_FILE).is_file():
        tokenizer: Tokenizer = HuggingFaceTokenizer(folder)
    elif (folder / SENTENCEPIECE_FILE).is_file():
        tokenizer = SentencePieceTokenizer(folder / SENTENCEPIECE_FILE)
    elif (folder / "tokenizer_config.json").is_file() and (folder / "vocab.json").is_file():
        tokenizer = HuggingFaceTokenizer(folder)
    else:
        raise ModelError(
            f"{folder}: no tokenizer; looked for {HUGGINGFACE_FILE}, {SENTENCEPIECE_FILE} (SentencePiece), "
            "and tokenizer_config.json with vocab.json"
        )
    if model_vocab_size is not None and tokenizer.vocab_size > model_vocab_size:
        raise ModelError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens but the model embeds only {model_vocab_size}; "
            "tokenizer and weights belong to different models: fetch both again"
        )
    return tokenizer


def tokenizer_files(folder: str | Path) -> tuple[Path, ...]:
    """Returns the tokenizer files that a folder holds."""
    return tuple(Path(folder) / name for name in _FILES if (Path(folder) / name).is_file())


def _load_backend(folder: Path) -> PreTrainedTokenizerBase:
    # Before the import: no advice to install torch, and no tokenizer threads beside those of jax.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the library's Rust side raises plain Exception for a damaged file
        raise ModelError(f"{folder}: transformers cannot load this tokenizer: {error}") from error


def _check_against_file(folder: Path, backend: Any) -> None:
    """Raises ModelError if the class that transformers chose encodes otherwise than tokenizer.json says."""
    file = folder / HUGGINGFACE_FILE
    if not file.is_file():
        return
    import tokenizers

    expected = tokenizers.Tokenizer.from_file(str(file)).encode(_PROBE, add_special_tokens=False).ids
    found = backend.encode(_PROBE, add_special_tokens=False)
    if found != expected:
        raise ModelError(
            f"{folder}: transformers chose {type(backend).__name__}, which gives other ids than {HUGGINGFACE_FILE}; "
            'set "tokenizer_class": "PreTrainedTokenizerFast" in tokenizer_config.json'
        )


def _known(token: int) -> int | None:
    return token if token >= 0 else None


def _single_id(token: Any) -> int | None:
    return token if isinstance(token, int) else None


def _within(ids: Sequence[int], vocab_size: int) -> list[int]:
    """Embeddings are often padded beyond the vocabulary; an id from there has no text."""
    return [int(token) for token in ids if 0 <= token < vocab_size]
