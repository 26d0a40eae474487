"""A model folder → everything needed to sample from it: config, weights on the mesh, tokenizer, chat format.

Packaged policies are found by name (`tiny-tom`), everything else is a folder in Hugging Face layout. No weights are
changed here, and nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ditto_jax.errors import ConfigError, MissingInputError, ModelError
from ditto_jax.sampling.sampler import Sampler
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.text.chat import ChatFormat, make_chat_format
from ditto_jax.text.grammar import Grammars
from ditto_jax.text.tokenizer import Tokenizer, load_tokenizer
from model.config import ModelConfig
from model.errors import UnsupportedModel, WeightsError
from model.hf_io import load_config, load_params

PACKAGED = Path(__file__).resolve().parent / "policies"


@dataclasses.dataclass(frozen=True)
class Policy:
    """A loaded policy. `params` lie on the mesh; `folder` is where they came from."""

    folder: Path
    config: ModelConfig
    params: Any
    tokenizer: Tokenizer
    chat_format: ChatFormat

    def sampler(self, shapes: SamplerShapes, mesh: Mesh | None = None) -> Sampler:
        """Returns a sampler for this policy's vocabulary and stop tokens."""
        return Sampler(self.config, shapes, self._stop_ids, self.tokenizer.decode, mesh)

    def grammars(self) -> Grammars:
        """Returns what makes masks of the forms of replies, for this policy's tokens."""
        return Grammars(self.tokenizer, self.config.vocab_size, self._stop_ids)

    @property
    def _stop_ids(self) -> tuple[int, ...]:
        return (*self.chat_format.stop_ids, *self.config.eos_token_ids)


def find_policy(name: str) -> Path:
    """Returns the folder of a policy: a path, or the name of a packaged one. Raises MissingInputError."""
    if not name:
        packaged = ", ".join(sorted(p.name for p in PACKAGED.glob("*") if p.is_dir())) or "none"
        raise ConfigError(f"model_name_or_path is empty: give a model folder, or a packaged policy ({packaged})")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    packaged = PACKAGED / name
    if Path(name).name == name and packaged.is_dir():
        return packaged
    raise MissingInputError(
        f"model_name_or_path={name}: no such folder. Give a folder with config.json and safetensors (download it "
        "first, for example with `hf download`), or the packaged policy tiny-tom"
    )


def load_policy(
    name: str,
    mesh: Mesh,
    *,
    param_dtype: str = "float32",
    compute_dtype: str = "float32",
    quantization: str = "none",
    attention: str = "auto",
) -> Policy:
    """Returns the policy of a folder, its weights placed on `mesh`; `quantization` as in `model.quantization`.

    Raises MissingInputError (no folder), ModelError (unsupported, incomplete or damaged), ConfigError (a kernel of
    attention that these devices do not run).
    """
    folder = find_policy(name)
    _check_attention(attention)
    try:
        config = load_config(folder, param_dtype=param_dtype, compute_dtype=compute_dtype)
        config = dataclasses.replace(config, attention=attention)
        params = load_params(folder, config, mesh=mesh, quantization=quantization)
    except (UnsupportedModel, WeightsError) as error:
        raise ModelError(f"model_name_or_path={name}: {error}") from error
    tokenizer = load_tokenizer(folder, model_vocab_size=config.vocab_size)
    return Policy(folder, config, params, tokenizer, make_chat_format(tokenizer))


def _check_attention(name: str) -> None:
    wanted = {"cudnn": "gpu", "splash": "tpu"}.get(name)
    if wanted not in (None, jax.default_backend()):
        raise ConfigError(
            f"attention={name}: it needs a {wanted.upper()}, and this is a {jax.default_backend().upper()}; set auto"
        )
