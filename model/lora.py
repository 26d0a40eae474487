"""Low-rank adapters (LoRA, arXiv 2106.09685): a small tree beside the frozen parameters, and how the two become one.

y = x W + (alpha / rank) (x A) B. Adapters are stacked on the layer axis like the kernels beside them, so that they ride
the same scan. `combine` yields one parameter value that every function of `model` takes; `merge` adds the products into
copies of the kernels instead. Which of the two trees is trained is not decided here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from model.config import DTYPES, ModelConfig
from model.hf_layout import param_shapes
from model.quantization import dequantize, flat, is_quantized

# Linear layers that can carry an adapter → the name that Hugging Face gives them.
TARGETS = {
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
}

Adapters = Any


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Size and place of the adapters. rank 0: none, all parameters are trained.

    target_modules: layers that get one, of q, k, v, o, gate, up, down. dtype: of the stored adapters. Raises
    ValueError.
    """

    rank: int = 32
    alpha: float = 64.0
    target_modules: tuple[str, ...] = tuple(TARGETS)
    dtype: str = "float32"

    def __post_init__(self):
        if self.rank < 0:
            raise ValueError(f"lora.rank={self.rank}: must be positive, for example 32, or 0 to train all parameters")
        if self.alpha <= 0:
            raise ValueError(f"lora.alpha={self.alpha}: must be positive, for example 64")
        unknown = [name for name in self.target_modules if name not in TARGETS]
        if unknown or not self.target_modules or len(set(self.target_modules)) != len(self.target_modules):
            raise ValueError(
                f"lora.target_modules={list(self.target_modules)}: choose distinct names of {', '.join(TARGETS)}"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"lora.dtype={self.dtype!r}: choose one of {', '.join(DTYPES)}")

    @property
    def scale(self) -> float:
        """alpha / rank, the factor of the adapters' product."""
        return self.alpha / self.rank


def adapter_shapes(config: ModelConfig, lora: LoraConfig) -> dict[str, tuple[int, int, int]]:
    """Returns the shape of every adapter leaf by its path: ".../lora_a" [L, in, r] and ".../lora_b" [L, r, out]."""
    shapes: dict[str, tuple[int, int, int]] = {}
    for path, shape in param_shapes(config).items():
        parent, _, leaf = path.rpartition("/")
        if leaf == "kernel" and parent.rpartition("/")[2] in lora.target_modules:
            layers, width, features = cast(tuple[int, int, int], shape)
            shapes[f"{parent}/lora_a"] = (layers, width, lora.rank)
            shapes[f"{parent}/lora_b"] = (layers, lora.rank, features)
    return shapes


def init_adapters(key: jax.Array, config: ModelConfig, lora: LoraConfig) -> Adapters:
    """Returns new adapters of `lora.dtype`: A uniform within ±in^-1/2 as PEFT draws it, B zero, so that nothing changes
    yet.
    """
    leaves = {}
    for number, (path, shape) in enumerate(adapter_shapes(config, lora).items()):
        if path.endswith("lora_b"):
            leaves[path] = jnp.zeros(shape, lora.dtype)
        else:
            bound = shape[1] ** -0.5
            drawn = jax.random.uniform(jax.random.fold_in(key, number), shape, jnp.float32, -bound, bound)
            leaves[path] = drawn.astype(lora.dtype)
    return unflatten_dict(leaves, sep="/")


def combine(base: Any, adapters: Adapters, lora: LoraConfig, dtype: str | None = None) -> Any:
    """Returns one parameter value: `base` with the adapters beside its kernels, B multiplied by `lora.scale`.

    dtype: to store these adapters in, their own if None; the compute dtype changes no result and spares casting them
    at every use. Differentiable in both. Nothing of `base` is copied.
    """
    leaves = dict(flat(base))
    for path, leaf in flat(adapters).items():
        scaled = leaf * lora.scale if path.endswith("lora_b") else leaf
        leaves[path] = scaled if dtype is None else scaled.astype(dtype)
    return unflatten_dict(leaves, sep="/")


def merge(base: Any, adapters: Adapters, lora: LoraConfig) -> Any:
    """Returns `base` with W + scale A B in place of each adapted W, summed in float32 and stored in W's dtype.

    A quantised kernel becomes a full one in `lora.dtype`, for the sum does not lie on its grid. Other leaves are those
    of `base`, not copies.
    """
    leaves, added = dict(flat(base)), flat(adapters)
    for name in [name for name in added if name.endswith("lora_a")]:
        parent = name.rpartition("/")[0]
        product = lora.scale * jnp.einsum(
            "lir,lro->lio",
            added[name].astype(jnp.float32),
            added[f"{parent}/lora_b"].astype(jnp.float32),
            precision="highest",
        )
        path = f"{parent}/kernel"
        if is_quantized(leaves, path):
            kernel = dequantize(leaves.pop(f"{path}_int8"), leaves.pop(f"{path}_scale"), -2)
            leaves[path] = (kernel + product).astype(lora.dtype)
        else:
            leaves[path] = (leaves[path].astype(jnp.float32) + product).astype(leaves[path].dtype)
    return unflatten_dict(leaves, sep="/")
