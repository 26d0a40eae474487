"""A trained simulator behind an OpenAI-compatible address: requests → guarded replies (`ditto-jax serve`, `chat`).

Only `slot_engine.py`, `scoring.py` and `local.py` import jax; everything else also runs in front of a remote model.
"""
