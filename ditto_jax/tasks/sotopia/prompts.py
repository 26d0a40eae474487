"""What each side of a talk is told before it starts.

In: a scene as one side lives it. Out: its system message. Both sides, the policy and its partner, get the same words,
so that neither has an advantage; the other side's background and goal never appear. Judges and coaches have their own.
"""

from __future__ import annotations

from ditto_jax.tasks.sotopia.actions import ACT, GESTURE, LEAVE, SPEAK
from ditto_jax.tasks.sotopia.scene import Scene

START = "The conversation starts."

_SYSTEM = """\
You are {name}. Stay in character for the whole conversation and pursue your own goal; nobody but you knows it. Act \
as a real person in this situation would: answer what was just said, move things on with every turn, and repeat \
neither {other} nor yourself.

Scene: {scenario}
Taking part: {name}, {other}
You, {name}: {background}
{other}: you know nothing more about this person
How you stand to each other: {relationship}
Your private goal: {goal}

In every turn you do one of these:
- "{speak}": say something aloud
- "{gesture}": show something without words, such as a look or a gesture
- "{act}": do something
- "{leave}": end the conversation, when your goal is reached, when you feel uncomfortable, when you have lost patience \
or interest, or when there is another good reason to go

Reply with one JSON object and nothing else: {{"action_type": one of the four, "argument": the words said, or what is \
shown or done}}"""


def side_system(scene: Scene) -> str:
    """Returns the system message of the side that looks at the scene."""
    return _SYSTEM.format(
        name=scene.own.name,
        other=scene.other.name,
        scenario=scene.scenario,
        background=scene.own.background or "(nothing is said)",
        relationship=scene.relationship or "(nothing is said)",
        goal=scene.own.goal,
        speak=SPEAK,
        gesture=GESTURE,
        act=ACT,
        leave=LEAVE,
    )
