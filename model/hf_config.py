"""A Hugging Face config.json ↔ the fields of `ModelConfig`.

In: the dictionary of a config.json, or a `ModelConfig`. Out: keyword arguments of `ModelConfig`, or the dictionary of
the class that an export writes. What a family adds stands in `model.families`, the rotary settings in `model.rope`.
Whatever is not understood is refused by its name. Reads no files (see `model.hf_load`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from model.checks import optional, optional_bool, required_count
from model.errors import UnsupportedModel
from model.families import FAMILIES, Family
from model.rope import read_rope, write_rope

if TYPE_CHECKING:
    from model.config import ModelConfig

# Fields of other architectures that change what is computed, unless they are absent or empty ...
_FOREIGN = (
    *("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"),
    *("attention_sinks", "attention_chunk_size", "attn_logit_softcapping", "final_logit_softcapping"),
    *("query_pre_attn_scalar", "use_qk_norm", "qk_layernorm", "clip_qkv", "attn_temperature_tuning"),
)
# ... or one.
_FOREIGN_FACTORS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")


def read_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keyword arguments of `ModelConfig` that a config.json describes, all but the dtypes.

    Absent fields take the defaults of the transformers class. Raises UnsupportedModel for a model type that is not
    known (naming those that are) and for every field that is not understood.
    """
    kind = values.get("model_type")
    if kind is None or kind not in FAMILIES:
        raise UnsupportedModel("model_type", kind, f"known model types: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    architectures = values.get("architectures")
    if architectures and family.architecture not in architectures:
        raise UnsupportedModel("architectures", architectures, f"the policy needs a {family.architecture}")
    text = _text_values(values, family)
    for part in (values, text):
        _refuse_foreign(part)
    heads = required_count(text, "num_attention_heads")
    hidden = required_count(text, "hidden_size")
    layers = required_count(text, "num_hidden_layers")
    positions = optional(text, "max_position_embeddings", family.defaults["max_position_embeddings"])
    theta, scaling = read_rope(
        text, family.defaults.get("rope_theta", 10000.0), positions, pictures=family.text_field is not None
    )
    return {
        "family": kind,
        "vocab_size": required_count(text, "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": required_count(text, "intermediate_size"),
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": _or_default(text, family, "num_key_value_heads", heads),
        "head_dim": _or_default(text, family, "head_dim", hidden // heads),
        "rms_norm_eps": optional(text, "rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_embeddings": optional_bool(text, "tie_word_embeddings", family.defaults.get("tie_word_embeddings", False)),
        "max_position_embeddings": positions,
        "bos_token_id": text.get("bos_token_id", family.defaults.get("bos_token_id")),
        "eos_token_ids": _read_eos(text.get("eos_token_id", family.defaults.get("eos_token_id"))),
        **family.always,
        **_read_biases(text, family),
        **family.read_layers(text, layers),
    }


def write_fields(config: ModelConfig) -> dict[str, Any]:
    """Returns the config.json of the class that an export of `config` writes (`architectures` names it)."""
    family = FAMILIES[FAMILIES[config.family].exports_as]
    eos = config.eos_token_ids
    written: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.exports_as,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rms_norm_eps": config.rms_norm_eps,
        **write_rope(config.rope_theta, config.rope_scaling),
        **family.write_layers(config),
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": (eos[0] if len(eos) == 1 else list(eos)) if eos else None,
        "pad_token_id": None,  # not the policy's business; one class has a default that small vocabularies lack
        "dtype": config.param_dtype,
    }
    if family.has_bias_switch:
        written["attention_bias"] = config.qkv_bias
    if "mlp_bias" in family.may:
        written["mlp_bias"] = config.mlp_bias
    return written


def _text_values(values: Mapping[str, Any], family: Family) -> Mapping[str, Any]:
    """The dictionary that describes the text model: the whole, or a part of it with what the whole says of the ends."""
    if family.text_field is None:
        return values
    text = values.get(family.text_field)
    if not isinstance(text, Mapping):
        raise UnsupportedModel(family.text_field, text, "config.json must describe the text model there")
    tied = optional_bool(values, "tie_word_embeddings")
    if optional_bool(text, "tie_word_embeddings", tied) != tied:
        raise UnsupportedModel(
            f"{family.text_field}.tie_word_embeddings", not tied, f"the whole model states {tied}; keep one of the two"
        )
    ends = {name: values[name] for name in ("bos_token_id", "eos_token_id") if values.get(name) is not None}
    return {**ends, **text, "tie_word_embeddings": tied}


def _refuse_foreign(values: Mapping[str, Any]) -> None:
    activation = optional(values, "hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedModel("hidden_act", activation, "only 'silu' (SwiGLU)")
    if values.get("quantization_config"):
        raise UnsupportedModel(
            "quantization_config",
            values["quantization_config"],
            "give unquantised weights in float32, bfloat16 or float16",
        )
    if "AutoModelForCausalLM" in (values.get("auto_map") or {}):
        raise UnsupportedModel("auto_map", values["auto_map"], "code that comes with a model is not run")
    for name in _FOREIGN:
        if values.get(name):
            raise UnsupportedModel(name, values[name], "no supported family has it")
    for name in _FOREIGN_FACTORS:
        if optional(values, name, 1) != 1:
            raise UnsupportedModel(name, values[name], "no supported family has it")


def _or_default(values: Mapping[str, Any], family: Family, name: str, derived: int) -> int:
    """A size whose absence means the default of the class, and whose null means what other sizes give."""
    value = values.get(name, family.defaults.get(name))
    return derived if value is None else value


def _read_biases(values: Mapping[str, Any], family: Family) -> dict[str, bool]:
    biases = {}
    attention = optional_bool(values, "attention_bias")
    if family.has_bias_switch:
        biases = {"qkv_bias": attention, "output_bias": attention}
    elif attention and not family.always.get("qkv_bias"):
        raise UnsupportedModel("attention_bias", True, f"{family.architecture} has none; only false")
    mlp = optional_bool(values, "mlp_bias")
    if mlp and "mlp_bias" not in family.may:
        raise UnsupportedModel("mlp_bias", True, f"{family.architecture} has none; only false")
    return {**biases, "mlp_bias": mlp}


def _read_eos(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)
