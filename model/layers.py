"""Building blocks of the policy: RMSNorm, rotary embedding with Llama-3 scaling, SwiGLU, projection and embedding.

Norm statistics are computed in float32 whatever the compute dtype. Parameters keep the dtype they were created with
and are cast to the compute dtype at use. Nothing here knows about caches or masks.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from model.config import ModelConfig
from model.partition import rank_first
from model.quantization import dequantize, int8_product


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, statistics in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.dtype(self.config.param_dtype))
        x32 = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        normed = x32 * jax.lax.rsqrt(variance + self.config.rms_norm_eps)
        return (normed * scale.astype(jnp.float32)).astype(x.dtype)


class Projection(nn.Module):
    """Linear map [..., in] → [..., features], with a bias if asked for.

    Initial weights have variance gain² / in, so that narrow policies trained from scratch start with activations of
    order one; biases start at zero. Parameters may hold the kernel as int8 codes (`model.quantization`), and an adapter
    beside it (`model.lora`).
    """

    config: ModelConfig
    features: int
    gain: float = 1.0
    bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.has_variable("params", "kernel_int8"):
            codes, scale = (self.get_variable("params", f"kernel_{name}") for name in ("int8", "scale"))
            out = int8_product(x, codes, scale, -2).astype(x.dtype)
        else:
            kernel = self.param(
                "kernel",
                nn.initializers.normal(self.gain * x.shape[-1] ** -0.5),
                (x.shape[-1], self.features),
                jnp.dtype(self.config.param_dtype),
            )
            out = x @ kernel.astype(x.dtype)
        if self.has_variable("params", "lora_a"):
            a, b = (self.get_variable("params", f"lora_{name}") for name in ("a", "b"))
            a = rank_first(a, str(self.name))
            out = out + (x @ a.astype(x.dtype)) @ b.astype(x.dtype)
        if not self.bias:
            return out
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.dtype(self.config.param_dtype))
        return out + bias.astype(x.dtype)


class Embedding(nn.Module):
    """Token ids int[...] → rows [..., hidden] of the table in the compute dtype; the table may be int8 codes."""

    config: ModelConfig

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        c = self.config
        if self.has_variable("params", "embedding_int8"):
            codes, scale = (self.get_variable("params", f"embedding_{name}") for name in ("int8", "scale"))
            rows = dequantize(jnp.take(codes, ids, axis=0), jnp.take(scale, ids, axis=0), -1)
        else:
            init = nn.initializers.normal(c.hidden_size**-0.5)
            table = self.param("embedding", init, (c.vocab_size, c.hidden_size), jnp.dtype(c.param_dtype))
            rows = jnp.take(table, ids, axis=0)
        return rows.astype(jnp.dtype(c.compute_dtype))


def residual_gain(config: ModelConfig) -> float:
    """Returns the initial gain of projections that write to the residual stream: its variance grows to order one."""
    return (2 * config.num_layers) ** -0.5


class SwiGLU(nn.Module):
    """Gated MLP: down(silu(gate(x)) * up(x))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, bias = self.config.intermediate_size, self.config.mlp_bias
        gate = Projection(self.config, width, bias=bias, name="gate")(x)
        up = Projection(self.config, width, bias=bias, name="up")(x)
        gate, up = (checkpoint_name(x, "mlp_in") for x in (gate, up))
        gain = residual_gain(self.config)
        return Projection(self.config, x.shape[-1], gain, bias, name="down")(nn.silu(gate) * up)


def rotary_frequencies(config: ModelConfig) -> jax.Array:
    """Returns float32[D/2] angular frequencies, with Llama-3 long-context scaling where the config asks for it."""
    half = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequency = 1.0 / (config.rope_theta**half)
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    wavelength = 2 * jnp.pi / frequency
    low = scaling.original_max_position_embeddings / scaling.low_freq_factor
    high = scaling.original_max_position_embeddings / scaling.high_freq_factor
    smooth = (scaling.original_max_position_embeddings / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - smooth) * frequency / scaling.factor + smooth * frequency
    scaled = jnp.where(wavelength > low, frequency / scaling.factor, frequency)
    return jnp.where((wavelength <= low) & (wavelength >= high), blended, scaled)


def rotary_tables(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (cos, sin), each float32[B, T, D/2], for int32[B, T] positions."""
    angles = positions[..., None].astype(jnp.float32) * rotary_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Returns x [B, T, heads, D] rotated, in the half-split convention of Hugging Face weights."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
