"""JAX's settings, of the environment or the caller: replaced where they are not supported."""

import csv
from pathlib import Path

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from photo_trees import write_domain
from safetensors.numpy import load_file

import daaa_jax
from daaa_jax import adaptation, baselines, config_files, pipeline, source
from daaa_jax.runtime import jax_settings

UNSUPPORTED = {
    "jax_enable_x64": True,
    "jax_disable_jit": True,
    "jax_debug_key_reuse": True,
    "jax_numpy_rank_promotion": "raise",
    "jax_numpy_dtype_promotion": "strict",
    "jax_transfer_guard": "disallow",
}
# What the tiny run was made with, see test_old_workdirs.
TINY = {
    "model.widths": (4, 4, 8),
    "data.limit": 24,
    "pair.filters": 2,
    "pair.discriminator_filters": 2,
    "adapt.rounds": 2,
}


def tiny_config(**changes):
    config = config_files.load("digits:embedded,smoke")
    with config.unlocked():
        config.update_from_flattened_dict(TINY | changes)
    return config


@pytest.fixture
def images(tmp_path) -> Path:
    return write_domain(tmp_path / "images", ["mug", "pen"], each=2)


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.parametrize("setting", UNSUPPORTED)
def test_setting_that_is_not_supported_is_named_and_changes_nothing(setting, tiny_run, images):
    expected = commands.call("predict", f"--workdir={tiny_run}", images)
    assert setting.upper() not in expected.stderr
    plain = rows(tiny_run / "predictions.csv")
    how = {"jax_settings": {setting: UNSUPPORTED[setting]}}
    done = commands.call("predict", f"--workdir={tiny_run}", images, **how)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "JAX" in line)
    assert setting.upper() in line
    assert rows(tiny_run / "predictions.csv") == plain


@pytest.mark.parametrize("setting", ["jax_enable_x64", "jax_numpy_rank_promotion"])
def test_every_command_that_computes_names_it(setting, tiny_run, tmp_path):
    how = {"jax_settings": {setting: UNSUPPORTED[setting]}}
    done = commands.call("export", f"--workdir={tiny_run}", f"--out={tmp_path / 'model'}", **how)
    assert done.returncode == 0 and setting.upper() in done.stderr
    for module, *flags in (
        ("main", "--config=digits:smoke", f"--workdir={tmp_path / 'run'}"),
        ("reproduce", "table3", "--data=embedded", "--smoke", f"--workdir={tmp_path / 'sweep'}"),
    ):
        done = commands.call(module, *flags, fails="pipeline.run", **how)
        assert setting.upper() in done.stderr and "injected" in done.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("JAX_ENABLE_X64", "maybe"),
        ("JAX_DEFAULT_MATMUL_PRECISION", "bogus"),
        ("JAX_DEFAULT_DEVICE", "foo"),
        ("JAX_NUM_CPU_DEVICES", "x"),
    ],
)
def test_invalid_variable_is_named_in_one_line(variable, value, tiny_run):
    for command in (["predict", f"--workdir={tiny_run}", "."], ["__main__", "check", "."]):
        done = commands.fresh(*command, variables={variable: value})
        assert done.returncode == 1
        assert f"{variable}={value}" in done.stderr and done.stderr.count("\n") == 1
        # The reason is that of the first import; a second one finds the first one's remains.
        _, reason = done.stderr.split(f"{variable}={value}")
        assert value in reason or variable.lower() in reason.lower()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("jax_platforms", "foo"), ("jax_platforms", "CPU"), ("jax_platform_name", "foo")],
)
def test_devices_that_do_not_exist_are_named_in_one_line(setting, value, tiny_run, images):
    for module, *flags in (
        ("main", "--config=digits:smoke", f"--workdir={tiny_run.parent / 'new'}"),
        ("predict", f"--workdir={tiny_run}", images),
        ("export", f"--workdir={tiny_run}", f"--out={tiny_run.parent / 'model'}"),
        ("reproduce", "table3", "--data=embedded", "--smoke", f"--workdir={tiny_run.parent / 's'}"),
    ):
        done = commands.call(module, *flags, jax_settings={setting: value})
        assert done.returncode == 1
        assert f"{setting.upper()}={value}" in done.stderr and done.stderr.count("\n") == 1


def test_commands_that_compute_nothing_need_no_devices(tiny_run, images):
    for module, *flags in (
        ("check", images),
        ("convert", images, f"--out={tiny_run.parent / 'records'}"),
        ("report", f"--workdir={tiny_run}"),
    ):
        done = commands.call(module, *flags, jax_settings={"jax_platforms": "foo"})
        assert done.returncode == 0, done.stderr


def test_python_interface_computes_alike_and_leaves_the_settings_of_the_caller(tiny_run, images):
    files = sorted(images.rglob("*.jpg"))
    network = daaa_jax.load_network(tiny_run)
    expected = daaa_jax.predict(network, files), daaa_jax.attention_maps(network, files)
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        network = daaa_jax.load_network(tiny_run)
        found = daaa_jax.predict(network, files), daaa_jax.attention_maps(network, files)
        assert jnp.zeros(()).dtype == np.float64
        with pytest.raises(ValueError, match="rank_promotion"):
            jnp.zeros((2, 2)) + jnp.zeros(2)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_run_in_a_program_with_64_bits_is_one_of_32(tmp_path, monkeypatch):
    def run(config, workdir):
        return {"bits": jnp.zeros(()).dtype.itemsize * 8}

    monkeypatch.setattr(pipeline, "run", run)
    jax.config.update("jax_enable_x64", True)
    try:
        assert daaa_jax.run(tiny_config(), tmp_path).content == {"bits": 32}
        assert jax.config.jax_enable_x64
    finally:
        jax.config.update("jax_enable_x64", False)


def test_stage_trains_alike_in_a_program_with_64_bits(tmp_path):
    """With streamed images, which other threads read."""
    config = tiny_config(**{"run.resident_mib": 0, "run.reuse": "none"})
    pipeline.run(config, tmp_path / "plain", "source")
    with jax.enable_x64(True), jax_settings.supported():
        pipeline.run(config, tmp_path / "other", "source")
    plain, other = (
        load_file(tmp_path / name / "source" / "network.safetensors") for name in ("plain", "other")
    )
    jax.tree.map(np.testing.assert_array_equal, plain, other)
    assert {tensor.dtype for tensor in other.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("stage", "method", "module", "function"),
    [
        ("source", "daaa", source, "train_step"),
        ("adapt", "daaa", adaptation, "train_step"),
        ("adapt", "dann", baselines.training, "train_step"),
    ],
)
def test_update_that_changes_the_types_of_a_later_stage_is_refused_before_the_first_trains(
    stage, method, module, function, monkeypatch, tmp_path
):
    update = getattr(module, function)

    def changed(state, batch, **how):
        state, metrics = update(state, batch, **how)
        return state.replace(step=state.step.astype(jnp.float16)), metrics

    monkeypatch.setattr(module, function, changed)
    with pytest.raises(TypeError, match=rf"\b{stage}\b.*\bstep\b.*int32.*float16"):
        pipeline.run(tiny_config(method=method), tmp_path / "run")
    assert not (tmp_path / "run").exists()
