"""Stage `translate`: every image once, in order, in parts, all by the same generator."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_config, make_context, make_images

from daaa_jax import translation
from daaa_jax.data import records
from daaa_jax.data.augment import decode
from daaa_jax.errors import UserError
from daaa_jax.runtime import files
from daaa_jax.runtime.preemption import Notice, Preempted

ORIGINALS = make_images(13, size=4)
NEGATIVE, SAME = ({"scale": jnp.float32(factor)} for factor in (-1, 1))
FOLDER = "translate/ours_to_theirs"


class Scale(nn.Module):
    """A generator whose outcome is known: the negative of an image, or the image itself."""

    @nn.compact
    def __call__(self, images):
        return images * self.param("scale", nn.initializers.ones_init(), ())


def translate(workdir, params, images=ORIGINALS, devices=1, batch_size=4):
    config = make_config({"translate.batch_size": batch_size, "translate.part_size": 5})
    with make_context(workdir, config, devices) as context:
        translation.run(config.translate, Scale(), params, images, "ours_to_theirs", context)
    return translation.read(workdir / FOLDER)


def parts(workdir):
    """Name of each part, and when it was written."""
    return {p.name: p.stat().st_mtime_ns for p in sorted((workdir / FOLDER).glob("part-*"))}


def stop_at_part(number, monkeypatch):
    """Ends the run, as a kill would, in the middle of writing a part."""
    write = records.write

    def write_or_stop(path, images):
        if f"part-{number:05d}" in path.name:
            path.with_name(f".{path.name}.1.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        write(path, images)

    monkeypatch.setattr(records, "write", write_or_stop)


def test_encoding_is_the_inverse_of_decoding():
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(translation.encode(decode(pixels)), pixels)
    np.testing.assert_array_equal(translation.encode(jnp.array([-1.5, 1.5])), [0, 255])


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 4), (1, 100), (8, 8)])
def test_row_i_is_the_translation_of_original_i(tmp_path, devices, batch_size):
    result = translate(tmp_path, NEGATIVE, devices=devices, batch_size=batch_size)
    np.testing.assert_array_equal(result, 255 - ORIGINALS)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(translation.read(tmp_path / FOLDER), result)


def test_parts_can_be_read_alone_and_the_manifest_describes_them(tmp_path):
    translate(tmp_path, NEGATIVE)
    manifest = files.read_json(tmp_path / FOLDER / "manifest.json")
    assert manifest["complete"] and manifest["count"] == 13
    assert [(part["first"], part["count"]) for part in manifest["parts"]] == [
        (0, 5),
        (5, 5),
        (10, 3),
    ]
    for part in manifest["parts"]:
        path = tmp_path / FOLDER / part["file"]
        rows = records.read([(path, part["count"])], manifest["shape"], "")
        wanted = 255 - ORIGINALS[part["first"] : part["first"] + part["count"]]
        np.testing.assert_array_equal(rows, wanted)
    assert manifest["generator_sha256"] == files.checksum(NEGATIVE)
    assert manifest["originals_sha256"] == files.checksum(ORIGINALS)


def test_checksum_depends_on_name_type_shape_value_and_order():
    leaf = np.arange(6, dtype=np.float32)
    others = [{"w": leaf}]
    others += [{"v": leaf}, {"w": leaf.view(np.int32)}, {"w": leaf.reshape(2, 3)}]
    others += [{"w": leaf[::-1]}, {"w": np.nextafter(leaf, 9)}, {"w": leaf, "v": leaf}]
    assert len({files.checksum(tree) for tree in others}) == len(others)
    placed = jax.device_put({"w": leaf}, jax.devices()[1])
    assert files.checksum(placed) == files.checksum({"w": leaf})


def test_killed_translation_resumes_with_the_part_that_is_missing(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at_part(1, patch)
        translate(tmp_path, NEGATIVE)
    before = parts(tmp_path)
    assert before.keys() == {"part-00000.array_record"}

    np.testing.assert_array_equal(translate(tmp_path, NEGATIVE), 255 - ORIGINALS)
    after = parts(tmp_path)
    assert after.items() >= before.items()
    assert after.keys() == {f"part-{number:05d}.array_record" for number in range(3)}
    assert not [path for path in (tmp_path / FOLDER).iterdir() if path.suffix == ".tmp"]


def test_finished_translation_is_not_made_again(tmp_path):
    translate(tmp_path, NEGATIVE)
    before = parts(tmp_path)
    np.testing.assert_array_equal(translate(tmp_path, NEGATIVE), 255 - ORIGINALS)
    assert parts(tmp_path) == before


@pytest.mark.parametrize("finished", [True, False])
def test_parts_of_another_generator_are_removed(tmp_path, monkeypatch, finished):
    if finished:
        translate(tmp_path, NEGATIVE)
    else:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at_part(2, patch)
            translate(tmp_path, NEGATIVE)
    np.testing.assert_array_equal(translate(tmp_path, SAME), ORIGINALS)


def test_parts_of_other_originals_are_removed(tmp_path):
    translate(tmp_path, NEGATIVE)
    others = ORIGINALS[::-1]
    np.testing.assert_array_equal(translate(tmp_path, NEGATIVE, others), 255 - others)
    np.testing.assert_array_equal(translate(tmp_path, NEGATIVE, others[:4]), 255 - others[:4])
    assert parts(tmp_path).keys() == {"part-00000.array_record"}


def test_incomplete_translation_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=f"{FOLDER}.*stage translate"):
        translation.read(tmp_path / FOLDER)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at_part(2, patch)
        translate(tmp_path, NEGATIVE)
    with pytest.raises(UserError, match=f"{FOLDER}.*stage translate"):
        translation.read(tmp_path / FOLDER)


@pytest.mark.parametrize("damage", ["removed", "short", "torn", "empty"])
def test_damaged_part_is_named(tmp_path, damage):
    translate(tmp_path, NEGATIVE)
    part = tmp_path / FOLDER / "part-00001.array_record"
    assert translation.is_whole(tmp_path / FOLDER)
    if damage == "removed":
        part.unlink()
        assert not translation.is_whole(tmp_path / FOLDER)
    elif damage == "short":
        records.write(part, ORIGINALS[:4])
    else:
        part.write_bytes(part.read_bytes()[:150] if damage == "torn" else b"")
    with pytest.raises(UserError, match=r"part-00001\.array_record.*stage translate"):
        translation.read(tmp_path / FOLDER)


def test_preempted_translation_keeps_the_finished_parts(tmp_path, monkeypatch):
    write, written = records.write, []
    with monkeypatch.context() as patch:
        patch.setattr(records, "write", lambda *a: written.append(write(*a)))
        patch.setattr(Notice, "heard", lambda _: len(written) == 2)
        with pytest.raises(Preempted, match=r"ours_to_theirs.*\b10\b.*\b13\b"):
            translate(tmp_path, NEGATIVE)
    assert len(parts(tmp_path)) == 2
    with pytest.raises(UserError, match=f"{FOLDER}.*stage translate"):
        translation.read(tmp_path / FOLDER)
    np.testing.assert_array_equal(translate(tmp_path, NEGATIVE), 255 - ORIGINALS)


def test_damaged_manifest_is_named(tmp_path):
    translate(tmp_path, NEGATIVE)
    (tmp_path / FOLDER / "manifest.json").write_text('{"complete": tr')
    with pytest.raises(UserError, match=r"manifest\.json"):
        translation.read(tmp_path / FOLDER)


def test_processes_wait_until_the_first_has_marked_a_direction_as_complete(tmp_path, monkeypatch):
    """They read the manifest at once, as the report's translations of test images."""
    complete = []
    monkeypatch.setattr(
        translation.distributed,
        "barrier",
        lambda name: complete.append(
            files.read_json_or(tmp_path / FOLDER / translation.MANIFEST, {})["complete"]
        ),
    )
    translate(tmp_path, NEGATIVE)
    assert complete[0] is False and complete[-1] is True
