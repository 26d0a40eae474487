"""The rotary settings of a config.json, in both spellings, and the frequency scaling of Llama 3.

In: a config.json as a dictionary. Out: base frequency and scaling, and back. `rope_parameters` is the spelling of
transformers 5, `rope_theta` beside `rope_scaling` the older one. The tables are computed in `model.layers`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from model.checks import check_count, check_positive, optional
from model.errors import UnsupportedModel

_KNOWN = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor"),
    *("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
# Which axis of a picture turns which pair; all three axes of a text token are its position.
_PICTURE_AXES = {"mrope_section", "mrope_interleaved"}


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """The rotary frequency scaling of Llama 3.1 and later: long wavelengths are divided by `factor`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self):
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            check_positive(f"rope_scaling.{name}", getattr(self, name))
        check_count("rope_scaling.original_max_position_embeddings", self.original_max_position_embeddings)
        if self.high_freq_factor <= self.low_freq_factor:
            raise UnsupportedModel(
                "rope_scaling.high_freq_factor",
                self.high_freq_factor,
                f"it must be above low_freq_factor={self.low_freq_factor}; Llama 3.1 uses 4.0 and 1.0",
            )


def read_rope(
    values: Mapping[str, Any], default_theta: float, max_positions: int, *, pictures: bool = False
) -> tuple[float, Llama3RopeScaling | None]:
    """Returns base frequency and scaling; `max_positions` stands in for an original length that is not stated.

    `pictures`: the axes of M-RoPE may be stated; for text, M-RoPE is plain rotary. Raises UnsupportedModel for a
    setting that is not understood.
    """
    name = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    settings = values.get(name) or {}
    if not isinstance(settings, Mapping):
        raise UnsupportedModel(name, settings, "it must be a dictionary or null")
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UnsupportedModel(f"{name}.rope_type", kind, "only 'default' and 'llama3'")
    for key in settings:
        if key not in _KNOWN and not (pictures and key in _PICTURE_AXES):
            raise UnsupportedModel(f"{name}.{key}", settings[key], f"known settings: {', '.join(sorted(_KNOWN))}")
    theta = optional(settings, "rope_theta", optional(values, "rope_theta", default_theta))
    check_positive("rope_theta", theta)
    stated = values.get("rope_theta")
    if stated is not None and stated != theta:
        raise UnsupportedModel("rope_theta", stated, f"{name} states {theta}; keep one of the two values")
    rotated = optional(settings, "partial_rotary_factor", optional(values, "partial_rotary_factor", 1.0))
    if rotated != 1.0:
        raise UnsupportedModel("partial_rotary_factor", rotated, "the whole head is rotated; only 1.0")
    return float(theta), _read_llama3(name, settings, max_positions) if kind == "llama3" else None


def _read_llama3(name: str, settings: Mapping[str, Any], max_positions: int) -> Llama3RopeScaling:
    for field in ("factor", "low_freq_factor", "high_freq_factor"):
        if field not in settings:
            raise UnsupportedModel(f"{name}.{field}", None, "rope_type 'llama3' must state it")
        check_positive(f"{name}.{field}", settings[field])
    return Llama3RopeScaling(
        factor=float(settings["factor"]),
        low_freq_factor=float(settings["low_freq_factor"]),
        high_freq_factor=float(settings["high_freq_factor"]),
        original_max_position_embeddings=optional(settings, "original_max_position_embeddings", max_positions),
    )


def write_rope(theta: float, scaling: Llama3RopeScaling | None) -> dict[str, Any]:
    """Returns the fields of a config.json, in both spellings, which agree, for readers older than transformers 5."""
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        rope = {"rope_type": "llama3", **dataclasses.asdict(scaling)}
    return {
        "rope_theta": theta,
        "rope_scaling": rope if scaling is not None else None,
        "rope_parameters": {"rope_theta": theta, **rope},
    }
