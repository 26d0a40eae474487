"""The model families as a table: what each adds to a plain Llama decoder, and how its config.json says so.

In: the dictionary of a config.json, or a `ModelConfig`. Out: the neutral fields of `ModelConfig` in which families
differ (biases, q/k norms, windows, layers without rotary), and back. A family is a row of `FAMILIES` with the function
that reads its layer pattern and the one that writes it; the computation asks the neutral fields alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from model.checks import check_count, is_int, optional, optional_bool
from model.errors import UnsupportedModel

if TYPE_CHECKING:
    from model.config import ModelConfig

Values = Mapping[str, Any]

# Fields of ModelConfig in which families differ, with the value that a plain Llama has.
PLAIN: Values = {
    "qkv_bias": False,
    "output_bias": False,
    "mlp_bias": False,
    "qk_norm": False,
    "sliding_window": None,
    "full_attention_layers": (),
    "no_rope_layers": (),
}

_FULL, _SLIDING = "full_attention", "sliding_attention"


def _no_pattern(values: Values, layers: int) -> dict[str, Any]:
    """Every layer sees everything: a stated window belongs to another family."""
    if values.get("sliding_window") is not None and optional_bool(values, "use_sliding_window", True):
        raise UnsupportedModel("sliding_window", values["sliding_window"], "this family has none: set it to null")
    if values.get("layer_types") is not None:
        _read_layer_types(values, layers, None)
    return {}


def _read_mistral(values: Values, layers: int) -> dict[str, Any]:
    """One window for all layers; null is full attention."""
    window = _read_window(values, 4096)
    if values.get("layer_types") is not None and _read_layer_types(values, layers, window):
        raise UnsupportedModel("layer_types", values["layer_types"], "Mistral has one kind of attention in all layers")
    return {"sliding_window": window}


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    return {"sliding_window": config.sliding_window}


def _read_qwen(values: Values, layers: int) -> dict[str, Any]:
    """A window, if switched on, in the layers from max_window_layers on, or where layer_types says so."""
    window = _read_window(values, 4096) if optional_bool(values, "use_sliding_window") else None
    first = optional(values, "max_window_layers", 28)
    if not is_int(first) or first < 0:
        raise UnsupportedModel("max_window_layers", first, "it must be an integer of at least 0")
    return _window_pattern(values, layers, window, tuple(range(min(first, layers))))


def _write_layer_types(config: ModelConfig) -> dict[str, Any]:
    windowed = [
        config.sliding_window is not None and layer not in config.full_attention_layers
        for layer in range(config.num_layers)
    ]
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "layer_types": [_SLIDING if sliding else _FULL for sliding in windowed],
    }


def _write_qwen(config: ModelConfig) -> dict[str, Any]:
    written = _write_layer_types(config)
    kinds = written["layer_types"]
    return {**written, "max_window_layers": kinds.index(_SLIDING) if _SLIDING in kinds else len(kinds)}


def _read_smollm3(values: Values, layers: int) -> dict[str, Any]:
    """Some layers without rotary; a window, if switched on, in those unless layer_types says otherwise."""
    rotated = values.get("no_rope_layers")
    if rotated is None:
        interval = optional(values, "no_rope_layer_interval", 4)
        check_count("no_rope_layer_interval", interval)
        rotated = [int((layer + 1) % interval != 0) for layer in range(layers)]
    if not isinstance(rotated, list) or len(rotated) < layers or any(one not in (0, 1) for one in rotated):
        raise UnsupportedModel("no_rope_layers", rotated, f"give 1 (rotary) or 0 for each of the {layers} layers")
    window = _read_window(values, None) if optional_bool(values, "use_sliding_window") else None
    full = tuple(layer for layer in range(layers) if rotated[layer])
    return {
        **_window_pattern(values, layers, window, full),
        "no_rope_layers": tuple(layer for layer in range(layers) if not rotated[layer]),
    }


def _write_smollm3(config: ModelConfig) -> dict[str, Any]:
    rotated = [int(layer not in config.no_rope_layers) for layer in range(config.num_layers)]
    return {**_write_layer_types(config), "no_rope_layers": rotated}


def _read_window(values: Values, default: int | None) -> int | None:
    window = values.get("sliding_window", default)
    if window is not None:
        check_count("sliding_window", window)
    return window


def _window_pattern(values: Values, layers: int, window: int | None, full: tuple[int, ...]) -> dict[str, Any]:
    if values.get("layer_types") is not None:
        full = _read_layer_types(values, layers, window)
    if window is None or len(full) == layers:
        return {}
    return {"sliding_window": window, "full_attention_layers": full}


def _read_layer_types(values: Values, layers: int, window: int | None) -> tuple[int, ...]:
    """Returns the layers that see everything, or () where all do without a window."""
    kinds = values["layer_types"]
    known = {_FULL, _SLIDING} if window is not None else {_FULL}
    if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= known:
        raise UnsupportedModel("layer_types", kinds, f"one of {', '.join(sorted(known))} for each of {layers} layers")
    return tuple(layer for layer in range(layers) if kinds[layer] == _FULL) if window is not None else ()


@dataclasses.dataclass(frozen=True)
class Family:
    """One family: `architecture` is the transformers class that its folders name, `exports_as` the family written.

    `always` are neutral fields that the class fixes, `may` those that a config.json may set; all others are plain.
    `defaults` are those of transformers for absent fields. Tensor names begin with `tensors`; those that begin with
    `other_tensors` are no part of the policy. `text_field` names the dictionary that holds the text model's sizes.
    """

    architecture: str
    exports_as: str
    defaults: Values
    always: Values = dataclasses.field(default_factory=dict)
    may: frozenset[str] = frozenset()
    read_layers: Callable[[Values, int], dict[str, Any]] = _no_pattern
    write_layers: Callable[[Any], dict[str, Any]] = lambda config: {}
    whole_heads: bool = False
    tensors: str = "model."
    other_tensors: str | None = None
    text_field: str | None = None

    @property
    def has_bias_switch(self) -> bool:
        """Whether `attention_bias` switches the biases of q, k, v and o, all four together."""
        return "qkv_bias" in self.may


_ATTENTION_BIAS = frozenset({"qkv_bias", "output_bias"})
_WINDOWS = frozenset({"sliding_window", "full_attention_layers"})
_STARTS_AT_1 = {"bos_token_id": 1, "eos_token_id": 2}
_QWEN = {"max_position_embeddings": 32768, "num_key_value_heads": 32}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        "llama",
        {"max_position_embeddings": 2048, **_STARTS_AT_1},
        may=_ATTENTION_BIAS | {"mlp_bias"},
        whole_heads=True,
    ),
    "mistral": Family(
        "MistralForCausalLM",
        "mistral",
        {"max_position_embeddings": 4096 * 32, "num_key_value_heads": 8, **_STARTS_AT_1},
        may=frozenset({"sliding_window"}),
        read_layers=_read_mistral,
        write_layers=_write_mistral,
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        "qwen2",
        _QWEN,
        always={"qkv_bias": True},
        may=_WINDOWS,
        read_layers=_read_qwen,
        write_layers=_write_qwen,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        "qwen3",
        {**_QWEN, "head_dim": 128},
        always={"qk_norm": True},
        may=_WINDOWS | _ATTENTION_BIAS,
        read_layers=_read_qwen,
        write_layers=_write_qwen,
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        "smollm3",
        {
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "rope_theta": 2e6,
            "tie_word_embeddings": True,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        },
        may=_WINDOWS | _ATTENTION_BIAS | {"mlp_bias", "no_rope_layers"},
        read_layers=_read_smollm3,
        write_layers=_write_smollm3,
    ),
    "qwen3_vl": Family(
        "Qwen3VLForConditionalGeneration",
        "qwen3",
        {"max_position_embeddings": 128000, "num_key_value_heads": 32, "head_dim": 128, "rope_theta": 5e5},
        always={"qk_norm": True},
        may=_ATTENTION_BIAS,
        tensors="model.language_model.",
        other_tensors="model.visual.",
        text_field="text_config",
    ),
}


def check_family(config: ModelConfig) -> None:
    """Raises UnsupportedModel for a family that is not known, or a field that its class cannot express."""
    if config.family not in FAMILIES:
        raise UnsupportedModel("family", config.family, f"known families: {', '.join(FAMILIES)}")
    family = FAMILIES[config.family]
    for name, plain in PLAIN.items():
        value = getattr(config, name)
        wanted = family.always.get(name, plain)
        if value != wanted and name not in family.may:
            raise UnsupportedModel(name, value, f"{family.architecture} has {wanted!r}; choose another family")
    if family.has_bias_switch and config.qkv_bias != config.output_bias:
        raise UnsupportedModel(
            "output_bias", config.output_bias, f"{family.architecture} has one switch for it and qkv_bias"
        )
    if family.whole_heads and config.hidden_size % config.num_heads:
        raise UnsupportedModel(
            "num_heads (config.json: num_attention_heads)",
            config.num_heads,
            f"hidden_size={config.hidden_size} must be a multiple of it in a {family.architecture}",
        )
