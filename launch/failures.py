"""Exceptions → one message on stderr and an exit code.

Errors raised on purpose are told in their own words; running out of memory is told with the settings to lower; anything
else is a defect of this program and keeps its traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from ditto_jax.errors import DittoError

OK, FAILED, INTERRUPTED = 0, 1, 130

EXIT_CODES = {
    0: "finished",
    1: "failed while running",
    2: "a flag or a setting that cannot work; nothing was started",
    3: "data, a model or a credential is missing or damaged; nothing was started",
    4: "finished, but below --fail_under, graver than --fail_on allows, or a replay that is not the run",
    5: "judge.max_cost is reached: the state is saved; with a larger one the same command continues",
    75: "preempted (SIGTERM): the state is saved, the same command continues",
    130: "interrupted (Ctrl-C)",
    143: "terminated before there was a state to save",
}

_SAVED_TOGETHER = (0, 5, 75)  # all processes of a run end with such a code, after the same step

_OUT_OF_MEMORY = """out of memory: {what}
Lower what a step holds at once, in this order:
  --train.micro_batch     down  rows of one update are processed in more pieces; the result is the same
  --train.remat full            activations are computed again instead of kept
  --sampler.max_rows      down  fewer replies are decoded side by side
  --train.logprob_chunk   down  fewer positions have their vocabulary scores in memory together
  --rollout.max_completion_length, --train.prefix, --train.suffix  down  shorter rows
  --dtype bfloat16              half the memory for activations and the cache
or spread the parameters over more devices: --mesh.fsdp or --mesh.tensor up.
`ditto-jax plan` computes which of these is enough before a run is started."""


def guarded(run: Callable[[], int]) -> int:
    """Returns what `run` returns, or the exit code of the exception that it raised, told on stderr."""
    try:
        return run()
    except DittoError as error:
        tell(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        tell("interrupted")
        return INTERRUPTED
    except SystemExit as exit_:  # the flag parser's: 0 after --help, 2 after a bad flag
        return exit_.code if isinstance(exit_.code, int) else FAILED
    except BrokenPipeError:  # the reader of our output (`| head`) has seen enough; nothing more can be printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        what = out_of_memory(error)
        if what:
            tell(_OUT_OF_MEMORY.format(what=what))
        else:
            traceback.print_exc()
        return FAILED


def out_of_memory(error: BaseException | None) -> str:
    """Returns the line that says what did not fit, if the error or one of its causes is a lack of memory; else ""."""
    while error is not None:
        text = str(error)
        if isinstance(error, MemoryError):
            return _first_line(text) or "the machine's memory is full"
        # The class of XLA's errors has moved between jax versions; its status code has not.
        if type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and "RESOURCE_EXHAUSTED" in text:
            return _first_line(text)
        error = error.__cause__ or error.__context__
    return ""


def leave_other_processes(code: int) -> None:
    """Ends this process with `code`, at once, if it has failed while it computes together with others; else returns.

    The normal end of a process waits minutes for the others to end as well. One that has failed must not: they may
    be waiting for it. Those that saved a state together do wait: jax aborts whoever outlives process 0.
    """
    jax = sys.modules.get("jax")
    if code not in _SAVED_TOGETHER and jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def tell(message: str) -> None:
    """Prints a message for people on stderr."""
    print(f"ditto-jax: error: {message}", file=sys.stderr)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:300] if text.strip() else ""
