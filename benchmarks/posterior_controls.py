"""Trainings with other soft labels than those a config can choose: does the paired posterior pay?

    python -m daaa_jax.main --config=configs/digits.py --config.data.development_size=500 \
        --config.run.reuse=none --workdir=runs/dev
    python -m benchmarks.posterior_controls --workdir=runs/dev

Trains the target network anew, once for each control, on the translations and the source network of
a finished run, into `WORKDIR-CONTROL-SEED`, and prints a line for each: the weight gamma, the
accuracy after the last round, and that of both images together. The config kept there does not tell
a control's formula or gate; its folder's name does.
"""

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from daaa_jax import em, pipeline
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.runtime import allocator, compilation


@dataclasses.dataclass(frozen=True)
class Control:
    """How a training differs: its settings, the formula of the soft labels, and the gate."""

    settings: Mapping[str, Any]
    posterior: Callable | None = None
    gate: Callable | None = None


def geometric_mean(own, other, weight=1.0, log_prior=0.0):
    """`p(z | x)^(1 / (1 + weight)) p(z | x')^(weight / (1 + weight))`, normalised."""
    mean = (jax.nn.log_softmax(own) + weight * jax.nn.log_softmax(other)) / (1 + weight)
    return em.posterior(mean)


def second_alone(own, other, weight=1.0, log_prior=0.0):
    """The posterior of the second image, once its weight is measured; until then of the first."""
    return jax.numpy.where(weight > 0, em.posterior(other), em.posterior(own))


def ungated(counts: em.ViewCounts, tolerance: float) -> float:
    """Weight 1, whatever was counted."""
    return 1.0


_PAIRED = {"em.posterior": "paired"}
CONTROLS = {
    "paired": Control(_PAIRED),
    "paired_ungated": Control(_PAIRED, gate=ungated),
    "paired_second_read_by_posterior": Control(_PAIRED | {"em.second_view": "posterior"}),
    "geometric_mean": Control(_PAIRED, geometric_mean),
    "second_alone": Control(_PAIRED, second_alone),
    "target": Control({"em.posterior": "target"}),
    "target_threshold_0.8": Control({"em.posterior": "target", "em.threshold": 0.8}),
    "no_em": Control({"em.posterior": "target", "em.threshold": 1.1}),
}


@contextlib.contextmanager
def replaced(control: Control) -> Iterator[None]:
    """Has what is traced and measured within it use a control's formula and gate."""
    with contextlib.ExitStack() as stack:
        if control.posterior:
            stack.enter_context(mock.patch.object(em, "paired_posterior", control.posterior))
        if control.gate:
            stack.enter_context(mock.patch.object(em.ViewCounts, "weight", control.gate))
        yield


def train(base: Path, name: str, seed: int) -> dict[str, Any]:
    """The result of a control, trained on what the run in `base` paired."""
    config, control = Workdir(base).config(), CONTROLS[name]
    shared = {"pair.seed": config.pair.seed, "source.seed": config.source.seed}
    settings = {"seed": seed, "run.reuse": ""} | shared | control.settings
    config.update_from_flattened_dict(settings)
    with replaced(control):
        return pipeline.run(config, base.with_name(f"{base.name}-{name}-{seed}"))


def main() -> None:
    """Trains what is asked for and prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="of a finished run")
    parser.add_argument("--controls", default=",".join(CONTROLS), help="names, with commas")
    parser.add_argument("--seed", type=int, default=0, help="of the target network")
    options = parser.parse_args()
    allocator.keep_freed_memory()
    compilation.enable_cache()
    base = Path(options.workdir).expanduser()
    for name in options.controls.split(","):
        found = train(base, name, options.seed)
        print(json.dumps({"control": name, "gamma": found["em"]["gamma"], **_metrics(found)}))


def _metrics(found: Mapping[str, Any]) -> dict[str, float]:
    reached = found["accuracy"]["target_test"]
    return {name: reached[name] for name in ("last", "paired_last")}


if __name__ == "__main__":
    main()
