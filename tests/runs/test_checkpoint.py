"""Checkpoints: bit-equal on the same mesh, equal on another, and never damaged by the one that failed."""

from __future__ import annotations

import contextlib
import errno
import functools
import resource
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ditto_jax.errors import RunDirectoryError
from ditto_jax.runs.checkpoint import Checkpoints
from ditto_jax.update.state import OptimizerConfig, TrainState, make_optimizer, make_state
from model.partition import make_mesh
from tests.tiny_policy import params

OPTIMIZER = make_optimizer(OptimizerConfig(), total_updates=10)
META = {"step": 3, "position": 96, "judge": {"calls": 12.0}}


@functools.cache
def state_on(*sizes: int) -> TrainState:
    """A state on a mesh, with moments that are not zero and 7 updates done."""
    count = int(np.prod(sizes))
    if len(jax.devices()) < 8:
        pytest.fail(f"{len(jax.devices())} devices are present: start jax with JAX_NUM_CPU_DEVICES=8")
    state = make_state(params(), OPTIMIZER, make_mesh(*sizes, devices=jax.devices()[:count]))
    rng = np.random.default_rng(0)

    def random(leaf: jax.Array) -> jax.Array:
        value = rng.normal(size=leaf.shape).astype(leaf.dtype) if leaf.ndim else np.asarray(7, leaf.dtype)
        return jax.device_put(value, leaf.sharding)

    return jax.tree.map(random, state)


def blank(state: TrainState) -> TrainState:
    """A state of zeros that lies where `state` lies."""
    return jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), state)


def assert_bit_equal(found: TrainState, expected: TrainState) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert mine.dtype == theirs.dtype and np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpoints]:
    opened = Checkpoints(tmp_path / "checkpoints", keep=2)
    yield opened
    opened.close()


def reopened(tmp_path: Path) -> Checkpoints:
    """As another process finds the folder."""
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def test_the_whole_state_comes_back_bit_for_bit_with_its_metadata(checkpoints, tmp_path):
    state = state_on(2, 2, 2)
    checkpoints.save(3, state, META)
    restored, meta = reopened(tmp_path).restore(blank(state))
    assert_bit_equal(restored, state)
    assert meta == META
    assert [x.sharding for x in jax.tree.leaves(restored)] == [x.sharding for x in jax.tree.leaves(state)]


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 2, 2)], ids=["one device", "four devices"])
def test_a_state_saved_on_eight_devices_comes_back_on(sizes, checkpoints, tmp_path):
    checkpoints.save(3, state_on(2, 2, 2), META)
    like = blank(state_on(*sizes))
    restored, _ = reopened(tmp_path).restore(like)
    assert_bit_equal(restored, state_on(2, 2, 2))
    assert [x.sharding for x in jax.tree.leaves(restored)] == [x.sharding for x in jax.tree.leaves(like)]


def test_parameters_are_read_alone_and_onto_another_mesh(checkpoints, tmp_path):
    checkpoints.save(3, state_on(2, 2, 2), META)
    like = blank(state_on(1, 2, 2)).params
    found, step = reopened(tmp_path).restore_params(like)
    assert step == 3
    assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, like)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(state_on(2, 2, 2).params))


def test_the_newest_checkpoints_are_kept_and_the_newest_is_restored(checkpoints, tmp_path):
    assert checkpoints.latest_step() is None
    state = state_on(1, 1, 1)
    for step in (2, 4, 6):
        checkpoints.save(step, state._replace(updates=jax.numpy.int32(step)), META | {"step": step})
    assert checkpoints.latest_step() == 6
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == ["4", "6"]
    restored, meta = reopened(tmp_path).restore(blank(state))
    assert meta["step"] == 6 and int(restored.updates) == 6


def arrays_of(step: Path) -> list[Path]:
    """The files that hold array data, largest first."""
    files = [p for p in step.rglob("*") if p.is_file() and "/d/" in p.as_posix()]
    return sorted(files, key=lambda p: -p.stat().st_size)


def lose_arrays(step: Path) -> None:
    for file in arrays_of(step):
        file.unlink()


def cut_arrays(step: Path) -> None:
    for file in arrays_of(step):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lose_folder(step: Path) -> None:
    shutil.rmtree(step / "state")


def spoil_meta(step: Path) -> None:
    [file] = [p for p in (step / "meta").iterdir() if p.name == "metadata"]
    file.write_text('{"step": 6, "posi')


@pytest.mark.parametrize("damage", [lose_arrays, cut_arrays, lose_folder, spoil_meta], ids=lambda f: f.__name__)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_works_once_it_is_moved_away(
    damage, checkpoints, tmp_path
):
    state = state_on(1, 1, 1)
    for step in (4, 6):
        checkpoints.save(step, state, META | {"step": step})
    newest = tmp_path / "checkpoints" / "6"
    damage(newest)
    with pytest.raises(RunDirectoryError, match="is damaged") as raised:
        reopened(tmp_path).restore(blank(state))
    assert str(newest) in str(raised.value) and "Move that folder away" in str(raised.value)
    shutil.move(newest, tmp_path / "damaged-6")
    restored, meta = reopened(tmp_path).restore(blank(state))
    assert_bit_equal(restored, state)
    assert meta["step"] == 4


def test_a_full_disk_is_told_and_leaves_the_older_checkpoints_intact(checkpoints, tmp_path, monkeypatch):
    state = state_on(1, 1, 1)
    checkpoints.save(2, state, META | {"step": 2})

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints._manager, "save", full)
        with pytest.raises(RunDirectoryError, match="No space left on device") as raised:
            checkpoints.save(4, state, META)
    assert "step 4" in str(raised.value) and "steps [2] are intact: free space" in str(raised.value)
    restored, meta = reopened(tmp_path).restore(blank(state))
    assert_bit_equal(restored, state)
    assert meta["step"] == 2
    checkpoints.save(4, state, META | {"step": 4})
    assert reopened(tmp_path).latest_step() == 4


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes fail inside the block, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_with_a_full_disk(folder: Path) -> tuple[str, list[str], int | None]:
    """Saves step 2, fails at step 4, saves it again: what the failure said, what it left, the newest step then."""
    state = state_on(1, 1, 1)
    with contextlib.closing(Checkpoints(folder, keep=2)) as checkpoints:
        checkpoints.save(2, state, META | {"step": 2})
        with files_of_at_most(30_000), pytest.raises(RunDirectoryError) as raised:
            checkpoints.save(4, state, META)
        left = sorted(entry.name for entry in folder.iterdir() if entry.name.isdigit())
        with contextlib.closing(Checkpoints(folder, keep=2)) as found:
            newest = found.latest_step()
            assert_bit_equal(found.restore(blank(state))[0], state)
        checkpoints.save(4, state, META | {"step": 4})
    return str(raised.value), left, newest


def test_a_write_that_fails_midway_leaves_no_step_behind_and_can_be_repeated(tmp_path):
    """In a process of its own: Orbax abandons the other writes of a save that failed, and asyncio warns of each."""
    folder = tmp_path / "checkpoints"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        message, left, newest = process.submit(save_with_a_full_disk, folder).result()
    assert "cannot save the checkpoint of step 4" in message
    assert left == ["2"] and newest == 2
    assert reopened(tmp_path).restore(blank(state_on(1, 1, 1)))[1]["step"] == 4


def test_what_a_killed_process_left_half_written_is_no_checkpoint(checkpoints, tmp_path):
    state = state_on(1, 1, 1)
    checkpoints.save(2, state, META | {"step": 2})
    half = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp-0"
    shutil.copytree(tmp_path / "checkpoints" / "2", half)
    found = reopened(tmp_path)
    assert found.latest_step() == 2
    assert found.restore(blank(state))[1]["step"] == 2
