"""How each validator ranks the rounds, and how far from the best round its choice lies."""

from collections.abc import Mapping, Sequence

import numpy as np

from daaa_jax.evaluation.model_selection import VALIDATORS
from daaa_jax.report import charts, parts
from daaa_jax.runtime import metrics

NAMES = {
    "entropy": "entropy",
    "information": "information maximisation",
    "neighbourhood_density": "soft neighbourhood density",
    "deep_embedded": "deep embedded validation",
}


def section(lines: Sequence[Mapping]) -> str:
    """A table of the validators, and a chart of each; empty where nothing was scored.

    Args:
      lines: of `metrics.jsonl`.
    """
    rounds = metrics.rounds(lines)
    known = [n for n in VALIDATORS if any(line.get(n) is not None for line in rounds)]
    if not known:
        return ""
    rows = "".join(_row(name, rounds) for name in known)
    shown = "".join(
        parts.chart(
            charts.lines,
            f"validator-{name}",
            {NAMES[name]: parts.curve(rounds, name)},
            "round",
            f"{NAMES[name]}, nats",
        )
        for name in known
    )
    return (
        "<h2>Choosing a round without target labels</h2><div class=wide><table><tr>"
        "<th>validator</th><th>its round</th><th>accuracy there</th><th>below the best round</th>"
        f"<th>rank correlation with the accuracy</th></tr>{rows}</table></div>"
        "<p class=faint>Each validator scores the network by what it says of unlabelled target "
        "images, the higher the better. The last three columns are known from target labels, "
        "and serve to judge the validators alone.</p>"
        f"<details><summary>Scores of every round</summary><div class=charts>{shown}</div>"
        "</details>"
    )


def _row(name: str, rounds: Sequence[Mapping]) -> str:
    scored = [
        (number, line) for number, line in enumerate(rounds, start=1) if line.get(name) is not None
    ]
    number, chosen = max(scored, key=lambda item: item[1][name])
    judged = [line for _, line in scored if line.get("target_test") is not None]
    cells = [NAMES[name], str(number)]
    if len(judged) == len(scored):
        accuracies = [line["target_test"] for line in judged]
        behind = 100 * (max(accuracies) - chosen["target_test"])
        ranks = rank_correlation([line[name] for line in judged], accuracies)
        cells += [parts.percent(chosen["target_test"]), f"{behind:.1f} points"]
        cells.append("too few rounds" if ranks is None else f"{ranks:+.2f}")
    else:
        cells += ["no labels"] * 3
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Spearman's, equal values sharing their mean rank; None where either says nothing."""
    ranks = [_ranks(np.asarray(values)) for values in (left, right)]
    if len(left) < 3 or any(np.ptp(r) == 0 for r in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    below = (values[:, None] > values[None, :]).sum(axis=1)
    equal = (values[:, None] == values[None, :]).sum(axis=1)
    return below + (equal - 1) / 2
