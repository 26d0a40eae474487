"""The jit-compiled sampler: requests in slots over shared prefixes, a chunk of tokens at a time."""
