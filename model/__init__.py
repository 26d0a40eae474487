"""The policy: a Llama in Flax, its weights on disk and on a mesh, and decoding. Pure functions of arrays."""

from model.xla_flags import apply_workarounds

apply_workarounds()
