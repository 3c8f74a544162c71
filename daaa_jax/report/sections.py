"""The content of each section of a run's report: charts, tables and metrics for the template."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from daaa_jax.evaluation import second_view as second_views
from daaa_jax.evaluation.model_selection import VALIDATORS
from daaa_jax.inference import overlay
from daaa_jax.report import charts
from daaa_jax.runtime import image_grid, metrics

_MOST_POINTS = 400  # per curve; neighbouring points are averaged beyond
_STAGES = ("pair", "source", "adapt")
_NETWORKS = {"source": "source network", "adapted": "adapted network"}
_DOMAINS = ("source", "target")
_ACCURACIES = {
    "last": "after the last round",
    "selected": "chosen without labels",
    "oracle": "best by target labels, for reference",
    "paired_last": "image and translation, last",
    "paired_selected": "image and translation, selected",
    "source_only": "source network alone",
    "source_translated": "source network on translations",
}
_COUNTS = {
    "gamma": "weight of the second view (0: not used, 1: equal to the image itself)",
    "confident": "target images on which M^post is confident",
    "contradictions": "of these, contradicted by the source network on their translations",
    "own": "contradicted by the source network on the images themselves",
    "others": "outside M^post's most frequent class",
    "e": "e, share contradicted on translations",
    "e0": "e0, share contradicted without a translation",
    "e1": "e1, share contradicted by a view that always names one class",
}
_VIEWS = {"used": "in use", "own": "M^post on the image", "second_view": "second view"}
_SHARES = {
    "accuracy": "accuracy of the soft labels",
    "kept": "share kept",
    "kept_accuracy": "accuracy of the kept",
    "calibration_error": "calibration error",
}

Lines = Sequence[Mapping[str, Any]]


def percent(share: float | None) -> str:
    """Formats a share in [0, 1] in per cent; None as `no labels`."""
    return "no labels" if share is None else f"{100 * share:.1f} %"


def curve(lines: Lines, name: str, x: str = "") -> charts.Curve | None:
    """The known values of a metric against the round, or against `x`; long curves are averaged."""
    points = [
        (line[x] if x else number, line[name])
        for number, line in enumerate(lines, start=1)
        if line.get(name) is not None
    ]
    if not points:
        return None
    several = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[first : first + several] for first in range(0, len(points), several)]
    return (
        [group[-1][0] for group in groups],
        [float(np.mean([value for _, value in group])) for group in groups],
    )


def _lines(
    name: str, curves: Mapping[str, charts.Curve | None], x: str, y: str, percent: bool = False
) -> list[Markup]:
    """A chart of the known curves, in a list that is empty if there is none."""
    known = {label: curve for label, curve in curves.items() if curve is not None}
    return [charts.lines(name, known, x, y, percent)] if known else []


def accuracies(result: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracies and the images that they were measured on."""
    reached = result["accuracy"]
    on_target = reached | reached["target_test"]
    items = [(on_target[name], text) for name, text in _ACCURACIES.items() if name in on_target]
    known = any(value is not None for value, _ in items)
    own, images = ("source_test", "test images of")
    if own not in reached:
        own, images = "source_train", "the training images of"
    return {
        "target": [(percent(value), meaning) for value, meaning in items] if known else [],
        "evaluated_on": result["evaluated_on"],
        "images": result.get("images"),
        "source": percent(reached[own]),
        "source_images": images,
    }


def rounds(lines: Lines) -> list[Markup]:
    """Charts of accuracy and L_AT over the rounds of adaptation."""
    each = metrics.rounds(lines)
    accuracy = {
        "target": curve(each, "target_test"),
        "source, test images": curve(each, "source_test"),
        "source, training images": curve(each, "source_train"),
    }
    alignment = {"L_AT": curve(each, "round_alignment")}
    return [
        *_lines("accuracy", accuracy, "round", "accuracy", percent=True),
        *_lines("alignment", alignment, "round", "L_AT"),
    ]


def soft_labels(lines: Lines, syncs: Lines, class_names: Sequence[str]) -> list[Markup]:
    """Charts of the soft labels at each sync: shares kept, accuracy, calibration, classes.

    Args:
      lines: lines of `metrics.jsonl`.
      syncs: see `rounds.soft_labels`; may be empty.
      class_names: names of all classes; empty before the run is finished.
    """
    each = metrics.rounds(lines)
    shares = {
        "kept": curve(each, "kept"),
        "mean confidence": curve(each, "confidence"),
        "accuracy of the kept": curve(each, "kept_accuracy"),
        "accuracy of the others": curve(each, "rejected_accuracy"),
    }
    drawn = _lines("posterior", shares, "round", "share", percent=True)
    known = [sync for sync in syncs if sum(sync["images"])]
    if not drawn or not known:
        return drawn
    return [*drawn, *_calibration(known), *_by_class(known[-1], class_names)]


def _calibration(syncs: Lines) -> list[Markup]:
    curves: dict[str, charts.Curve | None] = {}
    ends = [syncs[0], syncs[-1]] if len(syncs) > 1 else syncs
    for name, sync in zip(("first sync", "last sync"), ends, strict=False):
        count, confidence, right = np.array(sync["calibration"], float).T
        filled = count > 0
        mean, share = confidence[filled] / count[filled], right[filled] / count[filled]
        curves[name] = ([100 * x for x in mean], list(share))
    curves["perfect"] = ([0, 100], [0, 1])
    return _lines("calibration", curves, "confidence, %", "accuracy", percent=True)


def _by_class(sync: Mapping[str, Any], names: Sequence[str]) -> Iterator[Markup]:
    if not names:
        return
    for chart, part, whole, label in (
        ("kept-by-class", "kept", "images", "kept of each class at the last sync, %"),
        ("right-by-class", "right", "kept", "accuracy of the kept of each class, %"),
    ):
        shares = {
            name: some / all_ if all_ else None
            for name, some, all_ in zip(names, sync[part], sync[whole], strict=True)
        }
        yield charts.bars(chart, shares, label)


def second_view(
    syncs: Lines, em: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> dict[str, Any] | None:
    """How gamma was measured, and charts of each view's soft labels (not in the paper).

    Args:
      syncs: see `rounds.soft_labels`.
      em: `em` of the result, see `second_view.SecondView.measure`; None in an unfinished run.
      settings: `config.em`.

    Returns:
      Values for the template; None without a second view.
    """
    drawn: list[Markup] = []
    if any(len(sync.get("views", {})) > 1 for sync in syncs):
        for name, text in _SHARES.items():
            views = {
                label: curve([sync.get("views", {}).get(view, {}) for sync in syncs], name)
                for view, label in _VIEWS.items()
            }
            drawn += _lines(f"views-{name}", views, "round", text, percent=True)
    if em is None and not drawn:
        return None
    measured = em if em is not None and "confident" in em else {}
    return {
        "charts": drawn,
        "counts": [
            (text, f"{measured[name]:.3f}" if isinstance(measured[name], float) else measured[name])
            for name, text in _COUNTS.items()
            if name in measured
        ],
        "warning": second_views.warning(measured, settings["tolerance"]) if measured else "",
        "not_measured": em is not None and not measured,
        "paired": settings.get("posterior") == "paired",
    }


def validators(lines: Lines) -> dict[str, Any] | None:
    """The round that each validator chooses, its distance to the best round, and the scores."""
    each = metrics.rounds(lines)
    known = [name for name in VALIDATORS if any(line.get(name) is not None for line in each)]
    if not known:
        return None
    drawn: list[Markup] = []
    for name in known:
        full = name.replace("_", " ")
        curves = {full: curve(each, name)}
        drawn += _lines(f"validator-{name}", curves, "round", f"{full}, nats")
    return {"table": [_choice(name, each) for name in known], "charts": drawn}


def _choice(name: str, each: Lines) -> list[str]:
    scored = [(n, line) for n, line in enumerate(each, start=1) if line.get(name) is not None]
    number, chosen = max(scored, key=lambda item: item[1][name])
    labelled = [line for _, line in scored if line.get("target_test") is not None]
    cells = [name.replace("_", " "), str(number)]
    if len(labelled) < len(scored):
        return cells + ["no labels"] * 3
    accuracy = [line["target_test"] for line in labelled]
    behind = 100 * (max(accuracy) - chosen["target_test"])
    ranks = rank_correlation([line[name] for line in labelled], accuracy)
    correlation = "too few rounds" if ranks is None else f"{ranks:+.2f}"
    return [*cells, percent(chosen["target_test"]), f"{behind:.1f} points", correlation]


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None for fewer than three or for constant values."""
    if len(left) < 3 or len(set(left)) == 1 or len(set(right)) == 1:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(left, right).statistic)


def classes(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Accuracy by class, the confusion matrix, and the most frequent errors."""
    names, confusion = list(result["per_class"]), np.array(result["confusion"])
    if not confusion.sum():
        return None
    errors = [
        (names[row], names[column], int(confusion[row, column]))
        for row, column in np.ndindex(*confusion.shape)
        if row != column and confusion[row, column]
    ]
    drawn = (
        charts.bars("classes", result["per_class"], "accuracy, %"),
        charts.matrix("confusion", confusion, names, "true class", "predicted class"),
    )
    errors.sort(key=lambda error: (-error[2], *error[:2]))
    mean = result.get("mean_per_class")
    mean = None if mean is None else percent(mean)
    return {"errors": errors[:5], "mean": mean, "charts": drawn}


def translations(
    pairs: bytes | None,
    colours: Mapping[str, Any],
    diagnostics: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    class_names: Sequence[str],
) -> dict[str, Any] | None:
    """Image pairs, colour distances, classes recognised in translations, and nearest real images.

    Args:
      pairs: sheet of image pairs, a PNG.
      colours: see `diagnostics.translation_colours`; empty if nothing was translated here.
      diagnostics: metrics written by `diagnostics.write`; empty in an unfinished run.
      arrays: arrays written by `diagnostics.write`; likewise.
      class_names: names of all classes.
    """
    translated = diagnostics.get("translated", {})
    matrices = {name: np.array(translated[name]) for name in _NETWORKS if name in translated}
    labels = None
    if matrices and class_names:
        labels = {
            "recognised": " and ".join(
                f"the {_NETWORKS[name]} sees {100 * np.trace(m) / max(m.sum(), 1):.1f} %"
                for name, m in matrices.items()
            ),
            "charts": [
                charts.matrix(f"flips-{name}", m, class_names, "label", _NETWORKS[name])
                for name, m in matrices.items()
            ],
        }
    nearest = None
    if "nearest" in arrays:
        columns = np.stack([arrays[name] for name in ("originals", "translations", "nearest")])
        nearest = charts.jpeg(image_grid.grid(columns))
    found = {
        "pairs": charts.compressed(pairs) if pairs else None,
        "colours": colours,
        "labels": labels,
        "nearest": nearest,
    }
    return found if any(found.values()) else None


def attention(
    arrays: Mapping[str, np.ndarray], layers: Sequence[str], upper_bound: Mapping[str, np.ndarray]
) -> dict[str, Any] | None:
    """Attention of the networks as in Fig. 1 of the paper, one picture per layer.

    Args:
      arrays: arrays written by `diagnostics.write`; empty in an unfinished run.
      layers: names of the layers in `arrays`.
      upper_bound: such arrays of a run trained on target labels; empty if none.
    """
    if "examples" not in arrays:
        return None
    networks = {"source network": arrays["attention_source"]}
    if upper_bound:
        networks["network trained on target labels"] = upper_bound["attention_adapted"]
    networks["adapted network"] = arrays["attention_adapted"]
    images = arrays["examples"].astype(np.float32) / 127.5 - 1
    pictures = []
    for number, layer in enumerate(layers):
        overlaid = [overlay(images, maps[number] / 255) for maps in networks.values()]
        rows = np.stack([arrays["examples"], *overlaid])
        pictures.append((layer, charts.jpeg(image_grid.grid(rows))))
    return {"layers": pictures, "networks": ", ".join(networks)}


def features(arrays: Mapping[str, np.ndarray], class_names: Sequence[str]) -> dict[str, Any] | None:
    """t-SNE plots of the features of both domains, of the source and the adapted network."""
    if "plane_source_source" not in arrays:
        return None
    labels = {domain: arrays[f"classes_{domain}"] for domain in _DOMAINS}
    drawn = []
    for when, network in (("before", "source"), ("after", "adapted")):
        points = {domain: arrays[f"plane_{network}_{domain}"] for domain in _DOMAINS}
        title = f"{when}: {_NETWORKS[network]}"
        drawn.append(charts.scatter(f"plane-{network}", points, labels, title))
    numbers = [str(number) for number in range(len(class_names))]
    shown = len(numbers) <= charts.NUMBERED and list(class_names) != numbers
    names = (f"{n} {name}" for n, name in zip(numbers, class_names, strict=True))
    return {"charts": drawn, "classes": ", ".join(names) if shown else ""}


def losses(lines: Lines) -> list[Markup]:
    """Charts of every logged metric of every stage."""
    drawn: list[Markup] = []
    for stage in _STAGES:
        here = [line for line in lines if line["stage"] == stage and "loss" in line]
        names = dict.fromkeys(k for line in here for k in line if k not in ("stage", "step"))
        for name in names:
            curves = {name: curve(here, name, "step")}
            drawn += _lines(f"{stage}-{name}", curves, f"{stage}, updates", name)
    return drawn
