"""The policy: a Llama-style decoder in Flax, its weights on disk and on a mesh, and decoding. Pure functions."""

from model.xla_flags import apply_workarounds

apply_workarounds()
