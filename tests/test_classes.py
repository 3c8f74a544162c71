"""Classes that are lost, in another order, unknown to the source, or imbalanced are reported."""

import numpy as np
import pytest
from photo_trees import write_domain

from configs import folder
from daaa_jax import check
from daaa_jax.data import photo_domains
from daaa_jax.data.folders import UNKNOWN
from daaa_jax.errors import UserError
from daaa_jax.evaluation import source_classes
from daaa_jax.evaluation.class_balance import lost_classes

NAMES = ("bike", "lamp", "mug", "pen")


def posteriors_of(predicted, confidence):
    """Posteriors with a given class and its probability, `[N,K]`."""
    rows = np.repeat((1 - np.asarray(confidence, float))[:, None] / 3, 4, axis=1)
    rows[np.arange(len(rows)), predicted] = confidence
    return rows


def test_no_class_is_lost_where_all_are_predicted_and_kept():
    assert lost_classes(posteriors_of(np.arange(8) % 4, [0.99] * 8), 0.95, NAMES) == []


def test_classes_that_are_never_predicted_are_named():
    (line,) = lost_classes(posteriors_of([0, 2, 0, 2], [0.99, 0.9, 0.9, 0.99]), 0.95, NAMES)
    assert "lamp, pen" in line and "bike" not in line


@pytest.mark.parametrize(
    ("kept", "count", "is_rare"), [(1, 20, True), (3, 20, False), (0, 9, False)]
)
def test_classes_that_are_hardly_kept_are_named(kept, count, is_rare):
    """Half of the twenty images of the other classes are kept; few images give no share."""
    confidence = [0.99] * 10 + [0.5] * 10
    rows = [posteriors_of([n] * 20, confidence) for n in (0, 1, 2)]
    rows.append(posteriors_of([3] * count, [0.99] * kept + [0.5] * (count - kept)))
    lines = lost_classes(np.concatenate(rows), 0.95, NAMES)
    assert bool(lines) == is_rare
    if is_rare:
        assert "pen (5% of 20)" in lines[0] and "mug" not in lines[0]


# Classes of an external source network.


def outputs_of(order, right=18, wrong=2):
    """Predictions of a network whose output `order[k]` is class k, and the labels."""
    labels = np.repeat(np.arange(len(order)), right + wrong)
    predicted = np.asarray(order)[labels].reshape(len(order), -1)
    predicted[:, -wrong:] = (predicted[:, -wrong:] + 1) % len(order)
    return predicted.ravel(), labels


def test_source_network_with_its_classes_in_order_passes(capsys):
    source_classes.check(*outputs_of([0, 1, 2, 3]), NAMES, "net.pth")
    assert not capsys.readouterr().out


@pytest.mark.parametrize("order", [[1, 2, 3, 0], [1, 0, 2, 3]])
@pytest.mark.parametrize("sorted_by", ["class", "nothing", "number"])
def test_source_network_with_classes_in_another_order_is_refused(order, sorted_by):
    rows = {
        "class": np.arange(80),
        "nothing": np.random.default_rng(0).permutation(80),
        "number": np.arange(80).reshape(2, 40).T.ravel(),  # classes in turns
    }[sorted_by]
    predicted, labels = (each[rows] for each in outputs_of(order))
    with pytest.raises(UserError, match=r"net\.pth.*output 1 is bike") as caught:
        source_classes.check(predicted, labels, NAMES, "net.pth")
    assert str(caught.value).count("output ") == sum(n != place for n, place in enumerate(order))


def test_only_outputs_of_classes_with_images_are_in_another_order():
    predicted, labels = np.repeat([0, 2, 4], 10), np.repeat([2, 4, 0], 10)
    with pytest.raises(UserError) as caught:
        source_classes.check(predicted, labels, tuple("abcde"), "net.pth")
    assert all(part in str(caught.value) for part in ("0 is c", "2 is e", "4 is a"))
    assert str(caught.value).count("output ") == 3


@pytest.mark.parametrize(("classes", "wrong"), [(10, 0), (31, 3)])
def test_another_order_is_found_in_one_image_of_each_class(classes, wrong):
    labels, names = np.arange(classes), tuple(map(str, range(classes)))
    predicted = np.roll(labels, 1)
    predicted[:wrong] = predicted[wrong]
    with pytest.raises(UserError, match="output 5 is 6"):
        source_classes.check(predicted, labels, names, "net.pth")


@pytest.mark.parametrize(
    ("classes", "images"), [(345, 12), (31, 31), (31, 24), (31, 62), (10, 10), (2, 1), (345, 100)]
)
def test_no_order_is_found_in_a_few_images_of_a_network_of_chance_accuracy(classes, images, capsys):
    """The best of all orders is right on most of them."""
    for seed in range(20):
        generator = np.random.default_rng(seed)
        predicted, labels = generator.integers(0, classes, (2, images))
        source_classes.check(predicted, labels, tuple(map(str, range(classes))), "net.pth")
    assert "warning" in capsys.readouterr().out


def test_source_network_of_chance_accuracy_is_warned_of(capsys):
    predicted = np.tile(np.arange(4), 20)
    source_classes.check(predicted, np.sort(predicted), NAMES, "net.pth")
    warning = capsys.readouterr().out
    assert "net.pth" in warning and "25.0%" in warning and "62%" in warning
    many = np.tile(np.arange(100), 100)
    source_classes.check(many, np.sort(many), tuple(map(str, range(100))), "net.pth")
    assert "3%" in capsys.readouterr().out


# Classes that only the target has, and imbalance.


@pytest.fixture
def domains(tmp_path, monkeypatch):
    monkeypatch.setenv("DAAA_CACHE", str(tmp_path / "cache"))
    source = write_domain(tmp_path / "shop", ("mug", "pen"), each=2)
    return source, write_domain(tmp_path / "phone", ("lamp", "mug", "pen"), each=3, seed=1)


def load(source, target, **changes):
    settings = folder.get_config("smoke").data
    settings.update(source=str(source), target=str(target), limit=0, **changes)
    return photo_domains.load(settings)


@pytest.mark.parametrize("as_test", [False, True])
def test_classes_that_only_the_target_has_are_unlabelled_and_not_measured(as_test, domains, capsys):
    source, target = domains
    changes = {"target_test": str(target)} if as_test else {}
    with pytest.raises(UserError, match="'lamp'.*data.unknown_classes=ignore"):
        load(source, target, **changes)
    task = load(source, target, unknown_classes="ignore", **changes)
    assert len(task.target_train.images) == 9 and task.class_names == ("mug", "pen")
    labels = task.evaluation.target_test.labels
    np.testing.assert_array_equal(labels, [UNKNOWN] * 3 + [0] * 3 + [1] * 3)
    assert "classes" in task.evaluation.target_images
    printed = capsys.readouterr().out
    assert "'lamp'" in printed and " 3 " in printed


@pytest.mark.parametrize("name", ["pen ", " pen", "Pen", "p en"])
def test_classes_that_differ_only_in_case_or_spaces_are_quoted(name, domains, tmp_path, capsys):
    source, _ = domains
    target = write_domain(tmp_path / "new", ("mug", name), each=2, seed=2)
    with pytest.raises(UserError, match=f"lacks: {name!r};"):
        load(source, target)
    write_domain(source, (name,), each=2, seed=3)
    load(source, target)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "warning" in line)
    assert str(source) in line and "'pen'" in line and repr(name) in line


@pytest.mark.parametrize(("most", "is_reported"), [(20, True), (8, False)])
def test_dataset_check_reports_an_imbalanced_source(most, is_reported, tmp_path, capsys):
    source = write_domain(tmp_path / "shop", ("mug",), each=most)
    write_domain(source, ("pen",), each=2, seed=1)
    assert check.main([str(source)]) == 0
    assert ("largest" in capsys.readouterr().out) == is_reported
