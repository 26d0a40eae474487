"""Samples without feedback → scores with intervals, comparisons, and how far a judge can be trusted."""
