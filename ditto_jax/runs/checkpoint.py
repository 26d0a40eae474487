"""The whole training state on disk: save, restore onto the present mesh, keep the newest few.

The one module that touches Orbax. A step directory appears under its final name only when it is complete, so a run
killed while saving, or a full disk, leaves the older checkpoints as they were. Metadata (step, stream position, judge
ledger) is JSON beside the arrays.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ditto_jax.errors import RunDirectoryError
from ditto_jax.update.state import TrainState


class Checkpoints:
    """Checkpoints of one run, newest `keep` retained. keep None: they are only read, and the folder stays as it is."""

    def __init__(self, folder: Path, keep: int | None):
        self._folder = folder
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=keep is not None,
            enable_async_checkpointing=False,
        )
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def steps(self) -> list[int]:
        """Returns all complete steps, ascending."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Returns the newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Writes a checkpoint; returns when it is complete. Raises RunDirectoryError, older checkpoints intact."""
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(_present(state)), meta=ocp.args.JsonSave(meta)),
                force=True,
            )
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            kept = self._manager.all_steps()
            raise RunDirectoryError(
                f"cannot save the checkpoint of step {step} under {self._folder}: {_reason(error)}. "
                f"Checkpoints of steps "
                f"{sorted(kept)} are intact: free space, then run the same command to continue"
            ) from error

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state of a step (None: the newest), placed like `like`, and its metadata.

        A damaged checkpoint is an error that names it and says how to go on from the one before.
        """
        restored = self._restore(ocp.args.StandardRestore(jax.tree.map(_abstract, _present(like))), step)
        return TrainState(**restored["state"]), restored["meta"]

    def restore_params(self, like: Any) -> tuple[Any, int]:
        """Returns (parameters of the newest checkpoint, placed like `like`, its step); the optimizer is not read."""
        wanted = {"params": jax.tree.map(_abstract, like)}
        restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
        restored = self._restore(ocp.args.PyTreeRestore(item=wanted, restore_args=restore_args, partial_restore=True))
        return restored["state"]["params"], int(restored["meta"]["step"])

    def _restore(self, state: Any, step: int | None = None) -> Any:
        step = self._manager.latest_step() if step is None else step
        hook = sys.unraisablehook
        sys.unraisablehook = functools.partial(_without_abandoned_reads, hook)
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(state=state, meta=ocp.args.JsonRestore()))
            sys.unraisablehook = hook
            return restored
        except (OSError, ValueError, KeyError) as error:
            raise RunDirectoryError(
                f"the checkpoint {self._folder / str(step)} is damaged ({_reason(error)}). Move that folder away and "
                "run the same command: the run continues from the checkpoint before it"
            ) from error

    def close(self) -> None:
        self._manager.close()


def _present(state: TrainState) -> dict[str, Any]:
    """The parts that this run has, by name: one without a moving average saves none."""
    return {name: part for name, part in state._asdict().items() if part is not None}


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _without_abandoned_reads(hook: Callable[[Any], None], ignored: Any) -> None:
    """Stays installed after a failed restore: reads that it abandoned end on a closed event loop, a traceback each."""
    error = ignored.exc_value
    if not (isinstance(error, RuntimeError) and "Event loop is closed" in str(error)):
        hook(ignored)


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
