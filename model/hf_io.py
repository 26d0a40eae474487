"""Weights in and out: a Hugging Face folder (config.json + safetensors) ↔ the parameter tree. The public names.

Reading streams into device shards (`model.hf_load`), writing is checked before it replaces anything (`model.hf_save`),
and the text tower of a larger model can be put back into it (`model.hf_graft`).
"""

from __future__ import annotations

from model.hf_graft import graft_params
from model.hf_load import load_config, load_params
from model.hf_save import save_params

__all__ = ["graft_params", "load_config", "load_params", "save_params"]
