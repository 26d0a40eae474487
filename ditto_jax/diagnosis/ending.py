"""Checks of how a run ended: with an error, or never.

records of a run → **checks** → findings
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

from ditto_jax.diagnosis.evidence import Evidence
from ditto_jax.diagnosis.finding import Advice, Finding, Suspicion
from ditto_jax.errors import RunDirectoryError
from ditto_jax.runs.run_owner import require_free


def run_failed(evidence: Evidence) -> Iterator[Suspicion]:
    """The run ended with an error, or its process is gone although it says that it is running."""
    state, step = evidence.status.get("state"), int(evidence.status.get("step") or 0)
    resume = Advice("resume", "auto", "the same command continues after the last checkpoint")
    if state == "failed":
        detail = str(evidence.status.get("detail") or "no reason was recorded").splitlines()[0]
        figures = {"exit code": str(evidence.status.get("exit_code"))}
        summary = f"the run failed after step {step}: {detail}"
        yield Suspicion(Finding("run_failed", "error", summary, figures, (step, step), advice=(resume,)))
    elif state == "running" and evidence.status.get("host") == socket.gethostname() and _is_free(evidence):
        figures = {"last sign of life": str(evidence.status.get("updated_at", "unknown"))}
        summary = f"STATUS.json says running at step {step}, but no process holds the run: it was killed"
        yield Suspicion(Finding("run_abandoned", "error", summary, figures, (step, step), advice=(resume,)))


def _is_free(evidence: Evidence) -> bool:
    try:
        require_free(evidence.run.path)
    except RunDirectoryError:
        return False
    return True


CHECKS = (run_failed,)
