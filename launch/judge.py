"""`ditto-jax judge --run RUN`: how far the judge of an evaluated run can be trusted. `--human`: a person judges.

In: the words after the verb. Out: an exit code, the figures on the terminal. What is asked is
`ditto_jax.evaluation.judge_check`; the person's page is `ditto_jax.judge.person`.
"""

from __future__ import annotations

import dataclasses

from launch.extras import require_packages
from launch.flags import parse


@dataclasses.dataclass(frozen=True)
class PersonConfig:
    """port: of the page, and of the address that runs ask; 0 takes a free one."""

    port: int = 8421


def main(args: list[str], command: list[str]) -> int:
    """Asks the judge again, another one, and about controls; prints what they agree on. --human: serves the page."""
    if "--human" in args:
        return _person([word for word in args if word != "--human"])
    from ditto_jax.evaluation.judge_check import JudgeCheckConfig, check_judge
    from ditto_jax.evaluation.judge_quality_table import quality_lines

    about = "Check the judge of an evaluated run: repeated verdicts, another judge, controls, both orders of pairs."
    path, records = check_judge(parse(JudgeCheckConfig, args, "judge", about).config)
    print("\n".join(quality_lines(records)))
    print(f"written: {path}")
    return 0


def _person(args: list[str]) -> int:
    config = parse(PersonConfig, args, "judge --human", "A page on which a person answers what runs ask.").config
    require_packages("judge --human", "starlette", "uvicorn")
    from ditto_jax.judge.person.site import serve_person

    serve_person(config.port, lambda line: print(line, flush=True))
    return 0
