"""A policy with a SentencePiece vocabulary, exported: transformers alone reads texts and chats as the same ids.

Needs the `parity` extra (PyTorch); skipped as a whole without it. The policy is the packaged one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="install the parity extra: pip install 'ditto-jax[parity]'")

from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from ditto_jax.policy import Policy, load_policy  # noqa: E402
from ditto_jax.text.tokenizer import SentencePieceTokenizer  # noqa: E402
from ditto_jax.text.tokenizer_conversion import write_huggingface_tokenizer  # noqa: E402
from ditto_jax.types import Message  # noqa: E402
from model import llama  # noqa: E402
from model.hf_io import save_params  # noqa: E402
from model.partition import make_mesh  # noqa: E402

pytestmark = pytest.mark.parity

CHAT = (
    Message("system", " You live  in a story.\n"),
    Message("user", "Anne leaves; Où est la balle? 你好 😀\t<answer>x</answer>"),
    Message("assistant", "<answer>B</answer>"),
    Message("user", "Are you sure?  "),
)
TEXTS = (
    "",
    " ",
    "x",
    "  leading",
    "trailing  ",
    "a\n\n\tb\r\n",
    "naïve ﬁ ½ 😀 мир",
    "<|end|><|user|></s><0x41>\u2581",
    "...",
)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy("tiny-tom", make_mesh(1, -1, 1))


@pytest.fixture(scope="module")
def exported(policy, tmp_path_factory) -> Path:
    """The folder as an export of a whole model lays it out."""
    scratch, folder = tmp_path_factory.mktemp("scratch"), tmp_path_factory.mktemp("exports") / "model"
    assert isinstance(policy.tokenizer, SentencePieceTokenizer)
    written = write_huggingface_tokenizer(policy.tokenizer, policy.chat_format, scratch)
    save_params(folder, policy.config, policy.params, extra_files=[*written, *policy.tokenizer.files])
    return folder


@pytest.fixture(scope="module")
def theirs(exported) -> Any:
    return AutoTokenizer.from_pretrained(str(exported))


@pytest.mark.parametrize("text", TEXTS)
def test_texts_have_the_same_ids_and_come_back(policy, theirs, text):
    ids = policy.tokenizer.encode(text)
    assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == ids
    assert theirs.decode(ids, skip_special_tokens=True) == policy.tokenizer.decode(ids)


def test_special_tokens_of_a_rendered_text_are_such(policy, theirs):
    control = policy.tokenizer.control_id
    expected = [control("<|user|>"), *policy.tokenizer.encode("hi"), control("<|end|>")]
    assert theirs.encode("<|user|>hi<|end|>", add_special_tokens=False) == expected
    assert theirs.decode(expected, skip_special_tokens=True) == "hi"


def test_a_chat_is_the_same_prompt_and_gets_the_same_reply(policy, theirs, exported):
    messages = [{"role": message.role, "content": message.content} for message in CHAT]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == policy.chat_format.open(CHAT)
    with pytest.raises(Exception, match="roles are"):
        theirs.apply_chat_template([{"role": "robot", "content": "hi"}])
    model = AutoModelForCausalLM.from_pretrained(str(exported), dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits.numpy()
    ours = np.asarray(llama.apply(policy.params, policy.config, np.asarray([ids], np.int32)))
    assert np.abs(logits - ours).max() < 1e-3  # the folder is in bfloat16 or float32, as the policy
