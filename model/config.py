"""Sizes and dtypes of the policy, and their translation from and to a Hugging Face config.json.

In: the dictionary of a config.json, or keyword arguments. Out: `ModelConfig`, frozen and hashable, so that it can be a
static argument of a jitted function. Whatever the policy would compute differently from the model that wrote the file
is refused here (`UnsupportedModel`), not discovered later as strange text. Reads no files (see `model.hf_io`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from model.errors import UnsupportedModel

DTYPES = ("float32", "bfloat16", "float16")

# Our names and those of config.json, where they differ.
_HF_NAMES = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "tie_embeddings": "tie_word_embeddings",
    "eos_token_ids": "eos_token_id",
}


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """The rotary frequency scaling of Llama 3.1 and later: long wavelengths are divided by `factor`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self):
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            _check_positive(f"rope_scaling.{name}", getattr(self, name))
        _check_count("rope_scaling.original_max_position_embeddings", self.original_max_position_embeddings)
        if self.high_freq_factor <= self.low_freq_factor:
            raise UnsupportedModel(
                "rope_scaling.high_freq_factor",
                self.high_freq_factor,
                f"it must be above low_freq_factor={self.low_freq_factor}; Llama 3.1 uses 4.0 and 1.0",
            )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the shape and arithmetic of a Llama policy.

    `param_dtype` is how parameters are stored, `compute_dtype` that of activations and matrix products (names from
    `DTYPES`). `eos_token_ids` are the ids that end a reply; the tuple may be empty. Raises UnsupportedModel for sizes
    that cannot work together.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: Llama3RopeScaling | None = None
    tie_embeddings: bool = False
    max_position_embeddings: int = 2048
    bos_token_id: int | None = 1
    eos_token_ids: tuple[int, ...] = (2,)
    param_dtype: str = "float32"
    compute_dtype: str = "float32"

    def __post_init__(self):
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            _check_count(_label(name), getattr(self, name))
        _check_positive("rms_norm_eps", self.rms_norm_eps)
        _check_positive("rope_theta", self.rope_theta)
        for name in ("param_dtype", "compute_dtype"):
            if getattr(self, name) not in DTYPES:
                raise UnsupportedModel(name, getattr(self, name), f"choose one of {', '.join(DTYPES)}")
        self._check_heads()
        self._check_token_ids()

    def _check_heads(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModel(
                _label("num_kv_heads"), self.num_kv_heads, f"it must divide the {self.num_heads} query heads evenly"
            )
        if self.hidden_size % self.num_heads:
            raise UnsupportedModel(
                _label("num_heads"), self.num_heads, f"hidden_size={self.hidden_size} must be a multiple of it"
            )
        if self.head_dim % 2:
            raise UnsupportedModel("head_dim", self.head_dim, "rotary embeddings turn pairs, so it must be even")

    def _check_token_ids(self) -> None:
        if not isinstance(self.eos_token_ids, tuple):
            raise UnsupportedModel(_label("eos_token_ids"), self.eos_token_ids, "give a tuple of token ids")
        named = [("bos_token_id", self.bos_token_id)] if self.bos_token_id is not None else []
        for name, token in named + [(_label("eos_token_ids"), token) for token in self.eos_token_ids]:
            if not _is_int(token) or not 0 <= token < self.vocab_size:
                raise UnsupportedModel(
                    name, token, f"token ids are integers from 0 to vocab_size-1={self.vocab_size - 1}"
                )

    @classmethod
    def from_hf(
        cls, values: Mapping[str, Any], *, param_dtype: str = "float32", compute_dtype: str = "float32"
    ) -> ModelConfig:
        """Returns the config that a Hugging Face config.json (as a dictionary) describes.

        Absent fields take the defaults of transformers' LlamaConfig; both spellings of the rotary settings are read
        (`rope_parameters`; `rope_theta` with `rope_scaling`). The dtypes are the caller's: those of the file say only
        how the weights are stored. Raises UnsupportedModel for anything but a plain Llama decoder.
        """
        _check_family(values)
        heads = _required(values, "num_attention_heads")
        hidden = _required(values, "hidden_size")
        rope_theta, rope_scaling = _read_rope(values)
        return cls(
            vocab_size=_required(values, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_required(values, "intermediate_size"),
            num_layers=_required(values, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=_optional(values, "num_key_value_heads", heads),
            head_dim=_optional(values, "head_dim", hidden // heads),
            rms_norm_eps=_optional(values, "rms_norm_eps", 1e-6),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            tie_embeddings=_read_bool(values, "tie_word_embeddings"),
            max_position_embeddings=_optional(values, "max_position_embeddings", 2048),
            bos_token_id=values.get("bos_token_id", 1),
            eos_token_ids=_read_eos(values.get("eos_token_id", 2)),
            param_dtype=param_dtype,
            compute_dtype=compute_dtype,
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns a config.json dictionary that transformers loads as LlamaForCausalLM.

        The rotary settings are written in both spellings, which agree, for readers older than transformers 5.
        """
        rope: dict[str, Any] = {"rope_type": "default"}
        if self.rope_scaling is not None:
            rope = {"rope_type": "llama3", **dataclasses.asdict(self.rope_scaling)}
        eos = self.eos_token_ids
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": rope if self.rope_scaling is not None else None,
            "rope_parameters": {"rope_theta": self.rope_theta, **rope},
            "tie_word_embeddings": self.tie_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": (eos[0] if len(eos) == 1 else list(eos)) if eos else None,
            "dtype": self.param_dtype,
        }


def _label(name: str) -> str:
    return f"{name} (config.json: {_HF_NAMES[name]})" if name in _HF_NAMES else name


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_count(name: str, value: Any) -> None:
    if not _is_int(value) or value < 1:
        raise UnsupportedModel(name, value, "it must be an integer of at least 1")


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise UnsupportedModel(name, value, "it must be a positive finite number")


def _required(values: Mapping[str, Any], name: str) -> int:
    if name not in values:
        raise UnsupportedModel(name, None, "config.json must state it")
    _check_count(name, values[name])
    return values[name]


def _optional(values: Mapping[str, Any], name: str, default: Any) -> Any:
    """A field that config.json may leave out or set to null."""
    value = values.get(name)
    return default if value is None else value


def _read_bool(values: Mapping[str, Any], name: str) -> bool:
    value = _optional(values, name, False)
    if not isinstance(value, bool):
        raise UnsupportedModel(name, value, "it must be true or false")
    return value


def _check_family(values: Mapping[str, Any]) -> None:
    kind = values.get("model_type")
    if kind != "llama":
        raise UnsupportedModel("model_type", kind, "only 'llama' models can be loaded")
    architectures = values.get("architectures")
    if architectures and "LlamaForCausalLM" not in architectures:
        raise UnsupportedModel("architectures", architectures, "the policy needs a LlamaForCausalLM")
    activation = _optional(values, "hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedModel("hidden_act", activation, "only 'silu' (SwiGLU)")
    for name in ("attention_bias", "mlp_bias"):
        if _read_bool(values, name):
            raise UnsupportedModel(name, True, "projections have no bias; only false")
    if values.get("quantization_config"):
        raise UnsupportedModel(
            "quantization_config",
            values["quantization_config"],
            f"give unquantised weights in {', '.join(DTYPES)}",
        )


def _read_rope(values: Mapping[str, Any]) -> tuple[float, Llama3RopeScaling | None]:
    name = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    settings = values.get(name) or {}
    if not isinstance(settings, Mapping):
        raise UnsupportedModel(name, settings, "it must be a dictionary or null")
    theta = _optional(settings, "rope_theta", _optional(values, "rope_theta", 10000.0))
    _check_positive("rope_theta", theta)
    stated = values.get("rope_theta")
    if stated is not None and stated != theta:
        raise UnsupportedModel("rope_theta", stated, f"{name} states {theta}; keep one of the two values")
    rotated = _optional(settings, "partial_rotary_factor", _optional(values, "partial_rotary_factor", 1.0))
    if rotated != 1.0:
        raise UnsupportedModel("partial_rotary_factor", rotated, "the whole head is rotated; only 1.0")

    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise UnsupportedModel(f"{name}.rope_type", kind, "only 'default' and 'llama3'")
    for field in ("factor", "low_freq_factor", "high_freq_factor"):
        if field not in settings:
            raise UnsupportedModel(f"{name}.{field}", None, "rope_type 'llama3' must state it")
        _check_positive(f"{name}.{field}", settings[field])
    original = _optional(
        settings, "original_max_position_embeddings", _optional(values, "max_position_embeddings", 2048)
    )
    return float(theta), Llama3RopeScaling(
        factor=float(settings["factor"]),
        low_freq_factor=float(settings["low_freq_factor"]),
        high_freq_factor=float(settings["high_freq_factor"]),
        original_max_position_embeddings=original,
    )


def _read_eos(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


TINY = ModelConfig(
    vocab_size=768,
    hidden_size=128,
    intermediate_size=352,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    tie_embeddings=True,
)

PRESETS: Mapping[str, ModelConfig] = {"tiny": TINY}
