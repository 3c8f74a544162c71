"""Outputs that cannot be written: one line with the user's flag or file, before any work."""

import errno
import os
from pathlib import Path

import commands
import pytest
from photo_trees import write_domain

from daaa_jax import api
from daaa_jax.errors import UserError
from daaa_jax.runtime import files


@pytest.fixture
def images(tmp_path) -> Path:
    return write_domain(tmp_path / "images", ["mug", "pen"], each=1)


@pytest.fixture(params=["in a file", "in /proc"])
def place(request, tmp_path) -> Path:
    """Where nobody can write, not even root."""
    if request.param == "in /proc":
        return Path("/proc/nowhere/new")
    (tmp_path / "file").write_text("a file")
    return tmp_path / "file" / "new"


def refused(*command: object) -> str:
    line = commands.refused(*command)
    assert "\n" not in line and ".tmp" not in line
    return line


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "--workdir={run}", "--out={place}", "{images}"),
        ("predict", "--workdir={run}", "--overlays={place}", "{images}"),
        ("export", "--workdir={run}", "--out={place}"),
        ("convert", "--out={place}", "{images}"),
        ("main", "--config=digits:smoke", "--workdir={place}"),
        ("reproduce", "table3", "--data=embedded", "--workdir={place}", "--only_show"),
    ],
    ids=lambda command: f"{command[0]} {command[2].partition('=')[0]}",
)
def test_flag_of_an_output_that_cannot_be_written_is_named(command, place, tiny_run, images):
    named = {"run": tiny_run, "images": images, "place": place}
    line = refused(*(word.format(**named) for word in command))
    (flag,) = (word.partition("=")[0] for word in command if "{place}" in word)
    assert f"{flag}={place}" in line


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "--workdir={run}", "--out={place}", "{images}/pen"),
        ("predict", "--workdir={run}", "--overlays={place}", "{images}"),
        ("convert", "--out={place}", "{images}"),
        ("main", "--config=folder:smoke", "--config.data.source={images}", "--workdir={place}")
        + ("--config.data.target={images}",),
    ],
    ids=lambda command: command[0],
)
def test_output_that_would_be_an_image_or_among_images_is_refused(command, tiny_run, images):
    photo = images / "mug/000.jpg"
    before = photo.read_bytes()
    place = photo if "--out={place}" in command and command[0] == "predict" else images / "new"
    named = {"run": tiny_run, "images": images, "place": place}
    assert f"={place}" in refused(*(word.format(**named) for word in command))
    assert photo.read_bytes() == before and not (images / "new").exists()


@pytest.mark.parametrize("command", [("predict", "--overlays"), ("export", "--out")])
def test_output_among_the_photos_of_the_run_is_refused(command, tiny_run, images):
    """Training would read it, though this command does not read the photos."""
    config = files.read_json(tiny_run / "config.json")
    names = {"name": "office", "dir": str(images.parent), "source": images.name, "root": ""}
    config["config"]["data"] |= names | {"target": images.name, "target_test": ""}
    files.write_json(tiny_run / "config.json", config)
    (name, flag), photo = command, images / "mug/000.jpg"
    read = [photo] if name == "predict" else []
    line = refused(name, f"--workdir={tiny_run}", f"{flag}={images / 'new'}", *read)
    assert f"{flag}={images / 'new'}" in line and not (images / "new").exists()


def test_function_refuses_a_network_or_images_that_are_none_of_its_own(tiny_run):
    with pytest.raises(UserError, match="foo.*selected"):
        api.load_network(tiny_run, "foo")
    with pytest.raises(UserError, match="uint8"):
        api.translate(tiny_run, ["three.png"], "mnist_to_mnist_m")


def test_prediction_fails_if_no_file_can_be_read(tiny_run, images, tmp_path):
    (images / "notes.txt").write_text("taken on Monday")
    given = images / "notes.txt", images / "lost.jpg"
    given[1].symlink_to(tmp_path / "nowhere")
    line = refused("predict", f"--workdir={tiny_run}", f"--out={tmp_path / 'out.csv'}", *given)
    assert "no file of 2" in line and str(tmp_path / "out.csv") in line
    assert "Monday" not in (rows := (tmp_path / "out.csv").read_text()) and rows.count("\n") == 3


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "--workdir={run}", "--out=gs://bucket/new", "{images}"),
        ("convert", "--out=gs://bucket/new", "{images}"),
        ("export", "--workdir={run}", "--out=s3://bucket/new"),
    ],
    ids=lambda command: command[0],
)
def test_address_as_an_output_is_refused(command, tiny_run, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(*(word.format(run=tiny_run, images=images) for word in command))
    assert "://bucket/new" in line and not list(tmp_path.glob("*:"))


@pytest.mark.parametrize(
    "command", [("check", ""), ("convert", "", "--out=new"), ("convert", "mug", "--out=")]
)
def test_empty_path_is_not_the_current_folder(command, images, monkeypatch):
    monkeypatch.chdir(images)
    before = sorted(images.rglob("*"))
    assert "empty" in refused(*command) and sorted(images.rglob("*")) == before


def test_list_that_is_classified_is_not_overwritten(tiny_run, images):
    place = images / "list.txt"
    place.write_text("mug/000.jpg 0\n")
    assert f"--out={place}" in refused("predict", f"--workdir={tiny_run}", f"--out={place}", place)
    assert place.read_text() == "mug/000.jpg 0\n"


def test_default_of_an_output_names_the_flag_for_another(place, tiny_run, images):
    """As in a working directory that is read-only."""
    (tiny_run / "predictions.csv").symlink_to(place)
    line = refused("predict", f"--workdir={tiny_run}", images)
    assert "--out" in line and str(tiny_run / "predictions.csv") in line


@pytest.mark.parametrize("name", ["report", "report/index.html"])
def test_report_that_cannot_be_written_is_named(name, tiny_run):
    """A file in place of a folder, and the other way round."""
    if name == "report":
        (tiny_run / name).write_text("a file")
    else:
        (tiny_run / name).mkdir(parents=True)
    assert str(tiny_run / "report" / "index.html") in refused("report", f"--workdir={tiny_run}")


def test_error_of_a_write_names_the_file_and_not_its_temporary_copy(tmp_path, monkeypatch):
    def fail(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError) as error:
        files.write_bytes(tmp_path / "a.json", b"")
    assert error.value.filename == str(tmp_path / "a.json")


def test_export_is_refused_before_anything_is_compiled(place, tiny_run):
    how = {"fails": "export.stablehlo"}  # would be another error
    line = commands.call("__main__", "export", f"--workdir={tiny_run}", f"--out={place}", **how)
    assert f"--out={place}" in line.stderr and "injected" not in line.stderr
