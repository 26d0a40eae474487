"""A step of a run again, in memory: its rollouts regenerated, compared with the record, and read token by token."""
