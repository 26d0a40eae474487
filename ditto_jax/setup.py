"""Config → the live parts of a run: mesh, policy, tasks, judges, engine. Everything that can be missing is found here.

Called by training and evaluation alike, so that both see the same prompts, shapes and judges. Starts nothing.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from ditto_jax.config import MeshConfig, RunConfig, TaskConfig
from ditto_jax.errors import ConfigError, MissingInputError
from ditto_jax.evaluation.evaluate import Judges
from ditto_jax.judge import feedback_judge, make_judge
from ditto_jax.judge.base import Judge
from ditto_jax.judge.config import JudgeConfig, ShadowConfig
from ditto_jax.judge.desk import JudgeDesk
from ditto_jax.judge.division import DividedJudge
from ditto_jax.judge.endpoint import resolve_endpoint
from ditto_jax.judge.hub import Hub
from ditto_jax.judge.shadow import SecondOpinions, Shadow
from ditto_jax.policy import Policy, load_policy
from ditto_jax.rollouts.api_engine import ApiEngine
from ditto_jax.rollouts.engine import Engine
from ditto_jax.rollouts.forms import require_forms
from ditto_jax.rollouts.partners import Partners, RoleBook
from ditto_jax.rollouts.prompt_lengths import Room, require_room, room_of, with_room
from ditto_jax.rollouts.prompts import LoadedTask, PromptStream, load_task
from ditto_jax.rollouts.rollout import Player
from ditto_jax.tasks.splits import require_disjoint
from ditto_jax.team.post import Post
from ditto_jax.team.share import shared_out
from model.partition import make_mesh

logger = logging.getLogger(__name__)

_WHERE_DATA = "fetch it and set source.path (or the variable in it, such as SOUL_DATA_DIR) to where it lies"


@dataclasses.dataclass(frozen=True)
class EvaluationParts:
    """What an evaluation works with. `skipped`: optional tasks of the evaluation that cannot be measured, and why."""

    player: Player
    judge: JudgeDesk
    judges: Judges
    shadow: Shadow | None
    partners: Partners
    hub: Hub
    evaluation: tuple[LoadedTask, ...]
    skipped: Mapping[str, str]

    async def check(self) -> None:
        """Raises JudgeUnavailableError if judges or partners cannot be asked."""
        await self.judge.check()
        if self.shadow is not None:
            await self.shadow.check()
        await self.partners.check()

    async def aclose(self) -> None:
        """Closes all connections."""
        await self.judges.aclose()
        if self.shadow is not None:
            await self.shadow.aclose()
        await self.partners.aclose()
        self.hub.close()

    def require_budget(self) -> None:
        """Returns nothing; raises BudgetSpentError if a judge or partner was not asked because a budget is spent."""
        self.hub.require_budget()

    def release(self) -> None:
        """Lets go of what playing has left on the devices."""

    def counters(self) -> dict[str, float]:
        """Cumulative counts and costs of judges (`judge/…`), partners (`partner/…`) and the shadow (`shadow/…`)."""
        parts = {"judge": self.judge, "partner": self.partners, "shadow": self.shadow}
        return {
            f"{area}/{name}": value
            for area, part in parts.items()
            if part is not None
            for name, value in part.counters().items()
        }

    async def second_opinions(self) -> SecondOpinions:
        """Returns what the shadow judge thinks of the rollouts since the last call; nothing where there is none."""
        return SecondOpinions() if self.shadow is None else await self.shadow.settle()


@dataclasses.dataclass(frozen=True)
class EndpointParts(EvaluationParts):
    """What an evaluation of a policy behind an endpoint works with: neither weights nor devices."""

    endpoint: ApiEngine

    async def check(self) -> None:
        """Raises JudgeUnavailableError if the policy, the judge or a partner cannot be asked."""
        await self.endpoint.check()
        await super().check()

    async def aclose(self) -> None:
        await self.endpoint.aclose()
        await super().aclose()


@dataclasses.dataclass(frozen=True)
class Parts(EvaluationParts):
    """What a run with weights of its own works with. `engine` is the player."""

    mesh: Mesh
    policy: Policy
    engine: Engine

    def release(self) -> None:
        self.engine.sampler.release()


def mesh_of(config: MeshConfig) -> Mesh:
    """Returns the configured mesh over all devices; raises ConfigError if the sizes do not fit them."""
    try:
        return make_mesh(config.data, config.fsdp, config.tensor)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def load_tasks(configs: Sequence[TaskConfig], training: bool = False) -> tuple[tuple[LoadedTask, ...], dict[str, str]]:
    """Returns (loaded tasks, label → why for optional tasks whose data is absent)."""
    loaded, skipped = [], {}
    for config in configs:
        try:
            loaded.append(load_task(config, training))
        except MissingInputError as error:
            if not config.source.optional:
                raise
            skipped[config.known_as] = f"its data is absent: {error}"
    return tuple(loaded), skipped


def _shadow(config: ShadowConfig, hub: Hub) -> Shadow | None:
    if config.kind != "openai":
        return None
    from ditto_jax.judge.client import ChatClient  # rules need no HTTP stack

    return Shadow(config, ChatClient(config, resolve_endpoint(config), hub=hub))


def judge_desk(
    config: RunConfig,
    tasks: Sequence[LoadedTask],
    hub: Hub | None = None,
    shadow: Shadow | None = None,
    post: Post | None = None,
    **changes: Any,
) -> JudgeDesk:
    """Returns the judge of a mixture; tasks with equal settings share one. post: to the other processes of the run, if
    there are any. changes: of the settings of every judge.
    """
    made: dict[JudgeConfig, Judge] = {}

    def one(settings: JudgeConfig) -> Judge:
        settings = dataclasses.replace(settings, **changes)
        if settings not in made:
            made[settings] = judge = make_judge(settings, hub)
            if post is not None:
                made[settings] = DividedJudge(judge, post, f"judge {len(made)} {sorted(changes.items())}")
        return made[settings]

    scorers, coaches = {}, {}
    for loaded in tasks:
        if loaded.config is None:
            continue
        settings = config.judge_for(loaded.config)
        scorers[loaded.task] = one(settings)
        by_rules = loaded.config.feedback.by == "rules"
        coaches[loaded.task] = one(JudgeConfig() if by_rules else feedback_judge(settings, config.endpoints))
    return JudgeDesk(one(config.judge), scorers, coaches, shadow)


def check_held_out(train: Sequence[LoadedTask], held_out: Sequence[LoadedTask]) -> None:
    """Returns nothing; raises DataError if a story, conversation or book of the training data is in `held_out`."""
    for tested in held_out:
        for trained in train:
            require_disjoint(trained.groups, tested.groups, f"tasks.{trained.label} and evaluation.{tested.label}")


def training_stream(config: RunConfig) -> tuple[PromptStream, dict[str, str]]:
    """Returns (the prompts to train on, label → why for optional tasks whose data is absent)."""
    if not config.tasks:
        raise ConfigError("tasks: the run has no task to train on; list at least one under `tasks` in the YAML")
    loaded, skipped = load_tasks(config.tasks, training=True)
    if not loaded:
        raise MissingInputError(f"tasks: {_listed(skipped)}; {_WHERE_DATA}")
    return PromptStream(loaded, config.seed), skipped


def _listed(skipped: Mapping[str, str]) -> str:
    return "; ".join(f"{label}: {why}" for label, why in skipped.items())


def _evaluation_tasks(config: RunConfig) -> tuple[tuple[LoadedTask, ...], dict[str, str]]:
    evaluation, skipped = load_tasks(config.evaluation.tasks)
    if config.evaluation.tasks and not evaluation:
        raise MissingInputError(f"evaluation.tasks: {_listed(skipped)}; {_WHERE_DATA}")
    return evaluation, skipped


def assemble_endpoint(config: RunConfig) -> EndpointParts:
    """Returns the parts of an evaluation of a policy behind an endpoint; touches no device.

    Raises a DittoError that says what is missing or cannot work.
    """
    evaluation, skipped = _evaluation_tasks(config)
    hub = _hub(config)
    judge = judge_desk(config, evaluation, hub)
    judges = Judges(judge, _content_free(config, evaluation, hub))
    partners = RoleBook(config.partner, config.endpoints, hub)
    endpoint = ApiEngine(config.policy, partners, config.rollout.stop_strings, hub)
    if config.evaluation.constrained:
        require_forms(evaluation, "evaluation.constrained", endpoint.check_form)
    return EndpointParts(endpoint, judge, judges, None, partners, hub, evaluation, skipped, endpoint)


def _hub(config: RunConfig, process: int = 0) -> Hub:
    folder = Path(config.output_dir) / config.run_name
    return Hub(folder / "processes" / str(process) if process else folder, is_new=config.overwrite)


def _content_free(
    config: RunConfig, evaluation: Sequence[LoadedTask], hub: Hub, post: Post | None = None
) -> JudgeDesk | None:
    """The judge of the control arm, if evaluations ask for words at all."""
    if not config.evaluation.with_feedback:
        return None
    return judge_desk(config, evaluation, hub, post=post, feedback_content="content_free")


def assemble(config: RunConfig, training: Sequence[LoadedTask] = (), post: Post | None = None) -> Parts:
    """Returns the parts of a run; `training`: the tasks that it trains on; post: to the other processes of the run, if
    there are any, among which questions to judges and partners are divided.

    Raises a DittoError that says what is missing or cannot work.
    """
    if post is not None:
        config = shared_out(config, post)
    if config.policy.kind != "local":
        raise ConfigError(
            f"policy.kind={config.policy.kind}: a policy behind an endpoint can be evaluated, not trained; leave "
            "policy.kind at local and name a model_name_or_path"
        )
    mesh = mesh_of(config.mesh)
    evaluation, skipped = _evaluation_tasks(config)
    if not config.evaluation.allow_overlap:
        check_held_out(training, evaluation)
    policy = load_policy(
        config.model_name_or_path,
        mesh,
        param_dtype=config.param_dtype,
        compute_dtype=config.dtype,
        quantization=config.quantization,
        attention=config.attention,
    )
    hub = _hub(config, 0 if post is None else post.number)
    shadow = _shadow(config.shadow, hub) if training else None
    judge = judge_desk(config, [*training, *evaluation], hub, shadow, post)
    content_free = _content_free(config, evaluation, hub, post)
    partners = RoleBook(config.partner, config.endpoints, hub, post)
    if config.sampler.max_new_tokens < config.rollout.max_completion_length:
        logger.warning(
            "sampler.max_new_tokens=%d is below rollout.max_completion_length=%d: single replies end at the former",
            config.sampler.max_new_tokens,
            config.rollout.max_completion_length,
        )
    engine = Engine(
        policy.sampler(config.sampler, mesh),
        policy.chat_format,
        policy.tokenizer.decode,
        config.rollout.max_completion_length,
        config.rollout.stop_strings,
        partners,
        policy.grammars(),
    )
    hub.speaker = engine
    room = room_of(engine)
    evaluation, too_long = _with_room(evaluation, policy, room)
    if config.evaluation.tasks and not evaluation:
        raise ConfigError(f"evaluation.tasks: {_listed(skipped | too_long)}")
    for task in evaluation:
        require_room(task.prompts, policy.chat_format, room, "evaluation.tasks")
    for tasks, where, constrained in (
        (evaluation, "evaluation.constrained", config.evaluation.constrained),
        (training, "rollout.constrained", config.rollout.constrained),
    ):
        if constrained and tasks:
            require_forms(tasks, where, engine.grammars.check)
    judges = Judges(judge, content_free)
    return Parts(engine, judge, judges, shadow, partners, hub, evaluation, skipped | too_long, mesh, policy, engine)


def _with_room(
    tasks: Sequence[LoadedTask], policy: Policy, room: Room
) -> tuple[tuple[LoadedTask, ...], dict[str, str]]:
    """(tasks with the prompts that fit, label → why for optional ones of which none does)."""
    kept, without = [], {}
    for task in tasks:
        try:
            kept.append(with_room(task, policy.chat_format, room))
        except ConfigError as error:
            if task.config is None or not task.config.source.optional:
                raise
            without[task.label] = f"no prompt fits: {error}"
    return tuple(kept), without


def require_training_room(config: RunConfig, parts: Parts, stream: PromptStream) -> PromptStream:
    """Returns the prompts to train on that fit; raises ConfigError if one does not and its source says no skipping."""
    chat_format, room = parts.policy.chat_format, room_of(parts.engine, config.train)
    stream = PromptStream([with_room(task, chat_format, room) for task in stream.tasks], stream.seed)
    prompts = stream.once_each(config.train.max_steps * config.rollout.prompts_per_step)
    require_room(prompts, chat_format, room, "tasks")
    return stream
