"""The report: what a page shows of a finished or unfinished run, with names escaped."""

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
    """Checks that every element is closed and nothing but `links` refers to another file."""

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
    """Writes the files of stage adapt on soft labels, translations, features and attention."""
    folder.mkdir()
    bins = np.zeros((10, 3))
    bins[8:] = [[4, 3.4, 3], [6, 5.7, 6]]
    sync = {"step": 1, "images": [5, 0, 5], "kept": [4, 0, 2], "right": [4, 0, 1]}
    syncs = [sync | {"calibration": bins.tolist()}] * 2
    (folder / "posterior.json").write_text(json.dumps(syncs))
    if not finished:
        return
    flips = [[3, 0, 1], [0, 0, 0], [0, 0, 4]]
    metrics = {"layers": ["conv1"], "translated": {"source": flips, "adapted": np.eye(3).tolist()}}
    (folder / "audit.json").write_text(json.dumps(metrics))
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


def headings(page):
    """The titles of the page's sections."""
    return re.findall("<h2>(.*?)</h2>", page)


def attention_caption(page):
    """The text below the attention of the networks."""
    (caption,) = (text for text in Checker(page).text if "conv1" in text)
    return caption


def test_report_of_a_finished_run_shows_each_accuracy(tmp_path):
    checked = Checker(report_of(make_workdir(tmp_path / "run")))
    shown = " ".join(checked.text)
    # Last, selected, oracle, source only; then, on the source domain, the source network.
    values = ("90.2 %", "90.0 %", "91.3 %", "30.4 %")
    assert re.search(r"[^%]*\b".join(map(re.escape, values)), shown)
    assert "99.0 %" in shown
    assert re.search(r"\b4,000\D+5,000\b", shown)
    assert re.search(r"\b10\.0 min\D+512 MiB", shown) and "15.0 min" in shown
    assert "seed 3" in shown
    assert len(checked.ids) == len(set(checked.ids))
    # Rounds, soft labels, validators, classes, flips, features, losses.
    assert checked.tags.count("svg") == 2 + 4 + 2 + 2 + 2 + 2 + 4
    assert any({"accuracy", "kept"} <= set(text.split()) for text in checked.text)
    assert "cost $" in shown  # a class without images
    assert re.search(r"\ba to <b>\D+\b0\.062\D+0\.500\b", shown)


def test_report_of_an_older_run_of_several_seeds_names_them(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    result = json.loads((workdir / "result.json").read_text()) | {"seeds": [0, 1, 2]}
    (workdir / "result.json").write_text(json.dumps(result))
    assert "seed 0, 1, 2" in " ".join(Checker(report_of(workdir)).text)


def test_page_of_a_sweep_escapes_names_and_needs_no_network(tmp_path):
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


def test_validators_are_compared_by_the_round_that_they_choose(tmp_path):
    checked = Checker(report_of(make_workdir(tmp_path / "run")))
    cells = " | ".join(text.strip() for text in checked.text if text.strip())
    # Round, accuracy, points below the best round; the correlation needs more rounds.
    assert re.search(r"information \| 1 \| 85\.0 % \| 5\.0 [^|]+ \| [^|\d]+ \|", cells)
    assert "entropy | 1 | 85.0 %" in cells and "deep embedded" not in cells


def test_report_shows_how_translations_are_classified(tmp_path):
    page = report_of(make_workdir(tmp_path / "run"))
    shown = " ".join(Checker(page).text)
    assert re.search(r"source network\D+87\.5 %\D+adapted network\D+100\.0 %", shown)
    assert re.search("source network.*adapted network", attention_caption(page))


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


def test_attention_of_an_upper_bound_with_the_same_images_and_layers_is_shown(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    alone = report_of(workdir)
    assert attention_caption(alone).count("network") == 2
    # Neighbours with other images or other layers, or damaged.
    make_upper_bound(tmp_path / "a", examples=np.zeros((4, 8, 8, 3), np.uint8))
    other = make_upper_bound(tmp_path / "b")
    (other / "adapt" / "audit.json").write_text(json.dumps({"layers": ["conv1", "conv2"]}))
    (make_upper_bound(tmp_path / "c") / "adapt" / "audit.npz").write_bytes(b"PK")
    (make_upper_bound(tmp_path / "d") / "adapt" / "audit.json").write_text("{")
    (tmp_path / "e").touch()
    assert report_of(workdir) == alone
    make_upper_bound(tmp_path / "f")
    assert attention_caption(report_of(workdir)).count("network") == 3


def test_neighbour_without_read_permission_is_skipped(tmp_path, monkeypatch):
    workdir = make_workdir(tmp_path / "run")
    alone = report_of(workdir)
    make_upper_bound(tmp_path / "a")
    is_file = Path.is_file

    def closed(path):
        if path.parent.name == "a":
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", closed)
    assert report_of(workdir) == alone


@pytest.mark.parametrize(("e", "e0"), [(0.01, 0.5), (0.15, 0.5), (0.05, 0.06)])
def test_weight_of_the_second_view_is_shown_with_a_warning_if_it_is_low(e, e0):
    counts = {"confident": 100, "contradictions": 1, "own": 50, "others": 80}
    em = {"gamma": 1 - e / min(e0, 0.2), **counts, "e": e, "e0": e0, "e1": 0.8}
    found = sections.second_view([], em, {"posterior": "paired", "tolerance": 0.2})
    assert found["paired"] and len(found["counts"]) == 8
    wanted = POOR_TRANSLATIONS if e > 0.1 else LITTLE_TO_ADD if e0 < 0.2 else ""
    assert found["warning"] == wanted


def test_report_of_the_upper_bound_names_it_and_has_no_soft_labels(tmp_path):
    ours = report_of(make_workdir(tmp_path / "run"))
    workdir = make_upper_bound(tmp_path / "bound")
    result = json.loads((workdir / "result.json").read_text()) | {"method": "upper_bound"}
    (workdir / "result.json").write_text(json.dumps(result))
    page = report_of(workdir)
    assert "upper bound" in page and "upper bound" not in ours
    # Only the section on soft labels has another title.
    assert len(headings(page)) == len(headings(ours))
    assert len(set(headings(page)) - set(headings(ours))) == 1


def test_rank_correlation_is_spearmans():
    assert sections.rank_correlation([1, 2, 30], [0.1, 0.5, 0.6]) == pytest.approx(1)
    assert sections.rank_correlation([1, 2, 30], [0.6, 0.5, 0.1]) == pytest.approx(-1)
    # By hand: ranks 0, 1.5, 1.5, 3 against 1, 0, 2, 3.
    found = sections.rank_correlation([1, 2, 2, 5], [0.2, 0.1, 0.3, 0.9])
    assert found == pytest.approx(3 / (4.5 * 5) ** 0.5)
    assert sections.rank_correlation([1, 1, 1], [0.1, 0.2, 0.3]) is None


def test_report_of_a_baseline_has_no_alignment(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    assert "L_AT" in report_of(workdir)
    path = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line.pop("round_alignment", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "L_AT" not in report_of(workdir)


def test_names_from_the_data_are_escaped(tmp_path):
    text = report_of(make_workdir(tmp_path / "run"))
    Checker(text)
    assert "<img src=x" not in text
    assert text.count("&lt;img src=x onerror=") >= 4  # title, heading, command, error


def test_report_of_an_unfinished_run_says_so_and_shows_what_there_is(tmp_path):
    finished = report_of(make_workdir(tmp_path / "finished"))
    workdir = make_workdir(tmp_path / "run", finished=False)
    page = report_of(workdir)
    assert "<strong>" in page and "<strong>" not in finished
    # Without accuracies, classes, attention, features and times.
    assert set(headings(page)) < set(headings(finished))
    assert (len(headings(page)), len(headings(finished))) == (6, 11)
    (workdir / "metrics.jsonl").unlink()
    (workdir / "adapt" / "posterior.json").unlink()
    (workdir / "pair" / "pairs.png").unlink()
    page = report_of(workdir)
    assert "svg" not in Checker(page).tags
    assert len(headings(page)) == 1 and "adapt.beta" in page and "0.10.2" in page


def test_pairs_of_a_reused_stage_are_those_of_the_run_that_made_them(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    other = make_workdir(tmp_path / "other")
    whole = report_of(workdir)
    (workdir / "pair" / "pairs.png").unlink()
    assert report_of(workdir).count("<img ") == whole.count("<img ") - 1
    (workdir / "reused.json").write_text(json.dumps({"pair": {"from": str(other), "extra": {}}}))
    assert report_of(workdir) == whole
    other.rename(tmp_path / "moved")
    assert f"were in {other}, which was moved or removed" in report_of(workdir)


def test_report_is_the_same_each_time(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    assert report_of(workdir) == report_of(workdir)


def test_long_curves_are_averaged(tmp_path):
    lines = [{"stage": "pair", "step": step, "loss": step % 2} for step in range(1, 4001)]
    places, values = sections.curve(lines, "loss", "step")
    assert len(places) == len(values) <= 400
    assert places[-1] == 4000 and values == pytest.approx([0.5] * len(values))


def test_labels_of_a_chart_are_not_parsed_as_formulas():
    drawn = charts.bars("classes", {"$x^2$": 0.5, "<b>": 1.0}, "accuracy, %")
    assert "$x^2$" in drawn and "&lt;b&gt;" in drawn and "<b>" not in drawn


def test_folder_that_is_not_a_working_directory_is_refused(tmp_path):
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))}\b.*config\.json"):
        command.main([f"--workdir={tmp_path}"])
    assert not list(tmp_path.iterdir())
