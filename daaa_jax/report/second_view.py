"""The second view of target images: its weight gamma, and how right each view's soft labels are."""

from collections.abc import Mapping, Sequence

from daaa_jax.evaluation import second_view
from daaa_jax.report import charts, parts

_COUNTS = {
    "gamma": "weight of the second view (0: not used, 1: as much as the image itself)",
    "confident": "target images on which M^post is confident",
    "contradictions": "of them, contradicted by the source network on their translations",
    "own": "contradicted by the source network on the images themselves",
    "others": "outside M^post's most frequent class",
    "e": "e, share contradicted on translations",
    "e0": "e0, share contradicted without a translation",
    "e1": "e1, share that a view of one class would contradict",
}

_VIEWS = {"used": "in use", "own": "M^post on the image", "second_view": "second view"}
_SHARES = {
    "accuracy": "accuracy of the soft labels",
    "kept": "share kept",
    "kept_accuracy": "accuracy of the kept",
    "calibration_error": "calibration error",
}


def section(
    refreshes: Sequence[Mapping],
    em: Mapping[str, float] | None,
    settings: Mapping,
) -> str:
    """How gamma was measured, and charts of each view's soft labels (ours, not the paper's).

    Empty without a second view.

    Args:
      refreshes: of `posterior.json`, see `rounds.soft_labels`.
      em: of the result, see `second_view.SecondView.measure`; None while the run goes on.
      settings: `config.em`.
    """
    drawn = "".join(
        parts.chart(
            charts.lines,
            f"views-{name}",
            {
                label: parts.curve(
                    [refresh.get("views", {}).get(view, {}) for refresh in refreshes], name
                )
                for view, label in _VIEWS.items()
            },
            "round",
            text,
            percent=True,
        )
        for name, text in _SHARES.items()
        if any(len(refresh.get("views", {})) > 1 for refresh in refreshes)
    )
    if em is None and not drawn:
        return ""
    explanation = (
        "The second view of a target image is its translation into the source's style. Its "
        "weight is measured once, without labels: it counts as far as it contradicts confident "
        "soft labels less than no translation would, and less than a view that always names one "
        "class. "
    )
    explanation += (
        "Soft labels are the product of both views' posteriors."
        if settings.get("posterior") == "paired"
        else "Soft labels are those of the image alone; the weight is for inference on both images."
    )
    table = warning = ""
    if em is not None and "confident" in em:
        table = parts.table(
            (text, f"{em[name]:.3f}" if isinstance(em[name], float) else em[name])
            for name, text in _COUNTS.items()
        )
        if warned := second_view.warning(em, settings["tolerance"]):
            warning = f"<p><strong>Note: {warned}.</strong></p>"
    elif em is not None:
        table = "<p>gamma is 0: it was not measured, as M^post never changed.</p>"
    return (
        f"<h2>Second view</h2>{warning}{table}<div class=charts>{drawn}</div>"
        f"<p class=faint>{explanation}</p>"
    )
