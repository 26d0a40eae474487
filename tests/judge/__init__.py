"""Tests of the judges; `server` misbehaves on purpose, `quiz` is the task they judge."""
