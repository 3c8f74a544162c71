"""Mistakes that cost nothing to find are found before weights are fetched or images are read."""

import commands
import pytest
from photo_trees import write_domain

WEIGHTS, IMAGES = "models.published_weights.fetch", "pipeline.load_task"  # both come later
FOLDERS = "--config=configs/folder.py"
SOURCE, TARGET = "--config.data.source={web}", "--config.data.target={cam}"
OFFICE = "--config=configs/office.py:w2a"
LONG = "/" + 300 * "x"  # cannot be read, not even by root


@pytest.mark.parametrize(
    ("flags", "name", "later"),
    [
        ((OFFICE, "--config.data.dir=/nowhere"), "/nowhere", WEIGHTS),
        ((OFFICE, f"--config.data.dir={LONG}"), LONG, WEIGHTS),
        ((OFFICE, "--config.data.dir={web}"), "webcam", WEIGHTS),
        ((OFFICE,), "data.dir", WEIGHTS),
        ((FOLDERS, TARGET), "data.source", WEIGHTS),
        ((FOLDERS, "--config.data.source=/nowhere", TARGET), "data.source=/nowhere", WEIGHTS),
        ((FOLDERS, f"--config.data.source={LONG}", TARGET), f"data.source={LONG}", WEIGHTS),
        ((FOLDERS, SOURCE, "--config.data.target=/nowhere"), "data.target=/nowhere", WEIGHTS),
        ((FOLDERS, SOURCE, "--config.data.target=~nobody-here/x"), "~nobody-here/x", WEIGHTS),
        ((FOLDERS, SOURCE, TARGET, "--config.data.root=~nobody-here/x"), "~nobody-here/x", WEIGHTS),
        (("--config=digits", "--config.data.dir=~nobody-here/x"), "~nobody-here/x", WEIGHTS),
        (
            (FOLDERS, SOURCE, TARGET, "--config.pair.translations=~nobody-here/x"),
            "~nobody-here/x",
            IMAGES,
        ),
        (
            (FOLDERS, SOURCE, TARGET, "--config.data.target_test=/nowhere"),
            "data.target_test=/nowhere",
            WEIGHTS,
        ),
        ((FOLDERS, SOURCE, TARGET, "--config.data.source_holdout=2"), "source_holdout=2", WEIGHTS),
        ((FOLDERS, SOURCE, TARGET, "--config.augment.crop=300"), "augment.crop=300", WEIGHTS),
        ((FOLDERS, SOURCE, TARGET, "--config.pair.enlarge=200"), "pair.enlarge=200", WEIGHTS),
        (("--config=digits:smoke,augment.crop=33",), "augment.crop=33", IMAGES),
        (
            (FOLDERS, SOURCE, TARGET, "--config.source.checkpoint=/nowhere"),
            "source.checkpoint=/nowhere",
            IMAGES,
        ),
        (
            (FOLDERS, SOURCE, TARGET, "--config.pair.translations=/nowhere"),
            "pair.translations=/nowhere",
            IMAGES,
        ),
        (
            (FOLDERS, SOURCE, TARGET, "--config.model.weights=/nowhere.pth"),
            "model.weights=/nowhere.pth",
            IMAGES,
        ),
        (("--config=digits:smoke", "--stage=pair", "--config.method=dann"), "--stage=pair", IMAGES),
    ],
)
def test_mistake_is_found_first(flags, name, later, tmp_path):
    places = {
        name: write_domain(tmp_path / name, ["mug", "pen"], each=1) for name in ("web", "cam")
    }
    flags = [flag.format(**places) for flag in flags]
    done = commands.call("main", f"--workdir={tmp_path / 'run'}", *flags, fails=later)
    assert done.returncode == 1
    assert name in done.stderr and "injected" not in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_images_are_read_after_all_these_checks(tmp_path):
    """The test above would find nothing if this failed."""
    done = commands.call("main", "--config=digits:smoke", f"--workdir={tmp_path}/run", fails=IMAGES)
    assert "injected" in done.stderr


@pytest.mark.parametrize(
    ("command", "flag", "later"),
    [
        ("predict", "--overlay_layers=(", "inference.load_network"),
        ("predict", "--batch_size=0", "inference.load_network"),
        ("export", "--onnx", "inference.load_network"),
    ],
)
def test_mistake_in_a_flag_is_found_before_the_network_is_read(
    command, flag, later, tiny_run, tmp_path
):
    if flag == "--onnx":
        try:
            import jax2onnx  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("jax2onnx is installed")
    other = f"--out={tmp_path / 'model'}" if command == "export" else str(tmp_path)
    done = commands.call(command, f"--workdir={tiny_run}", flag, other, fails=later)
    assert done.returncode == 1
    assert flag in done.stderr and "injected" not in done.stderr and done.stderr.count("\n") == 1
