"""The paper's tables: their rows, the settings that reproduce them, and the accuracies."""

import dataclasses
from collections.abc import Mapping

VERY_LOW = "very low"  # reported by the paper for some rows instead of a number

OFFICE = ("A->W", "D->W", "W->D", "A->D", "D->A", "W->A")
FOUR = ("A->W", "A->D", "D->A", "W->A")
# Display names of the networks, by `model.name`.
NETWORKS = {"digits": "CNN", "resnet50": "ResNet-50", "efficientnet_lite0": "EfficientNet-Lite0"}
DIGITS = ("MNIST->MNIST-M",)
UPPER_BOUND = "Upper bound"
L1_AT_OUR_BETA = "L1-norm at L2's β"  # shown if the row of L1 uses another β

PaperValue = float | str | None
# Settings of each point of Fig. A1, by axis and value.
Sweep = Mapping[str, Mapping[float, Mapping[str, str]]]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
      method: the paper's name of the method; `{network}` stands for the network's name.
      train_data: images that it trains on: S, T real; T_f, S_f synthetic.
      paper: the paper's accuracies in per cent, in the order of the table's tasks; empty for a row
        that is not in the paper.
      settings: settings that the row changes, such as `{"adapt.beta": "0.0"}`.
      metric: which accuracy of a run is shown: `last`; or, of the source network, `source_only` or
        `source_translated` (on G_TS(x^T)), which all our runs on a task share.
      average: the paper's average, if it differs from `summary.paper_average` of its accuracies.
      as_strong: whether to scale beta so that the gradient of L_AT is as large as with our
        measure, see `EQUAL_GRADIENT_FACTORS`.
    """

    method: str
    train_data: str
    paper: tuple[PaperValue, ...] = ()
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    metric: str = "last"
    average: float | None = None
    as_strong: bool = False

    @property
    def is_trained(self) -> bool:
        """Whether the row needs its own runs; the others show the source network."""
        return self.metric == "last"


@dataclasses.dataclass(frozen=True)
class Subject:
    """A table or figure of the paper.

    Attributes:
      title: heading.
      data: data of the paper's accuracies, a key of `cells.DATA`.
      tasks: the tasks that it shows.
    """

    title: str
    data: str
    tasks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table(Subject):
    """A table of the paper; its tasks are columns."""

    rows: tuple[Row, ...]


_WITHOUT = {"adapt.beta": "0.0"}
_NO_TARGET = {"adapt.mix.t": "0.0", "adapt.mix.s_f": "0.0"}
# Starts from scratch, as the source network was trained on S.
_SYNTHETIC_ALONE = {"adapt.mix.s": "0.0", "adapt.init": "scratch", **_NO_TARGET, **_WITHOUT}
_NO_SOURCE = {"adapt.mix.s": "0.0", "adapt.mix.s_f": "0.0"}
_REAL_ALONE = {"adapt.mix.t_f": "0.0", "adapt.mix.s_f": "0.0"}  # translations only for L_AT
_ALL = "S+T_f+T+S_f"
# EM-A, EM-B and EM-C of Table 3, each without one of the three parts of section 3.3.
_EM_A = {"em.refresh_every": "1"}
_EM_B = {"em.threshold": "0.0"}
_EM_C = {"adapt.restart": "False"}

# Not in the paper: soft labels from both images of a pair, random colours, averaged networks, a
# rate that falls to 0.
_PAIRED = {"em.posterior": "paired"}
_LINEAR = {"adapt.optimizer.schedule": "linear", "adapt.optimizer.learning_rate": "0.002"}
_ADDITIONS = _PAIRED | _LINEAR | {"adapt.recolour": "0.5", "em.decay": "0.6"}

_OURS = (86.8, 99.3, 100.0, 88.8, 74.3, 73.9)
_OURS_WITHOUT = (87.1, 99.3, 100.0, 87.1, 72.3, 72.2)
_SOURCE_ONLY = (68.4, 96.7, 99.3, 68.9, 62.5, 60.7)


def _four(accuracies: tuple[PaperValue, ...]) -> tuple[PaperValue, ...]:
    return tuple(accuracies[OFFICE.index(task)] for task in FOUR)


def _as_strong(method: str, accuracies: tuple[PaperValue, ...], **changes: str) -> Row:
    settings = {f"adapt.{name}": value for name, value in changes.items()}
    return Row(method, _ALL, accuracies, settings, as_strong=True)


# Rows that are not in the paper: on the use of translations, and trained on target labels.
_OF_PAIRS = (
    Row("EM", "S+T", settings=_REAL_ALONE | _WITHOUT),
    Row("EM + L_AT", "S+T", settings=_REAL_ALONE),
    Row("Source network on G_TS(x^T)", "S", metric="source_translated"),
    Row("Ours (paired posterior)", _ALL, settings=_PAIRED),
)
_UPPER_BOUND = Row(UPPER_BOUND, "T with labels, from S", settings={"method": "upper_bound"})

TABLES = {
    "table1": Table(
        "Table 1: methods",
        "mnist2mnistm",
        DIGITS,
        (
            Row("RevGrad", "S+T", (81.5,), {"method": "dann"}),
            Row("DSN", "S+T", (83.2,), {"method": "dsn"}),
            Row("ADA", "S+T", (85.9,), {"method": "ada"}),
            Row("PixelDA", "S+T+T_f", (98.2,), {"method": "pixelda"}),
            Row("{network}", "S", (45.6,), metric="source_only"),
            Row("{network}", "T_f", (75.0,), _SYNTHETIC_ALONE),
            Row("{network}", "S+T_f", (78.5,), _NO_TARGET | _WITHOUT),
            Row("{network} + L_AT", "S+T_f", (85.7,), _NO_TARGET),
            Row("Ours (wo L_AT)", _ALL, (93.5,), _WITHOUT),
            Row("Ours (w L_AT)", _ALL, (95.6,)),
            *_OF_PAIRS,
            Row("Ours (paired + recoloured + averaged + linear rate)", _ALL, settings=_ADDITIONS),
            _UPPER_BOUND,
        ),
    ),
    "table2": Table(
        "Table 2: methods",
        "office",
        OFFICE,
        (
            Row("{network}", "S", _SOURCE_ONLY, metric="source_only"),
            Row("RevGrad", "S+T", (82.0, 96.9, 99.1, 79.7, 68.2, 67.4), {"method": "dann"}),
            Row("JAN", "S+T", (85.4, 97.4, 99.8, 84.7, 68.6, 70.0), {"method": "jan"}),
            Row("JAN-A", "S+T", (86.0, 96.7, 99.7, 85.1, 69.2, 70.7), {"method": "jan_a"}),
            Row("{network}", "T_f", (81.1, 98.5, 99.8, 83.3, 61.0, 60.2), _SYNTHETIC_ALONE),
            Row("{network}", "S+T_f", (81.9, 98.5, 99.8, 83.7, 66.5, 64.8), _NO_TARGET | _WITHOUT),
            Row(
                "Ours (wo L_AT)",
                "T_f+T",
                (86.2, 99.3, 100.0, 86.5, 69.9, 70.2),
                _NO_SOURCE | _WITHOUT,
                average=85.4,
            ),
            Row("Ours (w L_AT)", "T_f+T", (86.8, 99.3, 100.0, 87.2, 71.7, 71.8), _NO_SOURCE),
            Row("Ours (wo L_AT)", _ALL, _OURS_WITHOUT, _WITHOUT),
            Row("Ours (w L_AT)", _ALL, _OURS),
            *_OF_PAIRS,
            _UPPER_BOUND,
        ),
    ),
    "table3": Table(
        "Table 3: parts of EM",
        "office",
        FOUR,
        (
            Row("{network}", "S", _four(_SOURCE_ONLY), metric="source_only"),
            Row("EM-A", _ALL, (68.6, 73.5, 62.7, 52.8), _EM_A | _WITHOUT),
            Row("EM-A + L_AT", _ALL, (80.4, 79.1, 66.4, 58.4), _EM_A),
            Row("EM-C", _ALL, (86.4, 87.0, 69.5, 71.4), _EM_C | _WITHOUT),
            Row("EM-C + L_AT", _ALL, (86.2, 86.6, 71.8, 73.7), _EM_C),
            Row("EM-B", _ALL, (VERY_LOW,) * 4, _EM_B | _WITHOUT),
            Row("EM-B + L_AT", _ALL, (VERY_LOW,) * 4, _EM_B),
            Row("Ours (wo L_AT)", _ALL, _four(_OURS_WITHOUT), _WITHOUT),
            Row("Ours (w L_AT)", _ALL, _four(_OURS)),
        ),
    ),
    "table4": Table(
        "Table 4: measures of the difference between maps",
        "office",
        FOUR,
        (
            _as_strong("L1-norm", (VERY_LOW,) * 4, measure="l1"),
            Row(L1_AT_OUR_BETA, _ALL, settings={"adapt.measure": "l1"}),
            _as_strong("MMD", (84.7, 84.1, 66.2, 64.5), measure="mmd"),
            _as_strong("JMMD", (85.9, 85.3, 70.1, 71.1), measure="jmmd"),
            Row("Ours", _ALL, _four(_OURS)),
        ),
    ),
    "tableA1": Table(
        "Table A1: what is aligned",
        "office",
        FOUR,
        (
            _as_strong("L1", (85.2, 87.8, 73.3, 73.0), attention="sum_abs"),
            _as_strong("L∞", (86.4, 87.2, 73.1, 73.2), attention="max_abs"),
            _as_strong("Feature maps", (86.0, 87.6, 73.2, 72.9), attention="features"),
            Row("Ours (attention)", _ALL, _four(_OURS)),
        ),
    ),
}


# By network, the factor on beta with which another measure or kind of map has as large a gradient
# as ours, measured on all four groups of a batch after the first round by `python -m
# benchmarks.measures`, for digits on the network of `embedded`. With the same beta for all, rows
# would compare the weight of L_AT. For a network that is not listed, all rows use our beta.
EQUAL_GRADIENT_FACTORS = {
    "digits": {
        "l1": 0.0555,
        "mmd": 3.44,
        "jmmd": 16.6,
        "sum_abs": 0.929,
        "max_abs": 0.951,
        "features": 0.575,
    },
}


def on_network(table: Table, name: str, beta: float) -> Table:
    """The table with the network's name in its rows, and with beta scaled in `as_strong` rows.

    Args:
      table: a table of `TABLES`.
      name: `model.name`.
      beta: `adapt.beta` of our rows.
    """
    network = NETWORKS.get(name, name)
    factors = EQUAL_GRADIENT_FACTORS.get(name)
    rows = []
    for row in table.rows:
        if row.method == L1_AT_OUR_BETA and not factors:
            continue
        settings = dict(row.settings)
        if row.as_strong and factors:
            (variant,) = settings.values()
            settings["adapt.beta"] = f"{beta * factors[variant]:.6g}"
        name_of_row = row.method.format(network=network)
        rows.append(dataclasses.replace(row, method=name_of_row, settings=settings))
    return dataclasses.replace(table, rows=tuple(rows))


THRESHOLDS = ("0.5", "0.6", "0.7", "0.8", "0.9", "0.95", "0.99")
# Factors on the config's beta: from a tenth of it to ten times it, and 0.
BETA_FACTORS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)

BEST_EARLIER = (69.2, "JAN-A")  # on D->A; the horizontal line in Fig. A1


def sweep_settings(threshold: float, beta: float) -> Sweep:
    """The points of Fig. A1, with the axes p_t and β.

    Args:
      threshold: `em.threshold` of the config; its point changes no setting.
      beta: `adapt.beta` of the config; likewise.
    """
    thresholds = {
        float(value): {} if float(value) == threshold else {"em.threshold": value}
        for value in THRESHOLDS
    }
    betas = {}
    for factor in BETA_FACTORS:
        value = float(f"{factor * beta:.6g}")
        betas[value] = {} if factor == 1 else {"adapt.beta": str(value)}
    return {"p_t": thresholds, "β": betas}


# Fig. 4: L_AT and accuracy over the rounds, with the penalty and without.
CURVES = {"with L_AT": {}, "without L_AT": _WITHOUT}
