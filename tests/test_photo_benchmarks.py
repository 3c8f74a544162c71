"""Office-Home, VisDA-2017 and DomainNet as configs: tasks, layouts, counts and a run."""

import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import domainnet, office_home, visda
from daaa_jax import main
from daaa_jax.data import load_task
from daaa_jax.errors import UserError


def write_images(folder: Path, classes: int, each: int, seed: int = 0) -> list[Path]:
    """`each` images of a colour of its class in each of `classes` folders."""
    draw, paths = np.random.default_rng(seed), []
    for number in range(classes):
        place = folder / f"class_{number:03d}"
        place.mkdir(parents=True, exist_ok=True)
        for image in range(each):
            colours = draw.integers(0, 256, (4, 4, 3), np.uint8)
            paths.append(place / f"{image}.png")
            Image.fromarray(colours).resize((20, 20)).save(paths[-1])
    return paths


def office_home_tree(root: Path) -> ConfigDict:
    for seed, domain in enumerate(("Art", "Clipart", "Product", "Real World")):
        write_images(root / domain, 65, 1, seed)
    return office_home.get_config("a2r")


def visda_tree(root: Path) -> ConfigDict:
    for seed, domain in enumerate(("train", "validation")):
        write_images(root / domain, 12, 3, seed)
    return visda.get_config()


def domainnet_tree(root: Path) -> ConfigDict:
    for seed, domain in enumerate(domainnet.DOMAINS.values()):
        paths = write_images(root / domain, 345, 2, seed)
        for split, part in (("train", paths[::2]), ("test", paths[1::2])):
            lines = [f"{p.relative_to(root)} {int(p.parent.name[-3:])}\n" for p in part]
            (root / f"{domain}_{split}.txt").write_text("".join(lines))
    return domainnet.get_config("c2s")


TREES = {
    "office_home": (office_home_tree, ("Art", "Real World"), 65, 65),
    "visda": (visda_tree, ("train", "validation"), 12, 36),
    "domainnet": (domainnet_tree, ("clipart_train", "sketch_train"), 345, 345),
}


@pytest.mark.parametrize("name", TREES)
def test_benchmark_reads_its_layout(name, tmp_path):
    make, domains, classes, images = TREES[name]
    data = make(tmp_path).data
    data.update(dir=str(tmp_path), image_size=8)
    with pytest.raises(UserError, match=r"data\.expected_counts"):
        load_task(data)
    data.expected_counts = ConfigDict()
    task = load_task(data)
    assert (task.source_name, task.target_name) == domains
    assert len(task.class_names) == classes
    assert len(task.source_train.labels) == len(task.target_train.images) == images
    assert len(task.evaluation.target_test.labels) == images
    separate = task.evaluation.target_test is not task.evaluation.target_train
    assert separate == (name == "domainnet")
    data.expected_classes = 7
    with pytest.raises(UserError, match=r"data\.expected_classes"):
        load_task(data)


@pytest.mark.parametrize("name", TREES)
def test_missing_data_are_named_with_their_source(name, tmp_path):
    config = {"office_home": office_home.get_config("p2c"), "visda": visda.get_config()}
    data = config.get(name, domainnet.get_config("q2r")).data
    for folder in ("", str(tmp_path), str(tmp_path / "nowhere")):
        data.dir = folder
        with pytest.raises(UserError, match=r"data\.dir.*") as caught:
            load_task(data)
        assert "https://" in str(caught.value)


@pytest.mark.parametrize("name", ["Real World", "RealWorld", "real_world", "Real World.txt"])
def test_domain_is_found_in_other_spellings_or_as_a_list(name, tmp_path):
    data = office_home_tree(tmp_path).data
    data.update(dir=str(tmp_path), image_size=8)
    data.expected_counts = ConfigDict()
    if name.endswith(".txt"):
        paths = sorted((tmp_path / "Real World").rglob("*.png"))
        (tmp_path / "Real World").rename(tmp_path / "images")
        lines = [f"images/{p.parent.name}/{p.name} {p.parent.name[-3:]}\n" for p in paths]
        (tmp_path / name).write_text("".join(lines))
    else:
        (tmp_path / "Real World").rename(tmp_path / name)
    assert len(load_task(data).target_train.images) == 65


def test_tasks_are_all_pairs_of_domains():
    for config, count in ((office_home, 12), (domainnet, 30)):
        pairs = [f"{s}2{t}" for s in config.DOMAINS for t in config.DOMAINS if s != t]
        found = {(c.source, c.target) for c in (config.get_config(p).data for p in pairs)}
        assert len(found) == count
        with pytest.raises(ValueError, match="a2a|c2c"):
            config.get_config("c2c" if config is domainnet else "a2a")
    assert domainnet.get_config("r2q").data.target_test == "quickdraw_test"
    assert domainnet.get_config("r2q,adapt.beta=0.5").adapt.beta == 0.5


def test_solver_and_crops_are_those_of_cdans_release():
    for config in (office_home.get_config("a2c"), visda.get_config(), domainnet.get_config("c2s")):
        for stage, images in ((config.source, 36), (config.adapt, 72)):
            rule = stage.optimizer
            assert (rule.name, rule.learning_rate, rule.momentum) == ("sgd", 1e-3, 0.9)
            assert (rule.nesterov, rule.schedule, rule.weight_decay) == (True, "iteration", 5e-4)
            assert (rule.classifier_factor, stage.batch_size) == (10, images)
        assert (config.data.image_size, config.augment.crop, config.augment.flip) == (256, 224, 1)
        assert (config.augment.area, config.evaluate.crops) == (0.08, 10)
    assert visda.get_config().baselines.mcc.temperature == 3
    assert office_home.get_config("a2c").baselines.mcc.temperature == 2.5


RUNS = {  # argument, method and domains whose images are counted
    "office_home": ("a2c,smoke", "daaa", ("Art", "Clipart")),
    "visda": ("smoke", "cdan", ("train", "validation")),
    "domainnet": ("c2s,smoke", "daaa", ("clipart_train", "sketch_train", "sketch_test")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_benchmark_runs_through_every_stage(name, tmp_path):
    argument, method, domains = RUNS[name]
    TREES[name][0](tmp_path / "data")
    workdir = tmp_path / "run"
    main.main(
        [
            f"--config=configs/{name}.py:{argument}",
            f"--config.data.dir={tmp_path / 'data'}",
            "--config.model.name=digits",
            "--config.data.limit=0",
            "--config.pair.batch_size=8",
            "--config.adapt.batch_size=16",
            f"--config.method={method}",
            f"--workdir={workdir}",
            *(f"--config.data.expected_counts.{domain}=0" for domain in domains),
        ]
    )
    result = json.loads((workdir / "result.json").read_text())
    assert (workdir / "report" / "index.html").exists()
    shares = [share for share in result["per_class"].values() if share is not None]
    assert result["mean_per_class"] == pytest.approx(np.mean(shares))
