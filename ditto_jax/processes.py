"""How many processes compute one run: so far one, however many devices it has.

Several processes can be joined (`launch/distributed.py`) and compute together (`canaries.devices_add_up`), but
training, evaluation and fine-tuning take prompts, judge samples and write files as if they were alone. They ask here
before they begin, so that nothing is trained on wrong numbers; work on several processes goes on from these callers.
"""

from __future__ import annotations

from ditto_jax.errors import ConfigError

ALONE = ("train", "eval", "sft")  # verbs that one process has to do by itself


def refusal(verb: str, processes: int) -> str:
    """Returns why so many processes cannot do what the verb does, and what works; "" if they can."""
    if processes < 2 or verb not in ALONE:
        return ""
    return (
        f"{verb} with {processes} processes: each would sample, judge and write on its own. Use one process; it takes "
        "all devices of its host, for example 8 GPUs or a v6e-8"
    )


def require_one_process(verb: str) -> None:
    """Returns nothing; raises ConfigError if jax has been joined with other processes and the verb needs to be alone.

    The first use of a device, where there was none.
    """
    import jax

    why = refusal(verb, jax.process_count())
    if why:
        raise ConfigError(why)
