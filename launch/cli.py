"""`ditto-jax VERB ...`: finds the verb, prepares the process, turns the outcome into an exit code.

Nothing heavy is imported before a verb asks for it, so that help and mistyped verbs answer at once. What a verb does is
in `ditto_jax`; how its words are read is in `flags.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import logging
import sys
from collections.abc import Callable, Sequence

from launch import environment
from launch.failures import EXIT_CODES, guarded, leave_other_processes, tell


@dataclasses.dataclass(frozen=True)
class Verb:
    """A command: what it is for, and `module:function` that runs it with the words after it."""

    summary: str
    target: str

    def load(self) -> Callable[[list[str], list[str]], int]:
        module, _, function = self.target.partition(":")
        return getattr(importlib.import_module(module), function)


VERBS = {
    "train": Verb("train a policy with verbal feedback; continues an interrupted run", "launch.verbs:train"),
    "eval": Verb("measure a policy on tasks, without feedback", "launch.verbs:evaluate"),
    "sample": Verb("print what a policy writes after a prompt", "launch.sample:main"),
    "serve": Verb("serve a simulator at an OpenAI-compatible address", "launch.serve:main"),
    "chat": Verb("talk to a simulator in the terminal", "launch.serve:chat"),
    "export": Verb("write what a run has trained for other software", "launch.verbs:export"),
    "plan": Verb("predict memory, hours, calls of judges and cost of a run on other hardware", "launch.plan:main"),
    "compare": Verb("compare evaluated runs item by item: differences, intervals, noise", "launch.compare:main"),
    "judge": Verb("check the judge of an evaluated run; --human: be the judge, on a page", "launch.judge:main"),
    "diagnose": Verb("name what is wrong with a run, with evidence and something to try", "launch.diagnose:main"),
    "report": Verb("write the HTML report of one or more runs", "launch.verbs:report"),
    "replay": Verb("regenerate a step of a run, token by token, or under other words", "launch.replay:main"),
    "ablate": Verb("compare methods over seeds; continues, and shares the work among processes", "launch.ablate:main"),
    "sft": Verb("train a small policy from scratch on worked replies", "launch.verbs:sft"),
    "cache": Verb("say what a cache of judge replies holds, merge caches, or prune one", "launch.cache:main"),
    "data": Verb("fetch the released rows at a pinned revision, or check what was fetched", "launch.data:main"),
    "launch": Verb(
        "start a verb as several processes here, over ssh, on Slurm, GKE or Cloud TPU", "launch.launch:main"
    ),
    "doctor": Verb(
        "say what this machine has, what is missing, and whether jax computes correctly", "launch.doctor:main"
    ),
}

_EXAMPLES = """\
  ditto-jax train --config configs/quickstart.yaml
  ditto-jax train --config quickstart.yaml --optimizer.learning_rate 1.0e-4 --run_name faster --print_config
  ditto-jax eval --tasks all --limit 5
  ditto-jax eval --task path.py:MyTask --model_name_or_path FOLDER
  ditto-jax eval --config quickstart.yaml --model_name_or_path tiny-tom --fail_under 0.3
  ditto-jax eval --tasks all --policy.kind openai --policy.model M --policy.base_url http://localhost:8000/v1
  ditto-jax compare runs/quickstart@0 runs/quickstart
  ditto-jax judge --run runs/soul_eval --repeats 3
  ditto-jax sample --model_name_or_path FOLDER --prompt "Once upon a time" --temperature 0
  ditto-jax serve runs/quickstart --preset userllm --persona persona.yaml
  ditto-jax serve --backend openai --base_url http://localhost:9000/v1 --model NAME
  ditto-jax chat tiny-tom
  ditto-jax plan --config soul_8b.yaml --topology v5p-8,v5p-32,v5p-64,v5p-128
  ditto-jax export runs/quickstart --format hf --output exported
  ditto-jax report runs/quickstart
  ditto-jax diagnose runs/quickstart --fail_on error
  ditto-jax replay runs/quickstart --step 12 --prompt 3
  ditto-jax ablate --config configs/ablation_tom.yaml --workers 2
  ditto-jax cache stats runs/quickstart/judge_cache.sqlite
  ditto-jax data fetch --part train --revision COMMIT --output soul-rows
  ditto-jax launch --target local --local.processes 2 --verb doctor
  ditto-jax launch --target slurm --slurm.nodes 2 --config tpu_pod_8b.yaml --dry_run
  ditto-jax doctor"""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command; `argv` are the words after the program's name."""
    words = list(sys.argv[1:] if argv is None else argv)
    environment.set_defaults()
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"ditto-jax {version('ditto-jax')}")
        return 0
    verb = VERBS.get(words[0])
    if verb is None:
        near = difflib.get_close_matches(words[0], VERBS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"the verbs are {', '.join(VERBS)}"
        tell(f"unknown verb {words[0]!r}; {hint}")
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    code = guarded(lambda: verb.load()(words[1:], ["ditto-jax", *words]))
    leave_other_processes(code)
    return code


def _help() -> str:
    verbs = "\n".join(f"  {name:<8}{verb.summary}" for name, verb in VERBS.items())
    codes = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())
    return f"""\
usage: ditto-jax VERB [--config FILE]... [--setting VALUE]...

Train a language model to simulate people from verbal feedback (DITTO).

verbs:
{verbs}

`ditto-jax VERB --help` lists a verb's settings. Settings come from the defaults, then from each --config in order, then
from flags; --print_config shows each value and where it came from.

examples:
{_EXAMPLES}

exit codes:
{codes}"""


if __name__ == "__main__":
    sys.exit(main())
