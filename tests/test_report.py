"""The report: what a page shows of a run, finished or going on, and that nothing in it is code."""

import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daaa_jax.errors import UserError
from daaa_jax.evaluation.second_view import LITTLE_TO_ADD, POOR_TRANSLATIONS
from daaa_jax.paper import summary
from daaa_jax.report import __main__ as command
from daaa_jax.report import charts, sections

EVIL = '<img src=x onerror="alert(1)">'
VOID = {"meta", "img", "path", "use", "br"}


class Checker(html.parser.HTMLParser):
    """Every element is closed, and no attribute asks for something from elsewhere but `links`."""

    def __init__(self, text, links=()):
        super().__init__()
        self.links = links
        self.open, self.tags, self.text, self.ids = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href"):
                assert value in self.links or value.startswith(("data:image/", "#")), value
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def make_workdir(folder, finished=True, name=EVIL):
    folder.mkdir()
    about = {"config": {"seed": 3, "adapt": {"beta": 0.1}}, "command": f"main {name}"}
    (folder / "config.json").write_text(json.dumps(about | {"versions": {"jax": "0.10.2"}}))
    lines = [{"stage": "pair", "step": s, "loss": 10 / s, "cycle": 1 / s} for s in (1, 2, 3)]
    for step in (1, 2):
        lines.append({"stage": "adapt", "step": step, "loss": 1.0, "alignment": 0.9})
        lines.append(
            {
                "stage": "adapt",
                "step": step,
                "round_loss": 1.0,
                "round_alignment": 0.9,
                "kept": 0.5,
                "confidence": 0.8,
                "kept_accuracy": 0.97,
                "information": 1.2 - 0.1 * step,
                "entropy": -0.5,
                "target_test": 0.8 + 0.05 * step,
            }
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_audit(folder / "adapt", finished)
    (folder / "pair").mkdir()
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(folder / "pair" / "pairs.png")
    if finished:
        result = {
            "task": f"a -> {name}",
            "evaluated_on": "the test images",
            "images": {"source_train": 4000, "target_train": 5000, "left_out": 0},
            "accuracy": {
                "source_test": 0.99,
                "source_only": 0.304,
                "target_test": {"last": 0.902, "selected": 0.9, "oracle": 0.913},
            },
            "per_class": {name: 0.75, "cost $": None, "a very long name of a class": 1.0},
            "confusion": [[3, 0, 1], [0, 0, 0], [0, 0, 4]],
            "translation_colours": {"a_to_<b>": {"originals": 0.5, "translations": 0.0625}},
            "seconds": {"pair": 600.0, "adapt": 300.0},
            "step_bytes": {"pair": 512 * 2**20},
        }
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_audit(folder, finished):
    """What stage adapt leaves of soft labels, translations, features and attention."""
    folder.mkdir()
    bins = np.zeros((10, 3))
    bins[8:] = [[4, 3.4, 3], [6, 5.7, 6]]
    refresh = {"step": 1, "images": [5, 0, 5], "kept": [4, 0, 2], "right": [4, 0, 1]}
    refreshes = [refresh | {"calibration": bins.tolist()}] * 2
    (folder / "posterior.json").write_text(json.dumps(refreshes))
    if not finished:
        return
    flips = [[3, 0, 1], [0, 0, 0], [0, 0, 4]]
    figures = {"layers": ["conv1"], "translated": {"source": flips, "adapted": np.eye(3).tolist()}}
    (folder / "audit.json").write_text(json.dumps(figures))
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (4, 8, 8, 3), np.uint8)
    arrays = dict.fromkeys(("originals", "translations", "nearest", "examples"), pixels)
    for network in ("source", "adapted"):
        arrays[f"attention_{network}"] = pixels[None, ..., 0]
        for domain in ("source", "target"):
            arrays[f"plane_{network}_{domain}"] = draws.uniform(size=(6, 2)).astype(np.float32)
            arrays[f"classes_{domain}"] = np.arange(6) % 3
    np.savez_compressed(folder / "audit.npz", **arrays)


def report_of(workdir):
    command.main([f"--workdir={workdir}"])
    return (workdir / "report" / "index.html").read_text()


def test_report_of_a_finished_run_shows_its_accuracies_apart(tmp_path):
    checked = Checker(report_of(make_workdir(tmp_path / "run")))
    shown = " ".join(checked.text)
    for figure, meaning in (
        ("90.2 %", "after the last round"),
        ("90.0 %", "chosen without labels"),
        ("91.3 %", "best by target labels, for reference"),
        ("30.4 %", "source network alone"),
    ):
        assert re.search(f"{re.escape(figure)}\\s+{meaning}", shown), figure
    assert "4,000 labelled and 5,000 unlabelled" in shown
    assert "99.0 % on test images of its own domain" in shown
    assert "10.0 min, an update takes 512 MiB" in shown and "15.0 min" in shown
    assert "seed 3" in shown
    assert len(checked.ids) == len(set(checked.ids))
    # Rounds, soft labels, validators, classes, flips, features, losses.
    assert checked.tags.count("svg") == 2 + 4 + 2 + 2 + 2 + 2 + 4
    assert "accuracy of the kept" in shown and "no images" in shown
    assert re.search(r"a to <b>\s+0.062\s*, the originals 0.500", shown)


def test_report_of_an_older_run_of_several_seeds_names_them(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    result = json.loads((workdir / "result.json").read_text()) | {"seeds": [0, 1, 2]}
    (workdir / "result.json").write_text(json.dumps(result))
    assert "seed 0, 1, 2" in " ".join(Checker(report_of(workdir)).text)


def test_page_of_a_sweep_has_names_as_text_and_needs_no_network(tmp_path):
    sweep = tmp_path / "sweep"
    (sweep / "runs").mkdir(parents=True)
    make_workdir(sweep / "runs" / "<b>run")
    (sweep / "runs" / ".DS_Store").write_text("no folder")
    sheet = summary.Sheet("<b>Table", ["method", "a"], [["<i>M", "1.0"]], ["<u>note"])
    sheet.write(sweep / "table1")
    checked = Checker(report_of(sweep), links=("../runs/%3Cb%3Erun/report/index.html",))
    assert not {"b", "i", "u"} & set(checked.tags)
    shown = " ".join(checked.text)
    assert all(text in shown for text in ("<b>Table", "<i>M", "<u>note", "<b>run", "90.2 %"))


def test_validators_are_judged_by_the_round_that_they_would_choose(tmp_path):
    checked = Checker(report_of(make_workdir(tmp_path / "run")))
    cells = " | ".join(text.strip() for text in checked.text if text.strip())
    assert "information maximisation | 1 | 85.0 % | 5.0 points | too few rounds" in cells
    assert "entropy | 1 | 85.0 %" in cells and "deep embedded" not in cells


def test_translations_are_judged_by_how_they_are_classified(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    shown = " ".join(Checker(report_of(workdir)).text)
    assert "the source network sees 87.5 % and the adapted network sees 100.0 % as" in shown
    assert "Layer conv1. Rows: target images, source network, adapted network." in shown


def make_upper_bound(folder, **changes):
    """A run that was trained on target labels; `changes` of its `audit.npz`."""
    make_workdir(folder)
    about = json.loads((folder / "config.json").read_text())
    about["config"]["method"] = "upper_bound"
    (folder / "config.json").write_text(json.dumps(about))
    with np.load(folder / "adapt" / "audit.npz") as arrays:
        arrays = dict(arrays) | changes
    np.savez_compressed(folder / "adapt" / "audit.npz", **arrays)
    return folder


def test_ceiling_of_the_same_images_and_layers_is_shown_beside(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    beside = "source network, network trained on target labels, adapted network"
    # Neighbours of other images, of other layers, damaged, or closed to this user.
    make_upper_bound(tmp_path / "a", examples=np.zeros((4, 8, 8, 3), np.uint8))
    other = make_upper_bound(tmp_path / "b")
    (other / "adapt" / "audit.json").write_text(json.dumps({"layers": ["conv1", "conv2"]}))
    (make_upper_bound(tmp_path / "c") / "adapt" / "audit.npz").write_bytes(b"PK")
    (make_upper_bound(tmp_path / "d") / "adapt" / "audit.json").write_text("{")
    (tmp_path / "e").touch()
    assert beside not in " ".join(Checker(report_of(workdir)).text)
    make_upper_bound(tmp_path / "f")
    assert beside in " ".join(Checker(report_of(workdir)).text)


def test_neighbour_that_may_not_be_read_is_passed_over(tmp_path, monkeypatch):
    workdir = make_workdir(tmp_path / "run")
    make_upper_bound(tmp_path / "a")
    is_file = Path.is_file

    def closed(path):
        if path.parent.name == "a":
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", closed)
    assert "network trained on target labels" not in report_of(workdir)


@pytest.mark.parametrize(("e", "e0"), [(0.01, 0.5), (0.15, 0.5), (0.05, 0.06)])
def test_weight_of_the_second_view_is_explained_and_a_low_one_warned_of(e, e0):
    counts = {"confident": 100, "contradictions": 1, "own": 50, "others": 80}
    em = {"gamma": 1 - e / min(e0, 0.2), **counts, "e": e, "e0": e0, "e1": 0.8}
    found = sections.second_view([], em, {"posterior": "paired", "tolerance": 0.2})
    assert found["paired"] and len(found["counts"]) == 8
    wanted = POOR_TRANSLATIONS if e > 0.1 else LITTLE_TO_ADD if e0 < 0.2 else ""
    assert found["warning"] == wanted


def test_report_of_the_ceiling_says_what_it_is(tmp_path):
    workdir = make_upper_bound(tmp_path / "top")
    result = json.loads((workdir / "result.json").read_text()) | {"method": "upper_bound"}
    (workdir / "result.json").write_text(json.dumps(result))
    shown = " ".join(Checker(report_of(workdir)).text)
    assert "an upper bound for" in shown and "nothing that trains or selects" not in shown
    assert "Confidence on unlabelled images" in shown and "Soft labels" not in shown


def test_rank_correlation_is_spearmans():
    assert sections.rank_correlation([1, 2, 30], [0.1, 0.5, 0.6]) == pytest.approx(1)
    assert sections.rank_correlation([1, 2, 30], [0.6, 0.5, 0.1]) == pytest.approx(-1)
    # By hand: ranks 0, 1.5, 1.5, 3 against 1, 0, 2, 3.
    found = sections.rank_correlation([1, 2, 2, 5], [0.2, 0.1, 0.3, 0.9])
    assert found == pytest.approx(3 / (4.5 * 5) ** 0.5)
    assert sections.rank_correlation([1, 1, 1], [0.1, 0.2, 0.3]) is None


def test_report_of_a_compared_method_has_no_alignment(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    path = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line.pop("round_alignment", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "L_AT" not in report_of(workdir)


def test_names_from_the_data_are_text(tmp_path):
    text = report_of(make_workdir(tmp_path / "run"))
    Checker(text)
    assert "<img src=x" not in text
    assert text.count("&lt;img src=x onerror=") >= 4  # title, heading, command, error


def test_report_of_a_run_still_going_on_says_so(tmp_path):
    workdir = make_workdir(tmp_path / "run", finished=False)
    checked = Checker(report_of(workdir))
    assert "The run is not finished." in checked.text
    assert "Rounds" in checked.text and "Classes" not in checked.text
    assert "Soft labels" in checked.text and "Features" not in checked.text
    (workdir / "metrics.jsonl").unlink()
    (workdir / "adapt" / "posterior.json").unlink()
    (workdir / "pair" / "pairs.png").unlink()
    checked = Checker(report_of(workdir))
    assert "svg" not in checked.tags and "Settings and versions" in checked.text


def test_pairs_are_those_of_the_run_that_the_stage_was_taken_from(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    other = make_workdir(tmp_path / "other")
    (workdir / "pair" / "pairs.png").unlink()
    assert "domain, in the other" not in report_of(workdir)
    (workdir / "reused.json").write_text(json.dumps({"pair": {"from": str(other), "extra": {}}}))
    assert "domain, in the other" in report_of(workdir)


def test_report_is_the_same_each_time(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    assert report_of(workdir) == report_of(workdir)


def test_long_curves_are_averaged(tmp_path):
    lines = [{"stage": "pair", "step": step, "loss": step % 2} for step in range(1, 4001)]
    places, values = sections.curve(lines, "loss", "step")
    assert len(places) == len(values) <= 400
    assert places[-1] == 4000 and values == pytest.approx([0.5] * len(values))


def test_labels_of_a_chart_are_never_formulas():
    drawn = charts.bars("classes", {"$x^2$": 0.5, "<b>": 1.0}, "accuracy, %")
    assert "$x^2$" in drawn and "&lt;b&gt;" in drawn and "<b>" not in drawn


def test_folder_that_is_no_working_directory_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a working directory"):
        command.main([f"--workdir={tmp_path}"])
    assert not list(tmp_path.iterdir())
