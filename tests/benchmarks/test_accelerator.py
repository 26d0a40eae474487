"""The benchmark of an accelerator runs at tiny size on any device, and its counts follow from the sizes."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks.accelerator import main
from model.hf_layout import param_shapes
from model.presets import PRESETS


@pytest.mark.slow
def test_every_part_runs_at_tiny_size(tmp_path, capsys):
    sizes = ["--rows", "8", "--prefix", "128", "--ring", "64", "--prompts", "1", "--copy", "100000", "--rounds", "1"]
    main(["--output", str(tmp_path), "--model", "tiny", "--chip", "h200", *sizes])
    found = json.loads((tmp_path / "accelerator.json").read_text())
    tiny = PRESETS["tiny"]
    weights = sum(2 * math.prod(shape) for shape in param_shapes(tiny).values())
    keys = 2 * 2 * tiny.num_layers * tiny.num_kv_heads * tiny.head_dim * (8 * 64 + 128)  # rows' rings, one prefix
    decode = found["decode 8"]
    assert decode["bytes_a_step"] == weights + keys
    assert decode["bytes_per_s"] == pytest.approx(decode["bytes_a_step"] * decode["tokens_per_s"] / 8)
    for part, tokens in (("prefill", 128 + 8 * 16), ("update", 128 + 8 * 64)):
        assert found[part]["tokens"] == tokens
        assert found[part]["share_of_specification"] == pytest.approx(found[part]["flops"] / 989e12)
    split = found["steps"]["split"]
    assert split["time/refine_s"]["median"] > 0, "words were given and refined replies sampled"
    assert "DITTO step" in capsys.readouterr().out
