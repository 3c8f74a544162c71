"""A state is restored bit for bit, on other devices too, and after a save that was killed."""

import os
import re
import shutil
import subprocess
import sys
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from daaa_jax.errors import UserError
from daaa_jax.runtime import checkpoints as module
from daaa_jax.runtime.checkpoints import Checkpoints
from daaa_jax.runtime.mesh import batch_sharded, data_mesh, replicate, shard_batch


@flax.struct.dataclass
class State:
    params: Any
    optimizer: Any
    key: Any
    pool: Any
    step: Any


def make_state(mesh, width: int = 4, seed: int = 0) -> State:
    """A state with one of everything, none of it at its initial value."""
    draws = np.random.default_rng(seed)
    params = {"conv1": {"kernel": draws.normal(size=(3, width)).astype(np.float32)}}
    gradient = jax.tree.map(jnp.asarray, params)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(lambda step: 0.1 / step))
    moments = optimizer.init(gradient)
    for _ in range(3):
        _, moments = optimizer.update(gradient, moments)
    return replicate(
        State(
            params=params,
            optimizer=moments,
            key=jax.random.fold_in(jax.random.key(seed), 7),
            pool={
                "bytes": draws.integers(0, 256, (5, 2), dtype=np.uint8),
                "half": jnp.asarray([0.1, np.inf, -0.0], jnp.bfloat16),
                "floats": np.array([np.nan, 1e-45, -0.0, np.pi], np.float32),
            },
            step=np.int32(3),
        ),
        mesh,
    )


def abstract(state: Any) -> Any:
    """Shape, dtype and sharding of every array of a state."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def bits(tree) -> list[tuple[str, tuple[int, ...], bytes]]:
    """Every leaf's type, shape and bytes: equal for equal bits, NaN and -0.0 included."""

    def of_leaf(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            name = str(jax.random.key_impl(leaf))
            return name, leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
        return leaf.dtype.name, leaf.shape, np.asarray(leaf).tobytes()

    return [of_leaf(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.fixture
def one():
    return data_mesh(jax.devices()[:1])


@pytest.fixture
def eight():
    return data_mesh(jax.devices()[:8])


def test_state_and_loop_state_are_restored_bit_for_bit(tmp_path, one):
    state = make_state(one)
    loop = {"round": 3, "best": 0.1 + 0.2, "history": [1, 2.5], "selected": None}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.save(3, state, loop)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 3
        restored, restored_loop = checkpoints.restore(abstract(make_state(one, seed=1)))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert bits(restored) == bits(state)
    assert restored_loop == loop


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_typed_keys_are_restored_and_draw_the_same(tmp_path, one, implementation):
    key = jax.random.key(5, impl=implementation)
    state = replicate({"one": key, "many": jax.random.split(key, 3)}, one)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        restored, _ = checkpoints.restore(abstract(state))
    assert restored["one"].dtype == key.dtype
    assert restored["many"].shape == (3,)
    np.testing.assert_array_equal(
        jax.random.normal(restored["one"], (4,)), jax.random.normal(key, (4,))
    )


def test_saving_does_not_ask_whether_the_run_is_preempted(tmp_path, one, monkeypatch):
    """JAX counts who asks with one counter, and `preemption.Notice` asks by another."""
    asked = []
    monkeypatch.setattr(
        "jax.experimental.multihost_utils.reached_preemption_sync_point", asked.append
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(one), {})
        checkpoints.wait()
    assert not asked


@pytest.mark.parametrize(
    "message", ["UNAVAILABLE: barrier failed", "RESOURCE_EXHAUSTED: no memory"]
)
def test_lost_host_or_full_memory_is_not_reported_as_damage(tmp_path, one, monkeypatch, message):
    monkeypatch.setattr(module.distributed, "started", lambda: True)
    monkeypatch.setattr(module.distributed, "is_first", lambda: True)

    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError(message)

    state = make_state(one)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        monkeypatch.setattr(checkpoints._manager, "restore", fail)
        with pytest.raises(jax.errors.JaxRuntimeError, match=message):
            checkpoints.restore(abstract(state))


def test_full_disk_is_reported_with_the_folder(tmp_path, one, monkeypatch):
    def fail(*_, **__):
        raise ValueError(
            "RESOURCE_EXHAUSTED: Error writing 'a/b' [source locations]\\nNo space left on device"
        )

    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fail)
        with pytest.raises(
            UserError, match=rf"(?i){re.escape(str(tmp_path))}.*no space left"
        ) as error:
            checkpoints.wait()
        assert "\n" not in str(error.value)
        monkeypatch.setattr(checkpoints._manager, "save", fail)
        with pytest.raises(UserError, match=re.escape(str(tmp_path))):
            checkpoints.save(1, make_state(one), {})
        monkeypatch.undo()


FULL_DISK = """
import resource, signal, sys
import jax.numpy as jnp
from daaa_jax.runtime import exit_codes
from daaa_jax.runtime.checkpoints import Checkpoints

async def async_serialize_from_host():
    pass

def save():
    with Checkpoints(sys.argv[1]) as checkpoints:
        async_serialize_from_host()  # as Orbax sometimes leaves the last arrays
        checkpoints.save(1, {f"{n}": jnp.arange(10**5) for n in range(60)}, {})

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))
exit_codes.run(save)
"""


def test_arrays_that_cannot_be_written_end_the_program_with_one_line(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert str(tmp_path) in done.stderr


def test_restored_optimizer_continues_as_if_never_saved(tmp_path, one):
    optimizer = optax.adam(1e-2)

    @jax.jit
    def update(params, moments):
        changes, moments = optimizer.update(jax.tree.map(jnp.cos, params), moments, params)
        return optax.apply_updates(params, changes), moments

    params = replicate({"w": np.linspace(-1, 1, 7, dtype=np.float32)}, one)
    state = (params, replicate(optimizer.init(params), one))
    for _ in range(5):
        state = update(*state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {"params": state[0], "moments": state[1]}, {})
        restored, _ = checkpoints.restore(abstract({"params": state[0], "moments": state[1]}))
    resumed = (restored["params"], restored["moments"])
    for _ in range(5):
        state, resumed = update(*state), update(*resumed)
    assert bits(resumed) == bits(state)


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8), (8, 8)])
def test_state_saved_on_some_devices_is_restored_on_others(tmp_path, before, after):
    old, new = data_mesh(jax.devices()[:before]), data_mesh(jax.devices()[-after:])
    rows = np.arange(32, dtype=np.float32).reshape(16, 2)

    def on(mesh):
        return {"state": make_state(mesh), "rows": shard_batch(rows, mesh)}

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, on(old), {})
    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(abstract(on(new)))
    assert bits(restored) == bits(on(new))
    assert restored["rows"].sharding == batch_sharded(new)
    assert restored["state"].params["conv1"]["kernel"].sharding.device_set == set(new.devices.flat)


def test_state_donated_while_it_is_being_saved_is_saved_as_it_was(tmp_path, eight):
    step = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf + 1, x), donate_argnums=0)
    state = replicate({str(i): np.zeros(500_000, np.float32) for i in range(4)}, eight)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(5):
            state = step(state)
        restored, _ = checkpoints.restore(abstract(state))
    assert all(not np.asarray(leaf).any() for leaf in restored.values())


def test_loop_state_changed_while_it_is_being_saved_is_saved_as_it_was(tmp_path, one):
    loop = {"history": [1]}
    state = replicate({"w": np.zeros(3)}, one)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, loop)
        loop["history"].append(2)
        assert checkpoints.restore(abstract(state))[1] == {"history": [1]}


def test_newest_is_kept(tmp_path, one):
    state = replicate({"w": np.zeros(3)}, one)
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state, {})
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_step_that_was_saved_before_is_skipped(tmp_path, one):
    state = replicate({"w": np.zeros(3)}, one)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(2, state, {"first": True})
        assert not checkpoints.save(2, state, {"first": False})
        assert not checkpoints.save(1, state, {"first": False})
        assert checkpoints.restore(abstract(state))[1] == {"first": True}


def test_other_files_in_the_folder_are_left_alone(tmp_path, one):
    (tmp_path / "selected").mkdir()
    (tmp_path / "finished.json").write_text("{}")
    state = replicate({"w": np.zeros(3)}, one)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "finished.json", "selected"]


def test_misfit_names_the_leaf_with_the_shape_found_and_expected(tmp_path, one):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(one, width=4), {})
        with pytest.raises(UserError) as caught:
            checkpoints.restore(abstract(make_state(one, width=5)))
    message = str(caught.value)
    for leaf in ("params.conv1.kernel", "optimizer.1.0.mu.conv1.kernel"):
        shapes = r"\b[^;]*float32\[3,4\][^;]*float32\[3,5\]"
        assert re.search(re.escape(leaf) + shapes, message), leaf
    assert str(tmp_path) in message
    assert "\n" not in message


def test_misfit_in_type_is_an_error_and_no_cast(tmp_path, one):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, replicate({"w": np.zeros(3, np.float32)}, one), {})
        with pytest.raises(UserError, match=r"\bw\b[^;]*\bfloat32\[3\][^;]*\bint32\[3\]"):
            checkpoints.restore(abstract(replicate({"w": np.zeros(3, np.int32)}, one)))


def test_leaves_that_are_missing_or_too_many_are_named(tmp_path, one):
    zeros = np.zeros(3, np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, replicate({"old": zeros, "both": zeros}, one), {})
        with pytest.raises(UserError) as caught:
            checkpoints.restore(abstract(replicate({"both": zeros, "new": zeros}, one)))
    message = str(caught.value)
    for leaf in ("new", "old"):
        assert re.search(rf"\b{leaf}\b[^;]*float32\[3\]", message), leaf
    assert "both" not in message


def test_restoring_where_nothing_was_saved_names_the_folder(tmp_path, one):
    state = replicate({"w": np.zeros(3)}, one)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=re.escape(str(tmp_path))),
    ):
        checkpoints.restore(abstract(state))


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut_short(path):
    largest = max(path.iterdir(), key=lambda file: file.stat().st_size)
    os.truncate(largest, 100)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (remove, "state"),
        (remove, "state/d"),
        (remove, "state/manifest.ocdbt"),
        (remove, "loop"),
        (cut_short, "state/d"),
    ],
)
def test_damaged_checkpoint_is_named_in_one_line(tmp_path, one, damage, part):
    state = replicate({"w": np.random.default_rng(0).normal(size=10_000)}, one)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    damage(tmp_path / "1" / part)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore(abstract(state))
    assert str(tmp_path / "1") in str(caught.value)
    assert "\n" not in str(caught.value)


KILLED = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from daaa_jax.runtime.checkpoints import Checkpoints
from daaa_jax.runtime.mesh import data_mesh, replicate

folder, delay = Path(sys.argv[1]), float(sys.argv[2])
draws = np.random.default_rng(0)
checkpoints = Checkpoints(folder)
checkpoints.save(1, replicate({"w": draws.random(8_000_000)}, data_mesh()), {"round": 1})
checkpoints.wait()
checkpoints.save(2, replicate({"w": draws.random(8_000_000)}, data_mesh()), {"round": 2})
while not list(folder.glob("*tmp*")):
    time.sleep(0.0005)
time.sleep(delay)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("delay", [0.0, 0.01])
def test_killed_save_leaves_the_checkpoint_before_and_can_be_repeated(tmp_path, one, delay):
    environment = os.environ | {"XLA_FLAGS": ""}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(delay)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert killed.returncode == -9, killed.stderr
    assert list(tmp_path.glob("*tmp*")), "the save was over before the kill"
    first = np.random.default_rng(0).random(8_000_000).astype(np.float32)
    state = replicate({"w": first}, one)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1
        restored, loop = checkpoints.restore(abstract(state))
        assert bits(restored) == bits(state)
        assert loop == {"round": 1}
        checkpoints.save(2, state, {"round": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 2
        assert checkpoints.restore(abstract(state))[1] == {"round": 2}


def test_remains_of_a_killed_save_are_removed_when_the_directory_is_opened(tmp_path):
    half = tmp_path / "7.orbax-checkpoint-tmp"
    (half / "state").mkdir(parents=True)
    (half / "state" / "part").write_bytes(b"half")
    with Checkpoints(tmp_path) as checkpoints:
        assert not half.exists() and checkpoints.latest_step() is None
