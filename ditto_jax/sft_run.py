"""`ditto-jax sft`: a config → a policy trained from scratch on worked replies, saved as a Hugging Face folder.

Vocabulary, initial weights, stages, and a model card that says how the folder was made. The same configuration gives
the same files on the same machine. Nothing outside `output_dir` is written.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import jax
import jinja2

from ditto_jax.config import MeshConfig, TaskConfig
from ditto_jax.config_io import to_yaml
from ditto_jax.errors import ConfigError, RunDirectoryError
from ditto_jax.processes import require_one_process
from ditto_jax.runs.progress import TrainProgress
from ditto_jax.runs.run_dir import environment
from ditto_jax.setup import mesh_of
from ditto_jax.sft import LengthBuckets, StageConfig, train_stage
from ditto_jax.text.chat import make_chat_format
from ditto_jax.text.tokenizer import SENTENCEPIECE_FILE, load_tokenizer
from ditto_jax.text.tokenizer_training import TokenizerConfig, train_tokenizer
from model.config import ModelConfig
from model.errors import WeightsError
from model.hf_io import save_params
from model.llama import init

_CARD = jinja2.Environment(
    loader=jinja2.PackageLoader("ditto_jax"), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
)


@dataclasses.dataclass(frozen=True)
class ModelSizes:
    """Sizes of a policy trained from scratch; the vocabulary's size comes from its tokenizer."""

    hidden_size: int = 128
    intermediate_size: int = 352
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """A supervised run from scratch. `save_dtype` is that of the written weights."""

    output_dir: str = "policies/tiny"
    seed: int = 0
    model: ModelSizes = dataclasses.field(default_factory=ModelSizes)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    vocabulary_tasks: tuple[TaskConfig, ...] = ()
    stages: tuple[StageConfig, ...] = ()
    shapes: LengthBuckets = dataclasses.field(default_factory=LengthBuckets)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    save_dtype: str = "float16"

    def __post_init__(self):
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"stages: names {names} must be distinct and at least one; each seeds its own data")


def run_sft(config: SFTConfig, command: list[str]) -> Path:
    """Trains all stages and writes the folder; returns it. Raises RunDirectoryError if it cannot be written."""
    folder = Path(config.output_dir)
    if folder.exists() and not (folder / "config.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunDirectoryError(
            f"output_dir={folder}: exists and is no earlier policy (no config.json); left as it is: name another folder"
        )
    require_one_process("sft")
    with tempfile.TemporaryDirectory() as scratch:
        return _train_and_save(config, Path(scratch), command)


def _train_and_save(config: SFTConfig, scratch: Path, command: list[str]) -> Path:
    tasks = config.vocabulary_tasks or tuple(task for stage in config.stages for task in stage.tasks)
    train_tokenizer(config.tokenizer, tasks, config.seed, scratch / SENTENCEPIECE_FILE)
    tokenizer = load_tokenizer(scratch)
    chat_format = make_chat_format(tokenizer)
    model = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        tie_embeddings=True,
        bos_token_id=tokenizer.bos_id,
        eos_token_ids=tuple(chat_format.stop_ids),
        **dataclasses.asdict(config.model),
    )
    mesh = mesh_of(config.mesh)
    params: Any = init(jax.random.key(config.seed), model)
    history: dict[str, float] = {}
    with TrainProgress() as progress:
        for stage in config.stages:
            progress.note(f"stage {stage.name}: {stage.steps} steps on {', '.join(t.name for t in stage.tasks)}")
            recent: deque[float] = deque(maxlen=50)

            def report(step: int, nll: Any, seconds: float, stage=stage, recent=recent) -> None:
                recent.append(float(nll))
                if step % 50 == 0 or step == stage.steps:
                    mean = sum(recent) / len(recent)
                    history[stage.name] = mean
                    progress.note(f"{stage.name} step {step}/{stage.steps}  nll {mean:.4f}  {seconds:.0f} s")

            params = train_stage(
                params,
                stage,
                model,
                chat_format,
                tokenizer,
                mesh,
                config.seed,
                config.shapes,
                report,
            )
    return _save(config, scratch, model, params, history, command)


def _save(
    config: SFTConfig, scratch: Path, model: ModelConfig, params: Any, history: dict[str, float], command: list[str]
) -> Path:
    card = _CARD.get_template("policy_card.md.j2").render(
        name=Path(config.output_dir).name,
        config=config,
        model=model,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        history=history,
        command=" ".join(command),
        packages=environment()["packages"],
    )
    (scratch / "sft.yaml").write_text(to_yaml(config), encoding="utf-8")
    (scratch / "README.md").write_text(card, encoding="utf-8")
    folder = Path(config.output_dir)
    try:
        save_params(
            folder, model, params, dtype=config.save_dtype, extra_files=[p for p in scratch.iterdir() if p.is_file()]
        )
    except (OSError, WeightsError) as error:
        raise RunDirectoryError(f"cannot save the policy in {folder}: {error}") from error
    return folder
