"""A GPU or TPU that JAX does not use is named, unless the user chose the CPU."""

import pytest

from daaa_jax.runtime import accelerators


@pytest.mark.parametrize(
    ("which", "files", "platforms", "extra"),
    [
        (None, ("accel0",), None, "tpu"),
        (None, ("nvidia0",), None, "cuda12"),
        ("/usr/bin/nvidia-smi", (), None, "cuda12"),
        (None, (), None, ""),
        ("/usr/bin/nvidia-smi", ("accel0",), "cpu", ""),
    ],
)
def test_unused_accelerator_names_its_extra(
    which, files, platforms, extra, tmp_path, monkeypatch, capsys
):
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr(accelerators, "_GPU_FILES", (tmp_path / "nvidia0",))
    monkeypatch.setattr(accelerators, "_TPU_FILES", (tmp_path / "accel0",))
    monkeypatch.setattr(accelerators.shutil, "which", lambda name: which)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if platforms:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    accelerators.warn_if_unused()
    printed = capsys.readouterr().out
    assert f"jax[{extra}]" in printed if extra else not printed
