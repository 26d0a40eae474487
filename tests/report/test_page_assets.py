"""What stands in a page: libraries as published, data that cannot end their element, a policy naming every script."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re

import pytest

from ditto_jax.report import page_assets
from tests.report_runs import HOSTILE

_VENDORED = (*page_assets.CHART_LIBRARIES, *page_assets.BROWSER_LIBRARIES, page_assets.TABLE_STYLE)


@pytest.mark.parametrize("name", _VENDORED)
def test_library_is_the_file_whose_sum_and_licence_are_recorded(name):
    record = (page_assets.VENDOR / "README.md").read_text(encoding="utf-8")
    line = next(line for line in record.splitlines() if line.startswith(f"| `{name}`"))
    assert f"`{hashlib.sha256((page_assets.VENDOR / name).read_bytes()).hexdigest()}`" in line
    package = line.split("|")[2].split()[0]
    assert (page_assets.VENDOR / "licenses" / f"{package}.txt").stat().st_size > 500


def test_data_cannot_end_their_element():
    block = page_assets.json_block({HOSTILE: [HOSTILE, 1.5, None], "</script>": "<!--"})
    assert "<" not in block and not re.search(r"[\x00-\x1f\u202e\ud800]", block)
    assert json.loads(block)["</script>"] == "<!--"


def test_packed_data_are_the_same_bytes_every_time():
    value = {"prompts": [HOSTILE], "items": {"0.0": [1, 2]}}
    packed = page_assets.packed_block(value)
    assert packed == page_assets.packed_block(value)
    read = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert read["items"] == {"0.0": [1, 2]} and "⟨U+202E⟩" in read["prompts"][0]


def test_numbers_that_json_does_not_have_are_refused():
    with pytest.raises(ValueError, match="JSON"):
        page_assets.json_block({"value": float("nan")})


def test_policy_lets_only_the_named_scripts_run_and_only_a_served_page_connect():
    scripts = page_assets.scripts(["charts.js", "diff.min.js"])
    policy = page_assets.content_policy(scripts)
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and policy.count("sha256-") == 2
    assert "unsafe-eval" not in policy and "script-src 'unsafe-inline'" not in policy and "connect-src" not in policy
    assert "connect-src 'self'" in page_assets.content_policy(scripts, served=True)


def test_script_that_would_end_its_element_is_refused(tmp_path):
    (tmp_path / "bad.js").write_text("const end = '</script>';")
    with pytest.raises(ValueError, match="bad.js"):
        page_assets.script(tmp_path / "bad.js")
