"""A SentencePiece model written for the tokenizers library gives the same ids and texts, in chats as well, or none."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto_jax.errors import ModelError
from ditto_jax.policy import find_policy
from ditto_jax.text.chat import ROLES, MarkerChat, TemplateChat, make_chat_format
from ditto_jax.text.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, load_tokenizer
from ditto_jax.text.tokenizer_conversion import write_huggingface_tokenizer
from ditto_jax.types import Message
from tests.small_tokenizers import CORPUS, MARKERS

HARD = ["<answer>", "</answer>", "<|end|>", "<|user|>", "</s>", "<unk>", "<0x41>", "\u2581", "  ", "\n", "\t", "\u3000"]
TEXTS = st.lists(st.sampled_from([*HARD, " the", "Anne ", "box", "é", "😀", "你", ".", "x"]), max_size=20).map("".join)


def trained(folder: Path, **values) -> SentencePieceTokenizer:
    model = io.BytesIO()
    settings = {"model_type": "bpe", "vocab_size": 340, "byte_fallback": True, "control_symbols": MARKERS}
    settings |= {"user_defined_symbols": ["<answer>", "</answer>"], "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*CORPUS, "two  spaces", "ﬁne ½"]), model_writer=model, **{**settings, **values}
    )
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return SentencePieceTokenizer(folder / "tokenizer.model")


def converted(tokenizer: SentencePieceTokenizer, folder: Path) -> HuggingFaceTokenizer:
    write_huggingface_tokenizer(tokenizer, make_chat_format(tokenizer), folder)
    found = load_tokenizer(folder)
    assert isinstance(found, HuggingFaceTokenizer)
    return found


def same(one: SentencePieceTokenizer, other: HuggingFaceTokenizer, text: str) -> None:
    ids = one.encode(text)
    assert other.encode(text) == ids
    assert 0 in ids or other.decode(ids) == one.decode(ids)  # 0: unknown, which is told by a sign of its own


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[SentencePieceTokenizer, HuggingFaceTokenizer]:
    """The tokenizer of the packaged policy, as it is and converted."""
    packaged = load_tokenizer(find_policy("tiny-tom"))
    assert isinstance(packaged, SentencePieceTokenizer)
    return packaged, converted(packaged, tmp_path_factory.mktemp("converted"))


@given(text=TEXTS | st.text(max_size=30))
@settings(max_examples=200)
def test_texts_have_the_same_ids_and_come_back(pair, text):
    same(*pair, text)


def test_names_and_special_ids_are_kept(pair):
    one, other = pair
    assert (other.vocab_size, other.bos_id, other.eos_ids) == (one.vocab_size, one.bos_id, one.eos_ids)
    for marker in MARKERS:
        assert other.control_id(marker) == one.control_id(marker) is not None


@given(chat=st.lists(st.tuples(st.sampled_from(ROLES), TEXTS), min_size=1, max_size=4))
@settings(max_examples=100)
def test_a_chat_is_the_same_prompt_and_no_text_can_open_a_turn(pair, chat):
    ours, theirs = (make_chat_format(tokenizer) for tokenizer in pair)
    messages = [Message(role, content) for role, content in chat]
    assert isinstance(ours, MarkerChat) and isinstance(theirs, TemplateChat)
    assert theirs.open(messages) == ours.open(messages)
    assert set(theirs.stop_ids) == set(ours.stop_ids)


def test_other_kinds_of_models_are_the_same_too(tmp_path):
    kinds = {
        "words and spaces kept": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        "normalised": {"normalization_rule_name": "nmt_nfkc"},
        "no space put in front": {"add_dummy_prefix": False, "normalization_rule_name": "identity"},
        "without bytes": {"byte_fallback": False, "vocab_size": 60, "control_symbols": []},
    }
    rng = random.Random(0)
    for name, values in kinds.items():
        one = trained(tmp_path / name, **values)
        other = converted(one, tmp_path / name)
        for _ in range(50):
            same(one, other, "".join(rng.choices(["a", "the", " ", "Bob", ".", "é", "<answer>", "ball "], k=12)))


def test_a_base_model_begins_its_texts_as_its_prompts_begin(tmp_path):
    one = trained(tmp_path / "base", control_symbols=[])
    other = converted(one, tmp_path / "base")
    prompt = make_chat_format(one).open([Message("user", "Anne leaves")])
    assert (
        other.backend.encode("Anne leaves") == prompt == make_chat_format(other).open([Message("user", "Anne leaves")])
    )


def test_a_model_that_cannot_be_had_exactly_is_refused(tmp_path, monkeypatch):
    unigram = trained(tmp_path / "unigram", model_type="unigram", vocab_size=330)
    with pytest.raises(ModelError, match=r"unigram.*cannot be written as tokenizer.json, for its model is not BPE"):
        write_huggingface_tokenizer(unigram, make_chat_format(unigram), tmp_path)
    pieces = trained(tmp_path / "pieces")
    monkeypatch.setattr("ditto_jax.text.tokenizer_conversion._Model._merges", lambda model: iter(()))
    with pytest.raises(ModelError, match="would have the ids"):
        write_huggingface_tokenizer(pieces, make_chat_format(pieces), tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()


def test_replies_of_a_converted_tokenizer_can_be_held_to_a_schema(pair):
    pytest.importorskip("llguidance", reason="install the serve extra: pip install 'ditto-jax[serve]'")
    import numpy as np

    from ditto_jax.text.grammar import Grammars

    tokenizer = pair[1]
    mask = Grammars(tokenizer, tokenizer.vocab_size, [7, 2]).json({"enum": ["###STOP###"]})
    rng, ids, done = random.Random(1), [], False
    while not done and len(ids) < 40:
        words = np.zeros(-(-tokenizer.vocab_size // 32), np.int32)
        mask.fill(words)
        allowed = [i for i in range(tokenizer.vocab_size) if words[i // 32] >> (i % 32) & 1]
        ids.append(rng.choice(allowed))
        done = mask.take(ids[-1])
    assert json.loads(tokenizer.decode(ids)) == "###STOP###"
