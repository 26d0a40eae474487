"""`ditto-jax judge --run RUN`: how far the judge of an evaluated run can be trusted.

In: the words after the verb. Out: an exit code, the figures on the terminal. What is asked is
`ditto_jax.evaluation.judge_check`.
"""

from __future__ import annotations

from launch.flags import parse


def main(args: list[str], command: list[str]) -> int:
    """Asks the judge again, another one, and about controls; prints what they agree on."""
    from ditto_jax.evaluation.judge_check import JudgeCheckConfig, check_judge
    from ditto_jax.evaluation.judge_quality_table import quality_lines

    about = "Check the judge of an evaluated run: repeated verdicts, another judge, controls, both orders of pairs."
    path, records = check_judge(parse(JudgeCheckConfig, args, "judge", about).config)
    print("\n".join(quality_lines(records)))
    print(f"written: {path}")
    return 0
