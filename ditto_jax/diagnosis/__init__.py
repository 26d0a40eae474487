"""What is wrong with a run, named, with evidence and something to try: `diagnose` over checks that read records."""

from ditto_jax.diagnosis.diagnose import Diagnosis, diagnose, diagnose_run
from ditto_jax.diagnosis.evidence import Evidence, read_evidence
from ditto_jax.diagnosis.finding import SEVERITIES, Advice, Finding, Place, figure

__all__ = [
    "SEVERITIES",
    "Advice",
    "Diagnosis",
    "Evidence",
    "Finding",
    "Place",
    "diagnose",
    "diagnose_run",
    "figure",
    "read_evidence",
]
