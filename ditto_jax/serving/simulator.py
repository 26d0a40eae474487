"""What makes a model a simulated person: whose turns it writes, what it is told, and how it ends a conversation.

client's chat, preset, persona → the model's chat; reply → what is said, and whether it was the last word

Pure functions over data, for a policy on this machine and for any endpoint alike. The prompts of task presets are those
of the tasks themselves, so that a policy is served as it was trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from ditto_jax.serving.ask import AskError, Said
from ditto_jax.serving.persona import Persona
from ditto_jax.tasks.mirrorbench.task import FIRST_TURN, NEXT_TURN, user_system
from ditto_jax.tasks.sotopia.actions import LEAVE, SPEAK, Action, read_action
from ditto_jax.tasks.sotopia.prompts import START, side_system
from ditto_jax.tasks.sotopia.scene import Scene, Side
from ditto_jax.tasks.userllm.prompts import user_prompt
from ditto_jax.tasks.userllm.turns import AI, END, PRISM, USER, UserTurn, chat_text

RoleConvention = Literal["flipped", "native"]

_MAX_WORDS = 2000
_SWAP = {"user": "assistant", "assistant": "user"}
_PERSON = """\
You are a person, not an assistant. Write only your own next message, as this person would.
{lines}"""


@dataclasses.dataclass(frozen=True)
class Heard:
    """What a reply means to the caller. `ended`: the person ends the conversation."""

    text: str
    ended: bool


@dataclasses.dataclass(frozen=True)
class Preset:
    """How one kind of simulator is prompted and read.

    prompts: the simulator's own turns are "assistant" here → the chat for the model. convention: which roles clients
    use unless they say otherwise. speaker: the role whose turns the model was trained to write. end_marks: texts by
    which the model ends a conversation; they are taken out of what it says, except `kept_marks`, which callers of this
    preset look for. calls_alone: its callers take a message or tool calls, never both.
    """

    name: str
    about: str
    prompts: Callable[[Sequence[Said], Persona], list[Said]]
    hears: Callable[[str], Heard] | None = None
    convention: RoleConvention = "flipped"
    speaker: Literal["assistant", "user"] = "assistant"
    end_marks: tuple[str, ...] = ()
    kept_marks: tuple[str, ...] = ()
    calls_alone: bool = False


def chat_for_model(
    chat: Sequence[Said], preset: Preset, persona: Persona, convention: RoleConvention | None = None
) -> tuple[Said, ...]:
    """Returns the chat as the model reads it: the persona told, the roles those that it was trained in.

    Raises AskError if the last turn is the simulator's own, for then it is not its turn.
    """
    own = "user" if (convention or preset.convention) == "native" else "assistant"
    turns = list(chat) if own == "assistant" else [_swapped(said) for said in chat]
    if turns and turns[-1].role == "assistant":
        raise AskError(
            f"messages: the last one has role {own!r}, which is the simulator's own in the "
            f"{convention or preset.convention!r} convention; end with the other side's turn, or set "
            "ditto.role_convention",
            "messages",
        )
    prompted = preset.prompts(turns, persona)
    return tuple(prompted if preset.speaker == "assistant" else [_swapped(said) for said in prompted])


def hear(text: str, end_mark: str, preset: Preset, end_token: str | None = None) -> Heard:
    """Returns what a reply means to the caller.

    end_mark: the mark that the model ended with, if the backend has taken it off. end_token: what the caller looks for;
    it then stands at the end of the last message, so that this is never empty.
    """
    ended, said = bool(end_mark), text
    for mark in preset.end_marks:
        if mark in said:
            ended = True
            said = said if mark in preset.kept_marks else said.replace(mark, "")
    said = said.strip()
    if preset.hears is not None and said:
        heard = preset.hears(said)
        said, ended = heard.text, ended or heard.ended
    if ended and end_token and end_token not in said:
        said = f"{said}\n{end_token}".strip()
    if ended and not said:
        said = end_mark or next(iter(preset.end_marks), END)
    return Heard(said, ended)


def _swapped(said: Said) -> Said:
    return dataclasses.replace(said, role=_SWAP.get(said.role, said.role))


def _as_sent(chat: Sequence[Said], persona: Persona) -> list[Said]:
    """The client's own prompts, after what is known of the person, if anything is."""
    if not persona.lines:
        return list(chat)
    told = _PERSON.format(lines="\n".join(persona.lines))
    if chat and chat[0].role == "system":
        return [Said("system", f"{told}\n\n{chat[0].content}"), *chat[1:]]
    return [Said("system", told), *chat]


def _system_text(chat: Sequence[Said]) -> str:
    return "\n\n".join(said.content for said in chat if said.role == "system")


def _goal(chat: Sequence[Said], persona: Persona) -> str:
    """What the person is after: the persona's lines, then what the client says in a system message."""
    system = _system_text(chat)
    return "\n".join([*persona.lines, *([system] if system else [])]) or "nothing in particular"


def _turns(chat: Sequence[Said]) -> list[Said]:
    return [said for said in chat if said.role != "system"]


def _mirrorbench(chat: Sequence[Said], persona: Persona) -> list[Said]:
    turns = _turns(chat)
    told = [Said("system", user_system(_goal(chat, persona)))]
    if not turns or turns[0].role == "assistant":
        told.append(Said("user", FIRST_TURN))
    for said in turns:
        told.append(Said("user", NEXT_TURN.format(text=said.content)) if said.role == "user" else said)
    return told


def _userllm(chat: Sequence[Said], persona: Persona) -> list[Said]:
    lines = [(USER if said.role == "assistant" else AI, said.content) for said in _turns(chat)]
    turn = UserTurn(
        subtask=PRISM, intent=_goal(chat, persona), history=chat_text(lines) if lines else "", source="", group=""
    )
    return [Said("user", user_prompt(turn.example("served"), _MAX_WORDS))]


def _sotopia(chat: Sequence[Said], persona: Persona) -> list[Said]:
    other = persona.other or "the other person"
    own = Side(persona.name or "this person", persona.background, persona.goal or "none in particular")
    scenario = "\n".join(filter(None, [persona.scenario, _system_text(chat)])) or "(nothing is said)"
    scene = Scene(scenario, persona.relationship, own, Side(other, "", ""), opens=False)
    turns = _turns(chat)
    told = [Said("system", side_system(scene))]
    if not turns or turns[0].role == "assistant":
        told.append(Said("user", START))
    for said in turns:
        if said.role == "user":
            told.append(Said("user", f'{other} said: "{said.content}"'))
        else:
            told.append(Said("assistant", Action(SPEAK, said.content).as_json()))
    return told


def _sotopia_hears(text: str) -> Heard:
    action = read_action(text, _MAX_WORDS)
    if action is None:
        return Heard("", False)
    return Heard(action.shown, action.kind == LEAVE)


def _presets() -> Mapping[str, Preset]:
    tau2 = ("###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###")
    presets = (
        Preset("plain", "the client's own prompts; a persona is told first, if there is one", _as_sent),
        Preset("userllm", "the user of an AI assistant, turn by turn", _userllm, end_marks=(END,)),
        Preset("mirrorbench", "the user of an AI assistant, as a chat", _mirrorbench, end_marks=(END,)),
        Preset("sotopia", "one side of a social scene", _sotopia, _sotopia_hears),
        Preset("tau2", "a tau2-bench user simulator", _as_sent, end_marks=tau2, kept_marks=tau2, calls_alone=True),
        Preset("ditto-8b", "the published Ditto-8B: a chat model that plays the assistant's turns", _as_sent),
        Preset("osim-8b", "the published OSim-8B: a chat model that plays the assistant's turns", _as_sent),
        Preset(
            "userlm-8b",
            "the published UserLM-8b, which writes the user's own turns",
            _as_sent,
            convention="native",
            speaker="user",
            end_marks=(END,),
        ),
    )
    return {preset.name: preset for preset in presets}


PRESETS: Mapping[str, Preset] = _presets()


def preset_of(model: str, served: str, default: str) -> Preset:
    """Returns the preset that a request's model name means: `NAME` or `NAME:PRESET`. Raises AskError."""
    name, _, preset = model.partition(":") if model.startswith(f"{served}:") else (model, "", "")
    if name not in ("", served):
        raise AskError(
            f"model={model!r}: not served here; use {served!r}, or {served!r} with a preset: "
            f"{', '.join(f'{served}:{known}' for known in PRESETS)}",
            "model",
            "model_not_found",
            404,
        )
    if (preset or default) not in PRESETS:
        raise AskError(
            f"model={model!r}: no preset {preset!r}; choose one of {', '.join(PRESETS)}",
            "model",
            "model_not_found",
            404,
        )
    return PRESETS[preset or default]
