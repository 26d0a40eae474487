"""Masks of reply forms: whatever is drawn under them has the form, thoughts come first, and nothing is half obeyed."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import pydantic
import pytest
import sentencepiece

from ditto_jax.policy import PACKAGED
from ditto_jax.reply_form import FormError, HeldTo, ReplyForm, tagged, tagged_words
from ditto_jax.tasks.answers import visible_text
from ditto_jax.text.grammar import Grammars
from ditto_jax.text.tokenizer import Tokenizer, load_tokenizer
from tests.small_tokenizers import CORPUS, MARKERS, save_huggingface


class Move(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    kind: Literal["say", "go & leave"]
    words: str = pydantic.Field(max_length=9)


@pytest.fixture(scope="module", params=["sentencepiece", "huggingface"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    return load_tokenizer(PACKAGED / "tiny-tom" if request.param == "sentencepiece" else save_huggingface(folder))


def grammars_of(tokenizer: Tokenizer) -> Grammars:
    size = -(-tokenizer.vocab_size // 64) * 64 + 7  # padded as embeddings are, and not to whole words
    end = tokenizer.control_id("<|end|>") or tokenizer.control_id("<|im_end|>")
    assert end is not None
    return Grammars(tokenizer, size, [end, *tokenizer.eos_ids])


def allowed(mask, grammars: Grammars) -> np.ndarray:
    words = np.zeros(grammars.words, np.int32)
    mask.fill(words)
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))


def drawn(grammars: Grammars, held: HeldTo, seed: int) -> tuple[list[int], bool]:
    """Returns (ids drawn evenly from what is allowed, whether the reply is complete)."""
    rng, mask, ids = np.random.default_rng(seed), grammars.mask(held), []
    for _ in range(held.budget):
        ids.append(int(rng.choice(allowed(mask, grammars))))
        if mask.take(ids[-1]):
            return ids, True
    return ids, False


FORMS = {
    "letters": tagged("ABC"),
    "texts": tagged(["red-box", "a (b) | c.", "50 % & more #1 / 2"]),
    "words": tagged_words(),
    "reasoning in tags": tagged("AB", before="<reasoning>", after="</reasoning>"),
    "thoughts": ReplyForm(r"(yes|no)\.?", thinks=True, room=4),
    "json": ReplyForm(reply_model=Move),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_policy_that_draws_at_random_keeps_to_the_form(tokenizer, name):
    grammars, form = grammars_of(tokenizer), FORMS[name]
    for seed in range(4):
        ids, complete = drawn(grammars, HeldTo(form, budget=260), seed)
        text = tokenizer.decode(ids).strip()
        assert complete or name in ("words", "json"), (text, len(ids))
        assert not complete or form.holds(visible_text(text)), text


def test_reasoning_is_cut_short_where_the_answer_needs_the_rest(tokenizer):
    grammars, form = grammars_of(tokenizer), tagged("AB")
    wordy = [token for token in tokenizer.encode("he is in the box " * 40) if token not in tokenizer.encode("<")]
    mask, ids = grammars.mask(HeldTo(form, budget=60)), []
    for token in wordy:
        if token not in allowed(mask, grammars):
            break
        ids.append(token)
        assert not mask.take(token)
    assert len(ids) >= 60 - form.room - 1
    rng = np.random.default_rng(0)
    while not mask.take(ids.append(int(rng.choice(allowed(mask, grammars)))) or ids[-1]):
        assert len(ids) <= 60
    assert form.holds(tokenizer.decode(ids).strip())


def test_a_form_begins_behind_a_thought_that_the_prompt_has_opened(tokenizer):
    grammars = grammars_of(tokenizer)
    assert grammars.is_in_thought(tokenizer.encode("where is the ball?\n<think>\n"))
    assert not grammars.is_in_thought(tokenizer.encode("where is the ball?\n<think>\n\n</think>\n\n"))
    form = ReplyForm(reply_model=Move)
    mask, text = grammars.mask(HeldTo(form, 200, in_thought=True)), 'he thinks {"a": <b> </think>\n{"kind": "say"'
    for token in tokenizer.encode(text):
        if token not in (found := allowed(mask, grammars)):  # what must come is spelled in its usual tokens
            break
        assert not mask.take(token)
    assert len(found) < grammars.words * 16  # behind the thought not everything is allowed
    free = grammars.mask(HeldTo(form, 200, in_thought=True))
    assert len(allowed(free, grammars)) > 200


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "either a regex"),
        ({"regex": "a", "reply_model": Move}, "either a regex"),
        ({"regex": "(a"}, "no regular expression"),
        ({"regex": "ab", "reasoning": True}, "begin with '<'"),
        ({"reply_model": Move, "before": "x"}, "alone"),
    ],
)
def test_forms_that_contradict_themselves_are_refused(values, says):
    with pytest.raises(FormError, match=says):
        ReplyForm(**values)


class Unheard(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(json_schema_extra={"not": {"type": "string"}})


@pytest.mark.parametrize("form", [ReplyForm(r"a(?=b)"), ReplyForm(reply_model=Unheard)])
def test_forms_that_cannot_be_enforced_are_refused(tokenizer, form):
    with pytest.raises(FormError, match="cannot be enforced"):
        grammars_of(tokenizer).check(form)


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_can_be_spelled_pass_the_check(tokenizer, name):
    grammars_of(tokenizer).check(FORMS[name])


def test_a_form_that_the_tokenizer_cannot_spell_is_refused(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=60, model_type="bpe", control_symbols=MARKERS,
        minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    grammars = grammars_of(load_tokenizer(tmp_path))
    grammars.check(ReplyForm("the (box|room)"))
    with pytest.raises(FormError, match="cannot spell"):
        grammars.check(tagged("AB"))
    with pytest.raises(FormError, match="cannot spell"):
        grammars.check(ReplyForm("the box{2}!"))


def test_what_may_come_depends_on_the_tokens_before_alone(tokenizer):
    grammars = grammars_of(tokenizer)
    held = HeldTo(tagged("ABCD"), budget=50)
    ids, _ = drawn(grammars, held, seed=3)
    straight, interrupted = grammars.mask(held), grammars.mask(held)
    for token in ids:
        other = grammars.mask(HeldTo(tagged("AB"), 9))  # another reply in flight
        found = allowed(straight, grammars)
        allowed(other, grammars)
        np.testing.assert_array_equal(found, allowed(interrupted, grammars))
        straight.take(token)
        interrupted.take(token)
