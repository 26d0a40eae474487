"""Presets of published simulators on tiny random models of their architectures: the prompt that each would get, and a
reply in the right role.
"""

from __future__ import annotations

import asyncio
import dataclasses

import jax
import numpy as np
import pytest

from ditto_jax.policy import load_policy
from ditto_jax.serving.ask import Ask, Said
from ditto_jax.serving.config import EngineConfig
from ditto_jax.serving.local import LocalBackend, _Reader
from ditto_jax.serving.persona import Persona
from ditto_jax.serving.simulator import PRESETS, chat_for_model
from model import llama
from model.config import ModelConfig
from model.hf_io import save_params
from model.partition import make_mesh
from tests.serving.scripted import client_of
from tests.small_tokenizers import SPECIALS, save_huggingface

pytestmark = pytest.mark.usefixtures("quick_compilation")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = ModelConfig(
    vocab_size=320, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8
)
ARCHITECTURES = {
    "ditto-8b": dataclasses.replace(LLAMA, family="qwen3", qk_norm=True),
    "osim-8b": dataclasses.replace(LLAMA, family="qwen3", qk_norm=True),
    "userlm-8b": LLAMA,
}
CHAT = [
    {"role": "system", "content": "You want the ball."},
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "In the box."},
]
RENDERED = "<|im_start|>system\nYou want the ball.<|im_end|>\n"


def _expected(preset: str) -> str:
    """The prompt before the simulator's next turn, in the roles that its model was trained in."""
    own, other = ("user", "assistant") if preset == "userlm-8b" else ("assistant", "user")
    turns = f"<|im_start|>{own}\nWhere is it?<|im_end|>\n<|im_start|>{other}\nIn the box.<|im_end|>\n"
    return f"{RENDERED}{turns}<|im_start|>{own}\n"


@pytest.fixture(params=list(ARCHITECTURES))
def served(request, tmp_path):
    config = ARCHITECTURES[request.param]
    save_params(tmp_path / "model", config, jax.jit(llama.init, static_argnums=1)(jax.random.key(0), config))
    save_huggingface(tmp_path / "model", chat_template=CHATML)
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    policy = load_policy(str(tmp_path / "model"), mesh)
    sizes = EngineConfig(max_model_len=96, max_completion_tokens=8, max_rows=1, chunk=8, warm_up=False)
    return request.param, policy, LocalBackend(policy, sizes, request.param, mesh)


def test_a_published_simulator_gets_its_prompt_and_answers_as_the_assistant(served):
    preset, policy, backend = served
    body = {
        "model": f"ditto:{preset}",
        "messages": CHAT,
        "seed": 0,
        "ditto": {"guard": False, "role_convention": "native"},
    }

    async def run():
        async with client_of(backend) as client:
            return await client.post("/v1/chat/completions", json=body)

    with asyncio.Runner() as runner:
        response = runner.run(run())
    assert response.status_code == 200, response.text
    choice, usage = response.json()["choices"][0], response.json()["usage"]
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"]
    assert usage["prompt_tokens"] == len(policy.tokenizer.encode_rendered(_expected(preset)))


def test_a_user_turn_is_opened_by_its_own_header(served):
    preset, policy, backend = served
    chat = chat_for_model([Said(**one) for one in CHAT], PRESETS[preset], Persona(), "native")
    ids = backend._ids(Ask(chat=chat, speaker=PRESETS[preset].speaker))
    assert policy.tokenizer.backend.decode(ids) == _expected(preset)


def test_a_control_token_that_ends_a_conversation_is_reported_though_it_has_no_text():
    mark, token = "<|endconversation|>", len(SPECIALS)
    delivered = []
    decode = lambda ids: "".join("x" for i in ids if i != token)  # noqa: E731
    ask = Ask(end_marks=(mark,))
    reader = _Reader(ask, [1], decode, frozenset({token}), {token: mark}, delivered.append)
    assert not reader.receive(np.array([9, 9, token]), np.zeros(3), "stop")
    assert (delivered[0].text, delivered[0].finish, delivered[0].end_mark) == ("xx", "stop", mark)
