"""Metrics of a training run, sent to where people watch them: `Trackers` over one small adapter for each place."""

from ditto_jax.tracking.base import OpenTracker, RunIdentity, Tracker
from ditto_jax.tracking.report_to import TRACKERS, Trackers, require_trackers, tracked

__all__ = ["TRACKERS", "OpenTracker", "RunIdentity", "Tracker", "Trackers", "require_trackers", "tracked"]
