"""Presets have the sizes of the published models, and every parameter of Qwen3-8B lies where the stored table says."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from model.config import ModelConfig
from model.families import FAMILIES
from model.hf_layout import param_shapes
from model.partition import PARAMETER_AXES
from model.presets import PRESETS, TINY
from tests.model.shardings import MESHES, table

STORED = Path(__file__).with_name("qwen3_8b_shardings.txt")

# As the models' cards and their safetensors headers state them.
PUBLISHED = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-8b": 8_190_735_360,
    "qwen3-vl-8b": 8_190_735_360,
    "llama-3.1-8b": 8_030_261_248,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name):
    assert sum(math.prod(shape) for shape in param_shapes(PRESETS[name]).values()) == PUBLISHED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_what_their_own_config_file_says(name):
    again = ModelConfig.from_hf(PRESETS[name].to_hf())
    assert again == dataclasses.replace(PRESETS[name], family=FAMILIES[PRESETS[name].family].exports_as)


def test_tiny_has_about_eight_hundred_thousand_parameters():
    assert 750_000 < sum(math.prod(shape) for shape in param_shapes(TINY).values()) < 850_000


def test_every_parameter_of_qwen3_8b_lies_where_the_table_says():
    assert table() == STORED.read_text(encoding="utf-8")


def test_the_table_splits_every_matrix_over_eight_devices_and_notices_another_split(monkeypatch):
    assert set(MESHES) == {"1x8", "4x2", "2x2x2"}
    monkeypatch.setitem(PARAMETER_AXES, ("down", "kernel"), (None, "fsdp", "tensor"))
    assert table() != STORED.read_text(encoding="utf-8")
