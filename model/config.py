"""Sizes, switches and dtypes of the policy.

In: keyword arguments, or the dictionary of a config.json (`from_hf`). Out: `ModelConfig`, frozen and hashable, so that
it can be a static argument of a jitted function. Whatever the policy would compute differently from the model that
wrote the file is refused here (`UnsupportedModel`), not discovered later as strange text. Reads no files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from model.checks import check_count, check_positive, is_int
from model.errors import UnsupportedModel
from model.families import check_family
from model.hf_config import read_fields, write_fields
from model.rope import Llama3RopeScaling

DTYPES = ("float32", "bfloat16", "float16")
ATTENTION = ("auto", "reference", "cudnn", "splash")

# Our names and those of config.json, where they differ.
_HF_NAMES = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "tie_embeddings": "tie_word_embeddings",
    "eos_token_ids": "eos_token_id",
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the shape and arithmetic of a policy.

    `family` (a name in `model.families.FAMILIES`) says whose files the weights are read from and which class an export
    writes; the arithmetic follows from the other fields. Biases are those of q, k and v, of o, and of the MLP;
    `qk_norm` normalises each head's queries and keys. With `sliding_window` a token sees keys fewer than so many
    positions back, except in `full_attention_layers`; `no_rope_layers` are not rotated (layers by number, from 0).

    `param_dtype` is how parameters are stored, `compute_dtype` that of activations and matrix products (names from
    `DTYPES`). `eos_token_ids` are the ids that end a reply; the tuple may be empty. `attention` (a name from
    `ATTENTION`) is the kernel of the calls that it can serve (`model.attention_kernels`). Raises UnsupportedModel for
    values that cannot work together.
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
    family: str = "llama"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    full_attention_layers: tuple[int, ...] = ()
    no_rope_layers: tuple[int, ...] = ()
    attention: str = "auto"

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
            check_count(_label(name), getattr(self, name))
        check_positive("rms_norm_eps", self.rms_norm_eps)
        check_positive("rope_theta", self.rope_theta)
        for name in ("param_dtype", "compute_dtype"):
            if getattr(self, name) not in DTYPES:
                raise UnsupportedModel(name, getattr(self, name), f"choose one of {', '.join(DTYPES)}")
        if self.attention not in ATTENTION:
            raise UnsupportedModel("attention", self.attention, f"choose one of {', '.join(ATTENTION)}")
        self._check_heads()
        self._check_layers()
        self._check_token_ids()
        check_family(self)

    def _check_heads(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModel(
                _label("num_kv_heads"), self.num_kv_heads, f"it must divide the {self.num_heads} query heads evenly"
            )
        if self.head_dim % 2:
            raise UnsupportedModel("head_dim", self.head_dim, "rotary embeddings turn pairs, so it must be even")

    def _check_layers(self) -> None:
        for name in ("full_attention_layers", "no_rope_layers"):
            layers = getattr(self, name)
            known = isinstance(layers, tuple) and all(is_int(n) and 0 <= n < self.num_layers for n in layers)
            if not known or tuple(sorted(set(layers))) != layers:
                rule = f"give a tuple of increasing layer numbers from 0 to {self.num_layers - 1}"
                raise UnsupportedModel(name, layers, rule)
        if self.sliding_window is not None:
            check_count("sliding_window", self.sliding_window)
        if self.full_attention_layers and (
            self.sliding_window is None or len(self.full_attention_layers) == self.num_layers
        ):
            raise UnsupportedModel(
                "full_attention_layers", self.full_attention_layers, "some layers must have a window, or leave it empty"
            )

    def _check_token_ids(self) -> None:
        if not isinstance(self.eos_token_ids, tuple):
            raise UnsupportedModel(_label("eos_token_ids"), self.eos_token_ids, "give a tuple of token ids")
        named = [("bos_token_id", self.bos_token_id)] if self.bos_token_id is not None else []
        for name, token in named + [(_label("eos_token_ids"), token) for token in self.eos_token_ids]:
            if not is_int(token) or not 0 <= token < self.vocab_size:
                raise UnsupportedModel(
                    name, token, f"token ids are integers from 0 to vocab_size-1={self.vocab_size - 1}"
                )

    @classmethod
    def from_hf(
        cls, values: Mapping[str, Any], *, param_dtype: str = "float32", compute_dtype: str = "float32"
    ) -> ModelConfig:
        """Returns the config that a Hugging Face config.json (as a dictionary) describes.

        Absent fields take the defaults of the family's class in transformers. The dtypes are the caller's: those of the
        file say only how the weights are stored. Raises UnsupportedModel, naming the field that is not understood.
        """
        return cls(**read_fields(values), param_dtype=param_dtype, compute_dtype=compute_dtype)

    def to_hf(self) -> dict[str, Any]:
        """Returns the config.json dictionary of the transformers class that an export writes (`architectures`)."""
        return write_fields(self)


def _label(name: str) -> str:
    return f"{name} (config.json: {_HF_NAMES[name]})" if name in _HF_NAMES else name
