"""The soft labels at each refresh: how many are kept, how right they are, and of which classes."""

from collections.abc import Mapping, Sequence

import numpy as np

from daaa_jax.baselines import OURS
from daaa_jax.report import charts, parts
from daaa_jax.runtime import metrics


def section(
    lines: Sequence[Mapping],
    refreshes: Sequence[Mapping],
    class_names: Sequence[str],
    method: str = OURS,
) -> str:
    """Charts of all refreshes, and of the last one by class; empty before the first.

    Args:
      lines: of `metrics.jsonl`.
      refreshes: of `posterior.json`, see `rounds.soft_labels`; may be empty.
      class_names: of all classes; empty where they are not known yet.
      method: `config.method`; others than ours are not trained on soft labels.
    """
    rounds = metrics.rounds(lines)
    shares = {
        "kept": parts.curve(rounds, "kept"),
        "mean confidence": parts.curve(rounds, "confidence"),
        "right among the kept": parts.curve(rounds, "kept_accuracy"),
        "right among the others": parts.curve(rounds, "rejected_accuracy"),
    }
    drawn = parts.chart(charts.lines, "posterior", shares, "round", "share", percent=True)
    if not drawn:
        return ""
    known = [refresh for refresh in refreshes if sum(refresh["images"])]
    by_class = _by_class(known[-1], class_names) if known and class_names else ""
    if method == OURS:
        title = "Soft labels"
        told = (
            "What the network that gives the soft labels says of the unlabelled images: how many "
            "pass the threshold and, where their classes are known, how many of those and of the "
            "others are right. A share of right ones that falls while more are kept says that "
            "wrong labels settle in."
        )
    else:
        title = "Confidence on unlabelled images"
        told = (
            "How sure the network is of the target's training images: how many pass the threshold "
            "that would keep them as soft labels, which this method does not use, and, where "
            "their classes are known, how many of those and of the others are right."
        )
    return (
        f"<h2>{title}</h2><div class=charts>{drawn}{_calibration(known)}{by_class}</div>"
        f"<p class=faint>{told} Where the network is well calibrated, its confidence is its "
        "accuracy, and the curve lies on the diagonal.</p>"
    )


def _calibration(refreshes: Sequence[Mapping]) -> str:
    curves = {}
    for name, refresh in zip(("first refresh", "last refresh"), _ends(refreshes), strict=False):
        count, confidence, right = np.array(refresh["calibration"], float).T
        filled = count > 0
        mean, share = confidence[filled] / count[filled], right[filled] / count[filled]
        curves[name] = ([100 * x for x in mean], list(share))
    if not curves:
        return ""
    curves["perfect"] = ([0, 100], [0, 1])
    return parts.chart(
        charts.lines, "calibration", curves, "confidence, %", "accuracy", percent=True
    )


def _ends(refreshes: Sequence[Mapping]) -> list[Mapping]:
    return [refreshes[0], refreshes[-1]] if len(refreshes) > 1 else list(refreshes)


def _by_class(refresh: Mapping, names: Sequence[str]) -> str:
    kept = {
        name: kept / images if images else None
        for name, kept, images in zip(names, refresh["kept"], refresh["images"], strict=True)
    }
    right = {
        name: right / kept if kept else None
        for name, right, kept in zip(names, refresh["right"], refresh["kept"], strict=True)
    }
    return "".join(
        f"<figure>{charts.bars(name, values, label)}</figure>"
        for name, values, label in (
            ("kept-by-class", kept, "kept of each class at the last refresh, %"),
            ("right-by-class", right, "right among the kept of each class, %"),
        )
    )
