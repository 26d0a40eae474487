"""Random keys from identities: (seed, step, prompt, sample, role) → one key.

A sample's randomness depends on what it is, never on when or beside whom it is drawn; so a resumed run, another batch
size and another mesh draw the same numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np


def derive(seed: int, *identity: object) -> int:
    """Returns a 64-bit integer determined by the seed and the identity's parts (by their repr)."""
    digest = hashlib.blake2b(repr((seed, *identity)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


@dataclasses.dataclass(frozen=True)
class SampleId:
    """What one rollout is: run seed, step, prompt, number within its group, and draft, refined or eval."""

    seed: int
    step: int
    prompt_id: str
    sample_index: int
    role: str

    def key(self, port: str = "policy", turn: int = 0) -> np.ndarray:
        """Returns uint32[2], the raw threefry key of one turn of the role that the policy plays at `port`."""
        value = derive(self.seed, self.step, self.prompt_id, self.sample_index, self.role, port, turn)
        return np.array([value >> 32, value & 0xFFFFFFFF], dtype=np.uint32)
