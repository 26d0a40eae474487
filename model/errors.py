"""Errors of the policy package.

`model` stands below `ditto_jax` and may not import its errors, so it has two of its own, both ValueErrors. Each keeps
its facts as attributes and builds one sentence from them: what was found, the rule, and what to do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


class UnsupportedModel(ValueError):
    """A model configuration that this package cannot run: `field`, its `value`, and what is `supported`."""

    def __init__(self, field: str, value: Any, supported: str):
        super().__init__(field, value, supported)
        self.field = field
        self.value = value
        self.supported = supported

    def __str__(self) -> str:
        return f"{self.field}={self.value!r} is not supported: {self.supported}"


class WeightsError(ValueError):
    """A weights file that is missing, damaged, or does not fit its config.json.

    `file` and `tensor` (or None) say where, `expected` and `found` what is wrong, `advice` what to do.
    """

    def __init__(self, file: str | Path, tensor: str | None, expected: str, found: str, advice: str):
        super().__init__(file, tensor, expected, found, advice)
        self.file = Path(file)
        self.tensor = tensor
        self.expected = expected
        self.found = found
        self.advice = advice

    def __str__(self) -> str:
        where = f"{self.file}: tensor '{self.tensor}'" if self.tensor else str(self.file)
        return f"{where}: expected {self.expected}, found {self.found}; {self.advice}"
