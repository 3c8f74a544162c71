"""The paper's tables and figures: which runs they need, and what is written of their results."""

import csv
import io
import json
import os
import re
import signal
import statistics
import xml.etree.ElementTree as ElementTree

import commands
import pytest

from daaa_jax import config_files, pipeline, reproduce, validate
from daaa_jax.errors import Diverged, UserError
from daaa_jax.experiment import stages
from daaa_jax.experiment.workdir import Busy, Workdir
from daaa_jax.paper import cells, choices, figures, summary, tables
from daaa_jax.report import __main__ as report
from daaa_jax.runtime import files
from daaa_jax.runtime.preemption import Notice, Preempted

OFFICE10 = cells.Plan("office10", seeds=2)


def reached(config) -> float:
    """An accuracy that differs between settings and seeds."""
    with_alignment = 0.1 if config.adapt.beta else 0.0
    return 0.5 + 0.01 * config.seed + with_alignment + 0.1 * config.adapt.mix.t


def score(config) -> float:
    """A validator's score: highest for a threshold of 0.8 and the smallest beta."""
    return 1 - abs(config.em.threshold - 0.8) - config.adapt.beta


def fake_trainer(trained):
    def train(config, workdir):
        trained.append(workdir.path.name)
        validate.resolve(config, 1)
        workdir.write_config(config)
        accuracy = {
            "source_only": 0.3 + 0.1 * config.seed,
            "target_test": dict.fromkeys(("last", "selected", "oracle"), reached(config)),
        }
        if config.method == "daaa":
            accuracy["source_translated"] = 0.7
        lines = [
            {
                "stage": "adapt",
                "step": step,
                "round_loss": 1.0,
                "round_alignment": 1 / step,
                "information": score(config),
                "target_test": 0.1 * step,
            }
            for step in (1, 2, 3)
        ]
        workdir.metrics_jsonl.write_text("\n".join(map(json.dumps, lines)))
        workdir.result_json.write_text(
            json.dumps({"accuracy": accuracy, "seconds": {"adapt": 60.0}})
        )

    return train


def run(tmp_path, *arguments, trainer=fake_trainer):
    trained = []
    reproduce.main([f"--workdir={tmp_path}", *arguments], trainer(trained))
    return trained


def written(folder, name, ending="md"):
    """A table or figure; its name is longer if data or settings are not the paper's."""
    (path,) = folder.glob(f"{name}*.{ending}")
    return path.read_text()


def rows_of(folder, name):
    return list(csv.DictReader(io.StringIO(written(folder, name, "csv"))))


def texts_of(svg):
    """The lines of text in a figure."""
    elements = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(element.itertext()) for element in elements]


# The paper's accuracies


NOT_IN_THE_PAPER = {
    "EM",
    "EM + L_AT",
    "Source network on G_TS(x^T)",
    "Ours (paired posterior)",
    "Ours (paired + recoloured + averaged + linear rate)",
    tables.UPPER_BOUND,
    tables.L1_AT_OUR_BETA,
}


def test_every_row_of_the_paper_has_an_accuracy_for_every_task():
    for table in tables.TABLES.values():
        for row in table.rows:
            assert len(row.paper) == (0 if row.method in NOT_IN_THE_PAPER else len(table.tasks))
        assert len({(row.method, row.train_data) for row in table.rows}) == len(table.rows)


@pytest.mark.parametrize(
    ("name", "method", "train_data", "average"),
    [
        ("table2", "{network}", "S", 76.1),
        ("table2", "RevGrad", "S+T", 82.2),
        ("table2", "JAN", "S+T", 84.3),
        ("table2", "JAN-A", "S+T", 84.6),
        ("table2", "{network}", "T_f", 80.6),
        ("table2", "{network}", "S+T_f", 82.5),
        ("table2", "Ours (wo L_AT)", "T_f+T", 85.4),
        ("table2", "Ours (wo L_AT)", "S+T_f+T+S_f", 86.3),
        ("table2", "Ours (w L_AT)", "T_f+T", 86.1),
        ("table2", "Ours (w L_AT)", "S+T_f+T+S_f", 87.2),
        ("table3", "{network}", "S", 65.1),
        ("table3", "EM-A", "S+T_f+T+S_f", 64.4),
        ("table3", "EM-A + L_AT", "S+T_f+T+S_f", 71.1),
        ("table3", "EM-C", "S+T_f+T+S_f", 78.6),
        ("table3", "EM-C + L_AT", "S+T_f+T+S_f", 79.6),
        ("table3", "EM-B", "S+T_f+T+S_f", tables.VERY_LOW),
        ("table3", "Ours (wo L_AT)", "S+T_f+T+S_f", 79.7),
        ("table4", "MMD", "S+T_f+T+S_f", 74.9),
        ("table4", "JMMD", "S+T_f+T+S_f", 78.1),
        ("tableA1", "L1", "S+T_f+T+S_f", 79.8),
        ("tableA1", "L∞", "S+T_f+T+S_f", 80.0),
        ("tableA1", "Feature maps", "S+T_f+T+S_f", 79.9),
        ("tableA1", "Ours (attention)", "S+T_f+T+S_f", 80.9),
    ],
)
def test_averages_are_the_papers(name, method, train_data, average):
    table = tables.TABLES[name]
    (number,) = (
        n for n, r in enumerate(table.rows) if (r.method, r.train_data) == (method, train_data)
    )
    nothing = {(n, task): [None] for n in range(len(table.rows)) for task in table.tasks}
    shown = [
        line["paper"]
        for line in summary.lines(name, table, table.tasks, nothing, same_data=True)
        if line["task"] == summary.AVERAGE
    ]
    assert shown[number] == average


@pytest.mark.parametrize("name", tables.TABLES)
@pytest.mark.parametrize("data", cells.DATA)
def test_settings_of_every_row_are_settings_of_the_config(name, data):
    plan = cells.Plan(data, seeds=1)
    table = tables.TABLES[name]
    for chosen in cells.runs_of(table, plan.tasks(table.tasks)[:1], plan):
        config = chosen.config(plan)
        for setting, value in chosen.settings.items():
            *parents, last = setting.split(".")
            node = config
            for parent in parents:
                node = node[parent]
            assert str(node[last]) == value


# Runs


def test_cells_of_two_tables_with_the_same_settings_are_one_run(tmp_path):
    table3 = run(tmp_path, "table3", "--data=office10", "--seeds=1", "--tasks=d2a")
    assert len(table3) == 8 and len(set(table3)) == 8
    # Ours with L_AT is in all of these tables.
    assert len(run(tmp_path, "table4", "--data=office10", "--seeds=1", "--tasks=d2a")) == 3
    assert len(run(tmp_path, "tableA1", "--data=office10", "--seeds=1", "--tasks=d2a")) == 3
    assert not run(tmp_path, "table3", "--data=office10", "--seeds=1", "--tasks=d2a")


def test_seeds_share_the_first_ones_networks_unless_asked_not_to():
    shared = cells.Run("D->A", {}, 1).config(OFFICE10)
    assert (shared.seed, shared.pair.seed, shared.source.seed) == (1, 0, 0)
    own = cells.Run("D->A", {}, 1).config(cells.Plan("office10", own_networks=True))
    assert (own.seed, own.pair.seed, own.source.seed) == (1, 1, 1)


def test_folder_of_a_run_does_not_depend_on_where_the_data_lies(tmp_path):
    places = {"data.dir": "/some/where", "run.workers": "2"}
    here, there = (
        cells.Run("D->A", {"adapt.beta": "0.0"}, 0).workdir(
            cells.Plan("office10", settings=settings), tmp_path
        )
        for settings in ({}, places)
    )
    assert here == there
    # Other test images give another accuracy, which must not be taken for this one.
    measured = cells.Plan("office10", settings={"data.target_test": "/some/where"})
    assert cells.Run("D->A", {"adapt.beta": "0.0"}, 0).workdir(measured, tmp_path) != here
    settings = (
        "adapt.beta=0.0-adapt.confusion=0.0-adapt.recolour=0.0-em.decay=0.0-em.posterior=target-"
        "em.start_step=0-em.threshold=0.95"
    )
    assert here.path.name == f"office10-d2a-{settings}-pair.seed=0-seed=0-source.seed=0"


def test_every_run_belongs_to_one_host_and_pairs_of_domains_stay_together():
    table = tables.TABLES["table2"]
    runs = cells.runs_of(table, table.tasks, OFFICE10)
    shares = [cells.share(runs, part, 3) for part in (1, 2, 3)]
    assert sorted(map(repr, sum(shares, []))) == sorted(map(repr, runs))
    domains = [{frozenset(r.task.split("->")) for r in part} for part in shares]
    assert all(len(pair) == 1 for pair in domains)
    many = [cells.share(runs, part, 5) for part in range(1, 6)]
    assert sorted(map(repr, sum(many, []))) == sorted(map(repr, runs))
    assert max(map(len, many)) - min(map(len, many)) <= 1
    assert [cells.is_split(runs, of) for of in (3, 5)] == [False, True]


def test_hosts_that_would_train_the_same_cyclegan_are_warned(tmp_path, capsys):
    run(tmp_path, "table4", "--data=embedded", "--seeds=1", "--cells=2/3")
    assert "--cells=2/3" in capsys.readouterr().out
    run(tmp_path, "table2", "--data=office10", "--seeds=1", "--cells=2/3")
    assert "--cells" not in capsys.readouterr().out


# What is written


def test_table_has_mean_deviation_the_papers_accuracy_and_the_difference(tmp_path):
    run(tmp_path, "table2", "--data=office", "--seeds=2", "--tasks=w2a,d2a")
    cells_ = {(c["method"], c["train_data"], c["task"]): c for c in rows_of(tmp_path, "table2")}
    ours = cells_["Ours (w L_AT)", "S+T_f+T+S_f", "D->A"]
    values = [100 * (0.6 + 0.035 + 0.01 * seed) for seed in (0, 1)]
    assert float(ours["mean"]) == pytest.approx(statistics.mean(values), abs=0.01)
    assert float(ours["std"]) == pytest.approx(statistics.stdev(values), abs=0.01)
    assert (ours["seeds"], ours["paper"]) == ("2", "74.30")
    assert float(ours["difference"]) == pytest.approx(statistics.mean(values) - 74.3, abs=0.01)
    alone = cells_["ResNet-50", "S", "W->A"]
    # Both seeds share one source network: a mean of two would pretend to be more.
    assert (float(alone["mean"]), alone["seeds"], alone["std"]) == (30.0, "1", "")
    assert alone["paper"] == "60.70"
    average = cells_["Ours (w L_AT)", "S+T_f+T+S_f", "Average"]
    assert float(average["mean"]) == pytest.approx(statistics.mean(values), abs=0.01)
    assert average["paper"] == "74.10"
    text = written(tmp_path, "table2")
    assert f"| D->A | W->A | {summary.AVERAGE} |" in text
    assert "64.0 ± 0.7 (74.3, -10.3)" in text
    assert re.search(r"\bCycleGAN\b.*\bseed 0\b", text)


def test_separate_source_networks_are_averaged(tmp_path):
    run(tmp_path, "table4", "--data=office", "--seeds=2", "--tasks=w2a", "--own_networks")
    run(tmp_path, "table3", "--seeds=2", "--tasks=w2a", "--own_networks")
    alone = rows_of(tmp_path, "table3")[0]
    assert (float(alone["mean"]), alone["seeds"]) == (35.0, "2")


def test_sweep_has_a_page_with_tables_figures_and_runs(tmp_path):
    arguments = ("--data=office10", "--seeds=1", "--tasks=d2a")
    run(tmp_path, "table4", *arguments)
    run(tmp_path, "fig4", *arguments)
    (tmp_path / "runs" / "unfinished").mkdir()
    text = (tmp_path / "report" / "index.html").read_text()
    assert "<h2>Table 4" in text and "<td>63.5</td>" in text and "JMMD" in text
    assert text.count("data:image/svg+xml;base64,") == 1
    finished = [path.parent for path in (tmp_path / "runs").glob("*/result.json")]
    assert len(finished) == 5 and "unfinished" not in text
    for workdir in finished:
        assert f'href="../runs/{workdir.name}/report/index.html"' in text
    (tmp_path / "report" / "index.html").unlink()
    report.main([f"--workdir={tmp_path}"])
    assert (tmp_path / "report" / "index.html").read_text() == text


def test_cell_of_a_version_with_several_seeds_in_a_run_is_not_run_again(tmp_path):
    arguments = ("table4", "--data=office10", "--seeds=1", "--tasks=d2a", "--methods=Ours")
    (name,) = run(tmp_path, *arguments)
    path = tmp_path / "runs" / name / "config.json"
    about = json.loads(path.read_text())
    about["config"]["seeds"] = 1
    path.write_text(json.dumps(about))
    assert not run(tmp_path, *arguments)


def test_cell_without_a_run_is_shown_as_not_run(tmp_path):
    run(tmp_path, "table3", "--data=office10", "--only_show")
    assert not (tmp_path / "runs").exists()
    found = rows_of(tmp_path, "table3")
    assert len(found) == 9 * 5 and not any(cell["mean"] for cell in found)
    assert written(tmp_path, "table3").count(summary.NOT_RUN) == 9 * 5


def test_cell_with_some_of_its_seeds_shows_how_many(tmp_path):
    run(tmp_path, "table4", "--data=office10", "--seeds=1", "--tasks=d2a")
    run(tmp_path, "table4", "--data=office10", "--seeds=3", "--tasks=d2a", "--only_show")
    assert re.search(r"\b63\.5 \[1\D+3\b", written(tmp_path, "table4"))


def diverging(trained, stage):
    """In place of `pipeline.run`: L1's first seed, and MMD, end in a stage."""
    succeed = fake_trainer(trained)

    def run(config, workdir):
        succeed(config, workdir)
        if config.adapt.measure == "l1" and config.seed == 0 or config.adapt.measure == "mmd":
            workdir.result_json.unlink()
            error = Diverged(f"stage {stage}: loss not finite by step 3")
            error.stage = stage
            raise error

    return run


def test_other_runs_continue_after_one_diverges(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(pipeline, "run", diverging(trained, "adapt"))
    arguments = ("table4", "--data=office10", "--seeds=2", "--tasks=d2a")
    reproduce.main([f"--workdir={tmp_path}", *arguments])
    assert len(trained) == 8
    text = written(tmp_path, "table4")
    some = rf"\| L1-norm \| S\+T_f\+T\+S_f \| 64\.5 \[1\D+2\D+1 {summary.DIVERGED}\] \|"
    assert re.search(some, text)
    assert f"| MMD | S+T_f+T+S_f | {summary.DIVERGED} |" in text
    assert {c["method"]: c["diverged"] for c in rows_of(tmp_path, "table4")} == {
        "L1-norm": "1", "MMD": "2", "JMMD": "0", "Ours": "0"
    }  # fmt: skip
    # They are not tried again until their marker is removed.
    assert not run(tmp_path, *arguments)
    for marker in tmp_path.glob("runs/*measure=mmd*/diverged.json"):
        marker.unlink()
    assert len(run(tmp_path, *arguments)) == 2
    assert "| MMD | S+T_f+T+S_f | 64.0 ± 0.7 |" in written(tmp_path, "table4")


def test_divergence_of_a_stage_that_other_runs_share_ends_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "run", diverging([], "pair"))
    with pytest.raises(UserError, match=r"measure=l1.*stage pair: loss not finite by step 3"):
        reproduce.main([f"--workdir={tmp_path}", "table4", "--data=office10", "--tasks=d2a"])
    assert not list(tmp_path.glob("runs/*/diverged.json"))


def test_preempted_sweep_ends_after_a_run_that_ignores_the_signal(tmp_path):
    def trainer(trained):
        succeed = fake_trainer(trained)

        def train(config, workdir):
            with Notice().listening():  # as a run after its last update
                os.kill(os.getpid(), signal.SIGTERM)
                succeed(config, workdir)

        return train

    arguments = ("table4", "--data=office10", "--seeds=1", "--tasks=d2a")
    with pytest.raises(Preempted, match=r"\b1\b.*\b4\b"):
        run(tmp_path, *arguments, trainer=trainer)
    assert written(tmp_path, "table4").count(summary.NOT_RUN) == 3
    assert len(run(tmp_path, *arguments)) == 3


def test_tables_with_other_settings_have_other_names(tmp_path):
    arguments = ("table4", "--data=embedded", "--seeds=1")
    run(tmp_path, *arguments)
    run(tmp_path, *arguments, "--smoke", "--config.adapt.rounds=2", "--config.data.dir=/elsewhere")
    assert sorted(path.name for path in tmp_path.glob("table4*.md")) == [
        "table4-embedded-smoke-adapt.rounds=2.md",
        "table4-embedded.md",
    ]
    assert "63.5" in (tmp_path / "table4-embedded.md").read_text()
    run(tmp_path, "table4", "--data=office10", "--seeds=1", "--only_show")
    run(tmp_path, "table4", "--data=office10", "--seeds=1", "--tasks=d2a", "--only_show")
    assert (tmp_path / "table4-office10-d2a.md").exists()
    assert "A->W" in (tmp_path / "table4-office10.md").read_text()
    run(tmp_path, "fig4", "--data=embedded", "--seeds=1", "--config.adapt.rounds=2")
    texts = texts_of(written(tmp_path, "fig4", "svg"))
    assert any(text.startswith("Fig. 4") and "embedded" in text for text in texts)
    assert any("adapt.rounds=2" in text for text in texts)


def test_nothing_is_written_before_a_run_is_finished(tmp_path):
    def trainer(_):
        def train(config, workdir):
            raise UserError("data.dir=/nowhere: there is no such folder")

        return train

    with pytest.raises(UserError, match="data.dir=/nowhere"):
        run(tmp_path / "new", "table4", "--seeds=1", trainer=trainer)
    assert not (tmp_path / "new").exists()


def test_run_that_was_made_with_other_settings_is_not_taken_for_a_cell(tmp_path):
    arguments = ("table4", "--data=embedded", "--seeds=1", "--methods=Ours")
    run(tmp_path, *arguments)
    # Photos for the digits' backgrounds: the folder of a run is not named after their location.
    elsewhere = "--config.data.photos_dir=/some/where"
    with pytest.raises(UserError, match=r"data\.made_from_photos"):
        run(tmp_path, *arguments, elsewhere)
    # Nor after hours of training another row of the same table.
    trained = []
    with pytest.raises(UserError, match=r"data\.made_from_photos"):
        others = ("table4", "--data=embedded", "--seeds=1", "--methods=MMD", elsewhere)
        reproduce.main([f"--workdir={tmp_path}", *others], fake_trainer(trained))
    assert not trained


def test_run_of_an_earlier_version_is_not_taken_for_a_cell(tmp_path):
    arguments = ("table4", "--data=embedded", "--seeds=1", "--methods=Ours")
    (name,) = run(tmp_path, *arguments)
    place = Workdir(tmp_path / "runs" / name)
    files.write_json(
        place.finished_json("adapt"),
        {"fingerprint": "", "settings": {"version": stages.VERSIONS["adapt"]}},
    )
    assert not run(tmp_path, *arguments)
    files.write_json(place.finished_json("adapt"), {"fingerprint": "", "settings": {"version": 1}})
    with pytest.raises(UserError, match="version 1 of stage adapt"):
        run(tmp_path, *arguments)
    run(tmp_path, *arguments, "--only_show")
    assert "version 1 of stage adapt" in written(tmp_path, "table4")


@pytest.mark.parametrize("unnamed", [0, 1, 2, 3, 5])
def test_runs_whose_folders_name_fewer_settings_are_shown(tmp_path, unnamed):
    arguments = ("table4", "--data=embedded", "--seeds=1", "--methods=Ours")
    (name,) = run(tmp_path, *arguments)
    settings = ("em.posterior=target", "adapt.recolour=0.0", "em.threshold=0.95", "em.decay=0.0")
    settings = (*settings, "adapt.confusion=0.0")
    later = ("adapt.optimizer.schedule=progress", "adapt.optimizer.learning_rate=0.001")
    before = name
    for setting in (*settings[len(settings) - unnamed :], *later):
        assert f"-{setting}" in before
        before = before.replace(f"-{setting}", "")
    (tmp_path / "runs" / name).rename(tmp_path / "runs" / before)
    assert not run(tmp_path, *arguments, "--only_show")
    assert any(cell["mean"] for cell in rows_of(tmp_path, "table4"))
    assert run(tmp_path, *arguments)  # it is of another schedule, and trained again


def test_tables_name_the_network_and_the_data(tmp_path):
    for data in ("embedded", "office10", "office,cpu", "office"):
        run(tmp_path / data, "table3", f"--data={data}", "--seeds=1", "--only_show")
    texts = {folder.name: written(folder, "table3") for folder in tmp_path.iterdir()}
    assert re.match(r"## Table 3\b.*\bembedded\n", texts["embedded"])
    assert f"| CNN | S | {summary.NOT_RUN} |" in texts["embedded"]
    assert f"| EfficientNet-Lite0 | S | {summary.NOT_RUN} |" in texts["office10"]
    # Other networks and sizes than the paper's are not compared with its accuracies.
    assert "80.9" in texts["office"] and "80.9" not in texts["office,cpu"]


def test_very_low_has_no_difference(tmp_path):
    run(tmp_path, "table4", "--seeds=1", "--tasks=d2a")
    (cell, *_) = rows_of(tmp_path, "table4")
    assert (cell["method"], cell["paper"]) == ("L1-norm", tables.VERY_LOW)
    assert cell["difference"] == ""
    assert f"63.5 ({tables.VERY_LOW})" in written(tmp_path, "table4")


def test_accuracies_on_other_data_are_not_compared_with_the_papers(tmp_path):
    run(tmp_path, "table1", "--data=embedded", "--seeds=1")
    found = rows_of(tmp_path, "table1")
    assert not any(cell["paper"] or cell["difference"] for cell in found)
    assert len(found) == 16 and all(cell["mean"] for cell in found)


def test_some_rows_can_be_run_alone(tmp_path):
    trained = run(tmp_path, "table1", "--seeds=1", "--methods=cnn,Ours,EM,EM + L_AT")
    assert not run(tmp_path, "table1", "--seeds=1", "--methods=CNN")
    found = {(c["method"], c["train_data"]): bool(c["mean"]) for c in rows_of(tmp_path, "table1")}
    assert len(trained) == 8
    # Any run has the accuracies of the source network.
    known = {method for (method, _), known in found.items() if known}
    ours = {"EM", "EM + L_AT", "Ours (wo L_AT)", "Ours (w L_AT)"}
    ours |= {"Ours (paired posterior)", "Ours (paired + recoloured + averaged + linear rate)"}
    assert known == {"CNN", "Source network on G_TS(x^T)", *ours}
    assert len(found) == 16


def test_measures_of_table_4_have_equal_gradients_but_for_one_row():
    table = tables.on_network(tables.TABLES["table4"], "digits", 0.1)
    betas = {row.method: row.settings.get("adapt.beta") for row in table.rows}
    factors = tables.EQUAL_GRADIENT_FACTORS["digits"]
    for name, measure in (("L1-norm", "l1"), ("MMD", "mmd"), ("JMMD", "jmmd")):
        assert float(betas[name]) == pytest.approx(0.1 * factors[measure])
    assert betas["Ours"] is None and betas["L1-norm at L2's β"] is None
    assert factors["l1"] < 1 < factors["mmd"] < factors["jmmd"]
    # For another network nothing was measured: all rows have our beta, and L1 has one row.
    others = tables.on_network(tables.TABLES["table4"], "resnet50", 0.02)
    assert len(others.rows) == len(table.rows) - 1
    assert not any("adapt.beta" in row.settings for row in others.rows)


def test_only_rows_not_in_the_paper_have_additions():
    """Whatever the config's default: the paper's rows use the unchanged image alone."""
    rows = tables.TABLES["table1"].rows
    runs = {row.method: cells.Run("MNIST->MNIST-M", row.settings, 0) for row in rows}
    plan = cells.Plan("mnist2mnistm")
    configs = {name: run.config(plan) for name, run in runs.items()}
    paired = {name for name, config in configs.items() if config.em.posterior == "paired"}
    assert paired == {
        "Ours (paired posterior)",
        "Ours (paired + recoloured + averaged + linear rate)",
    }
    for group, name in (("adapt", "recolour"), ("em", "decay")):
        added = {row for row, config in configs.items() if config[group][name]}
        assert added == {"Ours (paired + recoloured + averaged + linear rate)"}
    rates = {config.adapt.optimizer.schedule: name for name, config in configs.items()}
    assert rates.keys() == {"progress", "linear"}
    assert rates["linear"] == "Ours (paired + recoloured + averaged + linear rate)"


def test_rows_for_photos_are_without_the_loss_that_photos_have_by_default():
    default = config_files.load("office:d2a")
    assert default.adapt.confusion == 1.0
    assert default.em.start_step == 2 * default.adapt.round_steps
    rows = tables.TABLES["table2"].rows
    configs = [cells.Run("D->A", row.settings, 0).config(cells.Plan("office")) for row in rows]
    assert not any(config.adapt.confusion or config.em.start_step for config in configs)


def test_source_network_on_translations_is_taken_from_a_run_that_has_some(tmp_path):
    run(tmp_path, "table1", "--data=embedded", "--seeds=1", "--methods=RevGrad,Source network")
    (cell,) = [c for c in rows_of(tmp_path, "table1") if c["method"].startswith("Source network")]
    assert not cell["mean"]
    run(tmp_path, "table1", "--data=embedded", "--seeds=1", "--methods=RevGrad,Ours,Source network")
    (cell,) = [c for c in rows_of(tmp_path, "table1") if c["method"].startswith("Source network")]
    assert float(cell["mean"]) == 70


def test_upper_bound_is_not_compared_with_the_paper(tmp_path):
    run(tmp_path, "table2", "--seeds=1", "--tasks=w2a,d2a")
    bound = [c for c in rows_of(tmp_path, "table2") if c["method"] == tables.UPPER_BOUND]
    assert len(bound) == 3 and all(c["mean"] and not c["paper"] for c in bound)


def test_tables_of_office_can_be_run_on_digits(tmp_path):
    trained = run(tmp_path, "table3", "--data=embedded", "--seeds=2")
    assert len(trained) == 16
    assert {cell["task"] for cell in rows_of(tmp_path, "table3")} == {"MNIST->MNIST-M"}


def test_sweep_has_a_point_for_each_threshold_and_each_beta(tmp_path):
    trained = run(tmp_path, "figA1", "--data=office10", "--seeds=2")
    # The config's own threshold and beta are the same run.
    assert len(trained) == 2 * (len(tables.THRESHOLDS) + len(tables.BETA_FACTORS) - 1)
    points = rows_of(tmp_path, "figA1")
    assert [p["x"] for p in points if p["curve"] == "p_t"] == list(tables.THRESHOLDS)
    assert len({p["mean"] for p in points if float(p["x"]) in (0.95, 0.02)}) == 1
    assert [float(p["x"]) for p in points if p["curve"] == "β"] == pytest.approx(
        [factor * 0.02 for factor in tables.BETA_FACTORS]
    )
    ElementTree.fromstring(written(tmp_path, "figA1", "svg"))
    text = written(tmp_path, "figA1")
    assert "| D->A | p_t | information | 0.8 | 30.0 | 30.0 |" in text
    assert "| D->A | β | information | 0 | 30.0 | 30.0 |" in text
    assert "entropy" not in text  # these runs have no such score


def test_validators_choose_among_finished_points_only(tmp_path, monkeypatch):
    run(tmp_path, "figA1", "--data=office10", "--only_show")
    text = written(tmp_path, "figA1")
    assert text.startswith("## Fig. A1") and "|" not in text  # no row
    scores = iter([-1.0, -2.0])
    monkeypatch.setattr(choices, "_last_round", lambda *_: {"entropy": next(scores)})
    unlabelled = choices.choices(
        "D->A", {"β": {0.02: {}, 0.2: {}}}, cells.Plan("office10"), tmp_path
    )
    text = choices.sheet("Fig. A1", unlabelled).to_markdown()
    assert re.search(r"\| D->A \| β \| entropy \| 0\.02 \| [^|\d]+ \| [^|\d]+ \|", text)


def test_figures_share_the_runs_of_tables(tmp_path):
    arguments = ("--data=office10", "--seeds=1", "--tasks=d2a")
    run(tmp_path, "table3", *arguments)
    swept = run(tmp_path, "figA1", *arguments)
    # Without the config's own point, and those of beta 0 and threshold 0.95, which are in Table 3.
    assert len(swept) == len(tables.THRESHOLDS) + len(tables.BETA_FACTORS) - 3
    assert not run(tmp_path, "fig4", *arguments)


def test_curves_have_a_point_for_each_round(tmp_path):
    run(tmp_path, "fig4", "--data=office10", "--seeds=2")
    points = rows_of(tmp_path, "fig4")
    assert len(points) == 2 * 2 * 2 * 3  # tasks, curves, quantities, rounds
    chosen = [p for p in points if (p["task"], p["y"]) == ("D->A", "L_AT")]
    assert [float(p["mean"]) for p in chosen] == pytest.approx([1, 0.5, 0.3333] * 2)
    picture = written(tmp_path, "fig4", "svg")
    assert set(tables.CURVES) <= set(texts_of(picture))


def test_curves_are_of_finished_runs_only_and_the_others_are_counted(tmp_path):
    def missing():
        """The lines of the figure about some of the four runs."""
        texts = texts_of(written(tmp_path, "fig4", "svg"))
        return [text for text in texts if re.match(r"1\D+4\D", text)]

    run(tmp_path, "fig4", "--data=embedded", "--seeds=2")
    next(tmp_path.glob("runs/*beta=0.0*-seed=1-*/result.json")).unlink()
    run(tmp_path, "fig4", "--data=embedded", "--seeds=2", "--only_show")
    seeds = {p["curve"]: p["seeds"] for p in rows_of(tmp_path, "fig4")}
    assert seeds == dict(zip(tables.CURVES, ("2", "1"), strict=True))
    (unfinished,) = missing()
    assert summary.DIVERGED not in unfinished
    files.write_json(next(tmp_path.glob("runs/*beta=0.0*-seed=1-*")) / "diverged.json", {})
    run(tmp_path, "fig4", "--data=embedded", "--seeds=2", "--only_show")
    (diverged,) = missing()
    assert summary.DIVERGED in diverged


def test_title_of_a_figure_without_a_finished_run_says_so():
    texts = texts_of(figures.draw("Fig. 4", [], None))
    (title,) = (text for text in texts if text.startswith("Fig. 4"))
    assert title != "Fig. 4"


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["table2", "--tasks=x2y"], ["--tasks=x2y", "a2w, d2w, w2d, a2d, d2a, w2a"]),
        (["table2", "--data=offise"], ["--data=offise", "mnist2mnistm, embedded, office"]),
        (["table2", "--data=office,gpu"], ["gpu", "cpu"]),
        (["table2", "--seeds=0"], ["--seeds=0", "1"]),
        (["table2", "--cells=3/2"], ["--cells=3/2"]),
        (["table2", "--config.adapt.bata=1"], ["adapt.bata", "adapt.beta"]),
        (["table2", "--config.seed=7"], ["--config.seed=7", "--seeds"]),
        (["table1", "--config.method=dann"], ["--config.method=dann", "--methods"]),
        (["table1", "--smok"], ["--smok", "--config."]),
        (["table1", "--workdir="], ["--workdir="]),
        (["table1", "--methods=gan"], ["--methods=gan", "RevGrad, DSN, ADA, PixelDA"]),
        (["fig4", "--methods=ours"], ["--methods=ours"]),
        (["table2", "--sedes=2"], ["--sedes=2", "--config."]),
        (["table1", "--data=embedded,seeds=4"], ["--data=embedded,seeds=4", "--config.seeds=4"]),
        (["table1", "--workdir=s3://b/tables"], ["--workdir=s3:/b/tables"]),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(arguments, names, tmp_path):
    with pytest.raises(UserError) as error:
        run(tmp_path / "new", *arguments)
    message = str(error.value)
    assert all(name in message for name in names) and "\n" not in message, message
    assert not (tmp_path / "new").exists()


def test_workdir_in_a_file_is_refused(tmp_path):
    file, workdir = tmp_path / "file", tmp_path / "file" / "new"
    file.write_text("")
    with pytest.raises(UserError) as error:
        run(workdir, "table1")
    message = str(error.value)
    assert f"--workdir={workdir}" in message and str(file) in message.replace(str(workdir), "")


def test_workdir_of_a_run_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=re.escape(f"--workdir={tmp_path}")):
        run(tmp_path, "table1", "--only_show")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_names_of_many_settings_are_cut(tmp_path):
    changes = [
        f"--config.{stage}.optimizer.classifier_factor=2.00000000"
        for stage in ("pair", "source", "adapt")
    ]
    changes += [
        f"--config.{stage}.optimizer.learning_rate=0.00010000"
        for stage in ("pair", "source", "adapt")
    ]
    arguments = ("table4", "--data=office10", "--seeds=1", "--tasks=d2a", *changes)
    assert len(set(run(tmp_path, *arguments))) == 4
    assert not run(tmp_path, *arguments)
    assert all(len(path.name) <= 255 for path in tmp_path.rglob("*"))
    assert all(len(path.name) <= 205 for path in tmp_path.glob("table4*"))


def test_run_that_another_command_is_running_is_skipped(tmp_path, monkeypatch):
    trained = []

    def busy(config, workdir):
        if config.adapt.measure == "mmd":
            raise Busy(f"another run is writing to {workdir}")
        fake_trainer(trained)(config, workdir)

    monkeypatch.setattr(pipeline, "run", busy)
    reproduce.main([f"--workdir={tmp_path}", "table4", "--data=office10", "--tasks=d2a"])
    assert len(trained) == 9
    assert f"| MMD | S+T_f+T+S_f | {summary.NOT_RUN} |" in written(tmp_path, "table4")


def test_cell_is_run_again_if_its_data_has_another_path(tmp_path):
    """Only the run itself can tell whether the data at both paths is the same."""
    arguments = ("table4", "--data=office10", "--seeds=1", "--tasks=d2a", "--methods=Ours")
    assert len(run(tmp_path, *arguments, "--config.data.dir=/here")) == 1
    assert not run(tmp_path, *arguments, "--config.data.dir=/here")
    before = written(tmp_path, "table4")
    assert not run(tmp_path, *arguments, "--config.data.dir=/there", "--only_show")
    assert written(tmp_path, "table4") == before
    assert len(run(tmp_path, *arguments, "--config.data.dir=/there")) == 1


@pytest.mark.slow
def test_smoke_run_of_table1_is_complete(tmp_path):
    done = commands.call(
        "reproduce", "table1", "--data=embedded", "--smoke", "--seeds=1", f"--workdir={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    found = rows_of(tmp_path, "table1")
    assert len(found) == 16 and all(cell["mean"] for cell in found)
    # One CycleGAN and one source network serve all.
    assert len(list(tmp_path.glob("runs/*/pair/checkpoints"))) == 1
    assert len(list(tmp_path.glob("runs/*/source/checkpoints"))) == 1
