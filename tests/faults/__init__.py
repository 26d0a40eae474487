"""Faults of judges, run directories and clocks: runs complete or stop cleanly, and nothing of a failure is learned."""
