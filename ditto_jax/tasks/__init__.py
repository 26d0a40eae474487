"""Tasks: examples, prompts, scores and feedback by rule. Nothing here imports jax."""
