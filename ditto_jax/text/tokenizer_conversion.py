"""A SentencePiece model → the files of a Hugging Face tokenizer that gives the same ids.

In: a `SentencePieceTokenizer` and how its policy is spoken to. Out: tokenizer.json and tokenizer_config.json, with a
chat template where there are turns. What was made is compared with the model on its own pieces and on texts that are
hard to get right; a tokenizer that cannot be had exactly is refused. Imports no transformers.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ditto_jax.errors import ModelError
from ditto_jax.text.chat import ROLES, ChatFormat, MarkerChat, PlainChat
from ditto_jax.text.tokenizer import HUGGINGFACE_FILE, SentencePieceTokenizer

CONFIG_FILE = "tokenizer_config.json"
_SPACE = "\u2581"
# Pieces that are taken whole wherever they stand are one character each for the tokenizers library, from this block for
# private use: as tokens of its own kind they would be cut out before the space is put in front of a text.
_FIRST_STAND_IN, _STAND_INS = 0xF0000, 0xFFFE

_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] not in "
    + json.dumps(list(ROLES)).replace('"', "'")
    + " %}{{ raise_exception('roles are "
    + ", ".join(ROLES)
    + "') }}{% endif %}{{ '<|' + message['role'] + '|>' + message['content'] + '"
    + MarkerChat.END
    + "' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_TEXTS = (
    "Anne's 2 balls,\n  left in the box. Où? 😀",
    " a leading space",
    "  two, and two at the end  ",
    "\ttab\r\nlines\n\n",
    "你好, мир! \u00a0\u200b\u0301 ﬁ½",
    "aaaaaaaaaa     bbbb . . . ...",
    "<|end|><|user|></s><s><unk><0x41>\u2581\u2581x",
    "x",
    " ",
    "",
)


def write_huggingface_tokenizer(
    tokenizer: SentencePieceTokenizer, chat_format: ChatFormat, folder: Path
) -> tuple[Path, Path]:
    """Returns tokenizer.json and tokenizer_config.json, written into `folder`.

    Texts have the same ids as here when special tokens in them are read as text (`split_special_tokens=True`); in a
    rendered chat they are read as such. Raises ModelError for a model whose ids cannot be had exactly.
    """
    model = _Model(tokenizer)
    made = model.tokenizer(begins=isinstance(chat_format, PlainChat) and "bos_token" in model.named)
    _compare(tokenizer, model, made)
    values: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **model.named,
    }
    if isinstance(chat_format, MarkerChat):
        values["chat_template"] = _TEMPLATE
    tokens, config = folder / HUGGINGFACE_FILE, folder / CONFIG_FILE
    made.save(str(tokens))
    config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return tokens, config


class _Model:
    """What a SentencePiece file holds, by kind of piece."""

    def __init__(self, tokenizer: SentencePieceTokenizer):
        from sentencepiece import sentencepiece_model_pb2

        schema: Any = sentencepiece_model_pb2
        proto = schema.ModelProto()
        proto.ParseFromString(tokenizer.files[0].read_bytes())
        kinds = proto.SentencePiece
        self.pieces: list[str] = [piece.piece for piece in proto.pieces]
        self.scores: list[float] = [piece.score for piece in proto.pieces]
        self.normal = {i for i, piece in enumerate(proto.pieces) if piece.type == kinds.NORMAL}
        self.special = {i for i, piece in enumerate(proto.pieces) if piece.type in (kinds.CONTROL, kinds.UNKNOWN)}
        whole = [i for i, piece in enumerate(proto.pieces) if piece.type == kinds.USER_DEFINED]
        self.stand_ins = {i: chr(_FIRST_STAND_IN + number) for number, i in enumerate(whole)}
        self.spec, self.training = proto.normalizer_spec, proto.trainer_spec
        self.file = tokenizer.files[0]
        self.unknown = next(i for i, piece in enumerate(proto.pieces) if piece.type == kinds.UNKNOWN)
        names = {"bos_token": tokenizer.bos_id, "eos_token": next(iter(tokenizer.eos_ids), None)}
        names |= {"unk_token": self.unknown, "pad_token": proto.trainer_spec.pad_id}
        self.named = {name: self.pieces[i] for name, i in names.items() if i in self.special}
        self._refuse()

    def _refuse(self) -> None:
        why = ""
        if self.training.model_type != self.training.BPE:
            why = "its model is not BPE"  # a unigram model of that library would read special tokens in any text
        elif self.training.treat_whitespace_as_suffix or not self.spec.escape_whitespaces:
            why = "it marks words otherwise than by a space before them"
        elif len(self.stand_ins) > _STAND_INS or len(set(self.pieces)) < len(self.pieces):
            why = "its pieces are not all different"
        if why:
            raise ModelError(f"{self.file}: cannot be written as {HUGGINGFACE_FILE}, for {why}")

    def tokenizer(self, begins: bool) -> Any:
        """Returns the tokenizer of the tokenizers library. begins: whether a text begins with the bos token."""
        import tokenizers
        from tokenizers import decoders, normalizers, processors

        made = tokenizers.Tokenizer(self._model())
        steps: list[Any] = []
        if self.spec.precompiled_charsmap:
            steps.append(normalizers.Precompiled(self.spec.precompiled_charsmap))
        if self.spec.remove_extra_whitespaces:
            # Spaces alone: the library's own step takes other white space away as well.
            edges, inner = tokenizers.Regex(r"\A +| +\z"), tokenizers.Regex(" {2,}")
            steps += [normalizers.Replace(edges, ""), normalizers.Replace(inner, " ")]
        if self.spec.add_dummy_prefix:
            steps.append(normalizers.Prepend(" "))
        # The longest first, as the model itself takes them.
        in_order = sorted(self.stand_ins, key=lambda i: -len(self.pieces[i]))
        steps.append(normalizers.Replace(" ", _SPACE))
        steps += [normalizers.Replace(self.pieces[i], self.stand_ins[i]) for i in in_order]
        made.normalizer = normalizers.Sequence(steps)
        made.decoder = decoders.Sequence(
            [
                *(decoders.Replace(self.stand_ins[i], self.pieces[i]) for i in in_order),
                decoders.Replace(_SPACE, " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                *([decoders.Strip(" ", 1, 0)] if self.spec.add_dummy_prefix else []),
            ]
        )
        made.add_special_tokens(
            [tokenizers.AddedToken(self.pieces[i], special=True, normalized=False) for i in sorted(self.special)]
        )
        if begins:
            bos = self.named["bos_token"]
            made.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, self.pieces.index(bos))]
            )
        return made

    def _model(self) -> Any:
        from tokenizers import models

        names = [self.stand_ins.get(i, piece) for i, piece in enumerate(self.pieces)]
        return models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=list(self._merges()),
            unk_token=self.pieces[self.unknown],
            fuse_unk=True,
            byte_fallback=self.training.byte_fallback,
        )

    def _merges(self) -> Iterator[tuple[str, str]]:
        """Yields every way to make a piece of two others, in the order in which the model prefers the result."""
        known = {self.pieces[i] for i in self.normal}
        for i in sorted(self.normal, key=lambda i: (-self.scores[i], i)):
            piece = self.pieces[i]
            cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
            yield from ((left, right) for left, right in cuts if left in known and right in known)


def _compare(tokenizer: SentencePieceTokenizer, model: _Model, made: Any) -> None:
    """Raises ModelError unless both give the same ids and texts, special tokens in a text being text."""
    made.encode_special_tokens = True
    try:
        for text in _probes(model):
            expected = tokenizer.encode(text)
            found = made.encode(text, add_special_tokens=False).ids
            # What is unknown has a sign of its own there and none here.
            is_known = model.unknown not in expected
            if found != expected or (is_known and made.decode(found) != tokenizer.decode(expected)):
                raise ModelError(
                    f"{model.file}: cannot be written as {HUGGINGFACE_FILE}: {text!r} would have the ids {found} "
                    f"instead of {expected}"
                )
    finally:
        made.encode_special_tokens = False


def _probes(model: _Model) -> Sequence[str]:
    spoken = [piece.replace(_SPACE, " ") for piece in model.pieces]
    pairs = [f"{one}{other}" for one, other in itertools.pairwise(spoken)]
    return [*_TEXTS, *spoken, *pairs, *("".join(spoken[i : i + 50]) for i in range(0, len(spoken), 50))]
