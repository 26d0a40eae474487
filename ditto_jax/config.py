"""Everything that a run depends on, as frozen dataclasses; YAML presets and command-line flags only override.

Each number that affects learning is a field here. Impossible combinations are refused when the config is built, with
a value that would work. Names follow TRL where TRL has one. Loading, layering and printing are `config_io.py`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from ditto_jax.errors import ConfigError
from ditto_jax.judge.config import JudgeConfig, PartnerConfig, PolicyConfig, RoleConfig, ShadowConfig
from ditto_jax.judge.words import SHUFFLED
from ditto_jax.objective import Kl, ObjectiveConfig, make_objective, validate_run
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.strict import build, is_folder_name
from ditto_jax.update.state import OptimizerConfig
from model.lora import LoraConfig
from model.remat import Remat

Dtype = Literal["float32", "bfloat16", "float16"]
AttentionKernel = Literal["auto", "reference", "cudnn", "splash"]


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where a task's examples come from (see `ditto_jax.tasks.base.Source`).

    kind "auto" takes the public files, then the released rows at `path` (default $SOUL_DATA_DIR/<task>), then what the
    task generates: the first that is there and has the split. path may hold environment variables, for example
    $SOUL_DATA_DIR/hitom. optional: if the path (or a variable in it) is absent, or no prompt fits (overlong=skip), the
    entry is skipped and listed instead of ending the run. bad_rows, overlong: whether a malformed row, or one whose
    prompt does not fit the configured shapes, ends the run or is left out and counted.
    train_on_evaluation_data: train on a source although its owners want it for evaluation only.
    """

    kind: Literal["generated", "files", "parquet", "auto"] = "generated"
    path: str | None = None
    split: Literal["train", "validation", "test"] = "train"
    limit: int | None = None
    seed: int = 0
    optional: bool = False
    bad_rows: Literal["error", "skip"] = "error"
    overlong: Literal["error", "skip"] = "error"
    train_on_evaluation_data: bool = False

    def __post_init__(self):
        if self.kind in ("files", "parquet") and not self.path:
            raise ConfigError(f"source.kind={self.kind}: set source.path to the file or folder to read")
        if self.kind in ("generated", "auto") and self.limit is None:
            raise ConfigError(f"source.kind={self.kind}: set source.limit, the number of examples to generate")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"source.limit={self.limit}: must be at least 1")


@dataclasses.dataclass(frozen=True)
class GateConfig:
    """Which drafts of a task are asked about in words, and by whom; never in evaluation.

    below: drafts that score below it; None takes rollout.feedback_below. all_failed: only where every judged draft of
    the prompt does (arXiv 2506.13923). by: the judge (or the model of the role
    "feedback"), the task's rules, or nobody. until_step: the last step with feedback; None sets no end.
    """

    below: float | None = None
    by: Literal["judge", "rules", "nobody"] = "judge"
    until_step: int | None = None
    all_failed: bool = False


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """One task of a mixture.

    name: of a known task, or "path.py:MyTask" for one of your own. label: its name in reports (default: the task's
    name). options: the task's own. feedback: its gate. judge: settings of `judge` that differ for this task.
    """

    name: str
    weight: float = 1.0
    label: str = ""
    source: SourceConfig = dataclasses.field(default_factory=lambda: SourceConfig(limit=1024))
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    feedback: GateConfig = dataclasses.field(default_factory=GateConfig)
    judge: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.weight <= 0:
            raise ConfigError(f"tasks.{self.name}.weight={self.weight}: must be positive; leave the task out instead")
        if self.label and not is_folder_name(self.label):
            raise ConfigError(
                f"tasks.{self.name}.label={self.label!r}: give a plain folder name, for example {self.name}-2"
            )

    @property
    def known_as(self) -> str:
        """The label: as set, else the task's name, without the path of a file."""
        return self.label or self.name.rpartition(":")[2]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh; one may be -1 and takes the devices that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How drafts and refined rollouts are sampled, and when a draft is refined.

    prompts_per_step (N), num_generations (G): a step samples N x G drafts. max_completion_length: tokens of a whole
    episode's response, observations included. feedback_below: drafts that score below it get feedback and a refined
    rollout; refined_per_draft is 1. Training samples from the untruncated distribution, so that the recorded
    log-probs are the policy's. overlap: refine the drafts of a prompt as soon as its words are back, while others are
    sampled (streaming); the same when all drafts of the step are judged, with the same results to the bit (barrier); or
    in two calls that are laid out for their requests (off), which the two halves of the prompts can have by turns, one
    sampled while the other is judged (waves); auto streams where a judge is asked that takes its time,
    and the task and the objective allow it (docs/how-it-works.md). max_feedback_length: tokens that words may add to a
    prompt with the first two. steps_behind: 0 samples a step with the weights that learn from it; 1 with those of one
    step before, so that the rollouts of the next step are sampled and judged while the present one is learned from;
    every term of the objective then needs a `mismatch`, the weight for the policy having moved on. constrained: hold
    replies to the forms that tasks say (docs/tasks.md); log-probs, of the sampler and of the update, are then those of
    the distribution over the tokens that were allowed.
    """

    prompts_per_step: int = 64
    num_generations: int = 8
    max_completion_length: int = 1024
    temperature: float = 1.0
    stop_strings: tuple[str, ...] = ()
    feedback_below: float = 1.0
    overlap: Literal["auto", "streaming", "barrier", "waves", "off"] = "auto"
    max_feedback_length: int = 256
    steps_behind: Literal[0, 1] = 0
    constrained: bool = False

    def __post_init__(self):
        if self.max_feedback_length < 1:
            raise ConfigError(
                f"rollout.max_feedback_length={self.max_feedback_length}: must be at least 1; set it to 256"
            )
        if self.prompts_per_step < 1:
            raise ConfigError(f"rollout.prompts_per_step={self.prompts_per_step}: must be at least 1")
        if self.num_generations < 2:
            raise ConfigError(
                f"rollout.num_generations={self.num_generations}: group advantages need at least 2 drafts; set it to 8"
            )
        if self.temperature <= 0:
            raise ConfigError(
                f"rollout.temperature={self.temperature}: training samples need a positive value; set 1.0"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The update: how often, in what pieces, and the length buckets of its rows (ascending).

    A group is `lanes` lanes of `suffix` tokens, into which rows are packed, behind the shared prefixes of one or more
    prompts, `prefix` tokens together; of each list the widths are chosen that cost an update least. micro_batch: groups
    computed at once, the measure of memory. gradient_dtype: of the gradients summed over micro-batches. remat: what the
    backward pass computes again instead of reading it: nothing (none), whole layers (full), all of a layer but its
    attention (save_attention), or but all its matrix products, whose results are kept (save_projections).
    logprob_chunk: positions that have logits at a time.
    """

    max_steps: int = 120
    updates_per_step: int = 1
    micro_batch: int = 16
    lanes: int = 8
    prefix: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192)
    suffix: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    remat: Remat = "none"
    logprob_chunk: int = 1024
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for name in ("max_steps", "updates_per_step", "micro_batch", "lanes", "logprob_chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name}={getattr(self, name)}: must be at least 1")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation without feedback: tasks, sampling, and how many samples per item. temperature 0 is greedy.

    constrained: hold replies to the forms that tasks say (docs/evaluation.md), which gives other figures.
    """

    tasks: tuple[TaskConfig, ...] = ()
    temperature: float = 0.0
    num_samples: int = 1
    constrained: bool = False
    every: int = 0  # steps between evaluations during training; 0 = only before and after
    with_feedback: bool = False  # also measure the refined reply after feedback, and after content-free feedback
    bootstrap: int = 2000
    confidence: float = 0.95
    allow_overlap: bool = False  # with the training data: stories, books, conversations in both

    def __post_init__(self):
        if self.num_samples < 1:
            raise ConfigError(f"evaluation.num_samples={self.num_samples}: must be at least 1")
        if self.num_samples > 1 and self.temperature == 0:
            raise ConfigError("evaluation.num_samples: greedy samples are all alike; set evaluation.temperature to 1.0")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A training or evaluation run. See configs/ for presets; every field can be set by `--field` or `--part.field`.

    dtype: of activations and matrix products. param_dtype: of the stored parameters. quantization: store the matrices
    of a frozen base in 8 bits, those of the layers (int8) or all (int8_all). attention: the kernel of training, scoring
    and prefill (docs/models.md); auto takes that of the device. lora: train adapters and leave the base
    as it is; without it, or with rank 0, all parameters are trained. adapter_name_or_path: PEFT folder with adapters to
    begin with, or to evaluate. policy: an endpoint to evaluate in the place of model_name_or_path. judging: which of
    several processes ask judges and partners: all, each for its share of the prompts, or the leader.
    """

    model_name_or_path: str = ""
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    quantization: Literal["none", "int8", "int8_all"] = "none"
    attention: AttentionKernel = "auto"
    lora: LoraConfig = dataclasses.field(default_factory=lambda: LoraConfig(rank=0))
    adapter_name_or_path: str = ""
    output_dir: str = "runs"
    run_name: str = "run"
    seed: int = 0
    resume: Literal["auto", "never", "must"] = "auto"
    overwrite: bool = False
    tasks: tuple[TaskConfig, ...] = ()
    rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    sampler: SamplerShapes = dataclasses.field(default_factory=SamplerShapes)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)
    shadow: ShadowConfig = dataclasses.field(default_factory=ShadowConfig)
    partner: PartnerConfig = dataclasses.field(default_factory=PartnerConfig)
    endpoints: tuple[RoleConfig, ...] = ()  # for single roles: narrator, next_speaker, feedback …
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    judging: Literal["all", "leader"] = "all"
    evaluation: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    save_steps: int = 50
    save_total_limit: int = 2
    log_completions: bool = True
    report_to: tuple[Literal["none", "tensorboard", "wandb", "trackio"], ...] = ()  # trackers, beside metrics.jsonl
    profile_steps: tuple[int, ...] = ()  # steps to record with the JAX profiler

    def __post_init__(self):
        validate_run(
            make_objective(self.objective),
            num_generations=self.rollout.num_generations,
            max_completion_length=self.rollout.max_completion_length,
            feedback_is_given=not self.tasks or any(map(self._may_be_asked_about, self.tasks)),
            steps_behind=self.rollout.steps_behind,
        )
        if self.rollout.steps_behind and self.shadow.kind != "none":
            raise ConfigError(
                f"rollout.steps_behind={self.rollout.steps_behind} with shadow.kind={self.shadow.kind}: second "
                "opinions are collected when nothing else is judged; set rollout.steps_behind to 0 or shadow.kind to "
                "none"
            )
        self._check_constrained()
        if self.train.updates_per_step > self.rollout.prompts_per_step:
            raise ConfigError(
                f"train.updates_per_step={self.train.updates_per_step} exceeds rollout.prompts_per_step="
                f"{self.rollout.prompts_per_step}: rows of one prompt stay in one update; lower it"
            )
        if self.rollout.prompts_per_step % self.train.updates_per_step:
            whole = self.rollout.prompts_per_step // self.train.updates_per_step * self.train.updates_per_step
            raise ConfigError(
                f"rollout.prompts_per_step={self.rollout.prompts_per_step}: not divisible by train.updates_per_step="
                f"{self.train.updates_per_step}, so that a prompt's weight would depend on its update; {whole} works"
            )
        if self.rollout.max_completion_length < 1:
            raise ConfigError(f"rollout.max_completion_length={self.rollout.max_completion_length}: must be positive")
        if self.save_steps < 1 or self.save_total_limit < 1:
            raise ConfigError(
                f"save_steps={self.save_steps}, save_total_limit={self.save_total_limit}: at least 1 each"
            )
        for where, tasks in (("tasks", self.tasks), ("evaluation.tasks", self.evaluation.tasks)):
            for task in tasks:
                self._check_judge_of(task, where)
            labels = [task.known_as for task in tasks]
            if len(set(labels)) != len(labels):
                raise ConfigError(f"{where}: labels {labels} must differ; set `label` on tasks that repeat a name")
        if "none" in self.report_to and len(self.report_to) > 1:
            raise ConfigError(f"report_to={list(self.report_to)}: none stands alone; leave it out")
        if self.overwrite and self.resume == "must":
            raise ConfigError(
                "overwrite with resume=must: one deletes the run that the other continues; drop one of them"
            )
        if self.sampler.merge_adapters and self.quantization != "none":
            raise ConfigError(
                f"sampler.merge_adapters with quantization={self.quantization}: the merged copy would be a "
                "full-precision model beside the small one; set sampler.merge_adapters to false"
            )
        if not is_folder_name(self.run_name):
            raise ConfigError(f"run_name={self.run_name!r}: give a plain folder name, for example my_run")

    def _check_constrained(self) -> None:
        """A divergence over candidates would compare tokens that were not allowed."""
        objective = make_objective(self.objective)
        if self.rollout.constrained and any(isinstance(t.loss, Kl) and not t.loss.sampled for t in objective.terms):
            raise ConfigError(
                f"rollout.constrained with objective.name={objective.name}: its divergence is taken over candidate "
                "tokens, some of which were not allowed; set rollout.constrained to false, or take an objective of "
                "sampled tokens such as ditto"
            )

    def _may_be_asked_about(self, task: TaskConfig) -> bool:
        """False for a task whose gate lets no draft through."""
        below = self.rollout.feedback_below if task.feedback.below is None else task.feedback.below
        return task.feedback.by != "nobody" and below > -math.inf

    def _check_judge_of(self, task: TaskConfig, where: str) -> None:
        own, common = self.judge_for(task).feedback_content, self.judge.feedback_content
        if own != common and SHUFFLED in (own, common):
            raise ConfigError(
                f"{where}.{task.known_as}.judge.feedback_content={own}: words are shuffled among all drafts of a step "
                f"or not at all; leave it out and set judge.feedback_content={SHUFFLED}"
            )

    def judge_for(self, task: TaskConfig) -> JudgeConfig:
        """Returns the settings of the judge of one task. Raises ConfigError for values that cannot work."""
        if not task.judge:
            return self.judge
        return build(
            JudgeConfig, {**dataclasses.asdict(self.judge), **task.judge}, where=f"tasks.{task.known_as}.judge"
        )
