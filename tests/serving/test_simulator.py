"""A chat reaches the model in the roles and with the prompts that it was trained in; its end reaches the caller."""

from __future__ import annotations

import pytest

from ditto_jax.errors import ConfigError, MissingInputError
from ditto_jax.serving.ask import AskError, Said
from ditto_jax.serving.persona import Persona, persona_of, read_persona
from ditto_jax.serving.simulator import PRESETS, chat_for_model, hear, preset_of
from ditto_jax.tasks.mirrorbench.task import FIRST_TURN, NEXT_TURN, user_system
from ditto_jax.tasks.sotopia.actions import Action
from ditto_jax.tasks.userllm.turns import END

NOBODY = Persona()
FLIPPED = [Said("system", "You want a refund."), Said("assistant", "hi, refund pls"), Said("user", "Which order?")]
NATIVE = [Said("system", "You want a refund."), Said("user", "hi, refund pls"), Said("assistant", "Which order?")]


def roles(chat):
    return [said.role for said in chat]


def test_both_conventions_of_the_same_talk_are_the_same_to_the_model():
    flipped = chat_for_model(FLIPPED, PRESETS["plain"], NOBODY)
    assert flipped == tuple(FLIPPED)
    assert chat_for_model(NATIVE, PRESETS["plain"], NOBODY, "native") == flipped


def test_a_model_that_writes_users_turns_gets_them_in_their_own_roles():
    preset = PRESETS["userlm-8b"]
    assert preset.convention == "native" and preset.speaker == "user"
    assert chat_for_model(NATIVE, preset, NOBODY) == tuple(NATIVE)
    assert chat_for_model(FLIPPED, preset, NOBODY, "flipped") == tuple(NATIVE)


@pytest.mark.parametrize(("chat", "convention"), [(FLIPPED[:2], "flipped"), (NATIVE[:2], "native")])
def test_the_simulator_does_not_answer_itself(chat, convention):
    with pytest.raises(AskError, match="simulator's own"):
        chat_for_model(chat, PRESETS["plain"], NOBODY, convention)


def test_a_persona_is_told_before_the_clients_own_words():
    persona = Persona(name="Ida", goal="a refund")
    first, *rest = chat_for_model(FLIPPED, PRESETS["plain"], persona)
    assert "You are: Ida" in first.content and first.content.endswith("You want a refund.")
    assert rest == FLIPPED[1:]
    assert chat_for_model(FLIPPED[2:], PRESETS["plain"], persona)[0].role == "system"


def test_mirrorbench_is_served_as_it_is_trained():
    chat = chat_for_model(FLIPPED, PRESETS["mirrorbench"], NOBODY)
    assert [said.content for said in chat] == [
        user_system("You want a refund."),
        FIRST_TURN,
        "hi, refund pls",
        NEXT_TURN.format(text="Which order?"),
    ]
    assert roles(chat) == ["system", "user", "assistant", "user"]


def test_userllm_puts_the_chat_into_one_message_and_ends_with_its_sign():
    chat = chat_for_model(FLIPPED, PRESETS["userllm"], NOBODY)
    assert roles(chat) == ["user"]
    assert all(part in chat[0].content for part in ("You want a refund.", "hi, refund pls", "Which order?", END))
    opening = chat_for_model(FLIPPED[:1], PRESETS["userllm"], NOBODY)
    assert END not in opening[0].content


def test_sotopia_tells_the_scene_and_reads_actions():
    persona = Persona(name="Ida", goal="sell the bike", other="Bo", scenario="a market")
    chat = chat_for_model([Said("assistant", "hello"), Said("user", "how much?")], PRESETS["sotopia"], persona)
    assert "You are Ida" in chat[0].content and "sell the bike" in chat[0].content
    assert chat[-2].content == Action("speak", "hello").as_json()
    assert chat[-1].content == 'Bo said: "how much?"'
    heard = hear('{"action_type": "speak", "argument": "30 euros"}', "", PRESETS["sotopia"])
    assert (heard.text, heard.ended) == ("30 euros", False)
    assert hear('{"action_type": "leave", "argument": ""}', "", PRESETS["sotopia"]).ended


@pytest.mark.parametrize(
    ("text", "mark", "preset", "token", "expected", "ended"),
    [
        ("thanks, bye", "", "userllm", None, "thanks, bye", False),
        (END, "", "userllm", None, END, True),
        ("", END, "userllm", None, END, True),
        (f"bye {END}", "", "userllm", None, "bye", True),
        (f"bye {END}", "", "userllm", "###STOP###", "bye\n###STOP###", True),
        (END, "", "userllm", "###STOP###", "###STOP###", True),
        ("all good ###STOP###", "", "tau2", None, "all good ###STOP###", True),
        ("###OUT-OF-SCOPE###", "", "tau2", None, "###OUT-OF-SCOPE###", True),
        ("###STOP###", "", "plain", None, "###STOP###", False),
    ],
)
def test_the_end_of_a_conversation_is_signalled_and_never_empty(text, mark, preset, token, expected, ended):
    heard = hear(text, mark, PRESETS[preset], token)
    assert (heard.text, heard.ended) == (expected, ended)


def test_model_names_choose_presets():
    assert preset_of("ditto:sotopia", "ditto", "plain").name == "sotopia"
    assert preset_of("ditto", "ditto", "userllm").name == preset_of("", "ditto", "userllm").name == "userllm"
    for name in ("gpt-5", "ditto:chess"):
        with pytest.raises(AskError) as caught:
            preset_of(name, "ditto", "plain")
        assert caught.value.status == 404


def test_personas_come_from_files_and_requests(tmp_path):
    file = tmp_path / "ida.yaml"
    file.write_text("name: Ida\ngoal: a refund\n")
    ida = read_persona(file)
    assert ida == Persona(name="Ida", goal="a refund")
    assert persona_of({"goal": "tea"}, ida) == Persona(name="Ida", goal="tea")
    assert persona_of("a baker", ida).background == "a baker"
    with pytest.raises(ConfigError, match="did you mean 'goal'"):
        persona_of({"gaol": "tea"}, ida)
    with pytest.raises(MissingInputError):
        read_persona(tmp_path / "nobody.yaml")
