"""How many processes compute one run: training takes as many as there are, evaluation and fine-tuning one.

Several processes are joined by `launch/distributed.py`; what those of a training run agree on is `ditto_jax/team`.
Evaluation and fine-tuning judge samples and write files as if they were alone, and ask here before they begin.
"""

from __future__ import annotations

from ditto_jax.errors import ConfigError

ALONE = ("eval", "sft")  # verbs that one process has to do by itself


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
