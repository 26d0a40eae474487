"""Judge settings that cannot work are refused where they are read, in words that help and without showing secrets."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from ditto_jax.errors import ConfigError
from ditto_jax.judge import JudgeConfig, make_judge
from ditto_jax.strict import build

SECRET = "sk-proj-0123456789"


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"kind": "oracle"}, "rules, openai"),
        ({"kind": "openai"}, "judge.model=None"),
        ({"kind": "openai", "model": " "}, "judge.model=' '"),
        ({"base_url": "localhost:8000/v1"}, "http://localhost:8000/v1 works"),
        ({"base_url": "ftp://host/v1"}, "judge.base_url='ftp://host/v1'"),
        ({"base_url": "http://host:port/v1"}, "judge.base_url"),
        ({"base_url": "http://"}, "judge.base_url"),
        ({"base_url": "http://host/v1/chat/completions"}, "set it to http://host/v1"),
        ({"base_url": f"https://me:{SECRET}@host/v1"}, "password"),
        ({"base_url": f"https://host/v1?key={SECRET}"}, "query"),
        ({"api_key_env": SECRET}, "name of an environment variable"),
        ({"max_concurrent": 0}, "judge.max_concurrent=0"),
        ({"max_tokens": 0}, "judge.max_tokens=0"),
        ({"max_retries": -1}, "judge.max_retries=-1"),
        ({"unparsable_retries": -1}, "judge.unparsable_retries=-1"),
        ({"timeout_s": 0.0}, "judge.timeout_s=0"),
        ({"timeout_s": float("nan")}, "judge.timeout_s=nan"),
        ({"timeout_s": float("inf")}, "judge.timeout_s=inf"),
        ({"temperature": -0.1}, "judge.temperature=-0.1"),
        ({"temperature": float("nan")}, "judge.temperature=nan"),
        ({"max_error_rate": 1.5}, "judge.max_error_rate=1.5"),
        ({"feedback_content": "none"}, "full, content_free, shuffled"),
        ({"response_format": "xml"}, "json_schema, json_object, none"),
        ({"max_tokens_parameter": "limit"}, "max_completion_tokens"),
    ],
)
def test_impossible_values_are_refused_by_name(values: dict, part: str):
    with pytest.raises(ConfigError, match=re.escape(part)) as raised:
        JudgeConfig(**values)
    assert str(raised.value).startswith("judge.")
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("values", [{"api_key_env": SECRET}, {"max_concurrent": 0, "api_key_env": "NAME"}])
def test_the_message_is_the_same_when_settings_come_from_a_file(values: dict):
    with pytest.raises(ConfigError) as direct:
        JudgeConfig(**values)
    with pytest.raises(ConfigError) as from_file:
        build(JudgeConfig, values, where="judge")
    assert str(from_file.value) == str(direct.value)


def test_defaults_work_and_need_nothing():
    assert make_judge(JudgeConfig()).identity == "rules"


def test_identity_names_kind_model_and_control_arm():
    openai = JudgeConfig(kind="openai", model="m", base_url="http://127.0.0.1:1/v1", feedback_content="content_free")
    assert make_judge(openai).identity == "openai:m+content_free"
    assert make_judge(JudgeConfig(feedback_content="content_free")).identity == "rules+content_free"


def test_judges_are_imported_without_jax_and_rules_without_an_http_stack():
    program = (
        "import sys, ditto_jax.judge as judge; judge.make_judge(judge.JudgeConfig()); "
        "rules = {'httpx2', 'jax'} & set(sys.modules); import ditto_jax.judge.openai; "
        "print(rules, 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()", "False"]
