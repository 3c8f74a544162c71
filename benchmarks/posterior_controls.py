"""Control experiments for the paired posterior, with soft labels that no config offers.

    python -m daaa_jax.main --config=configs/digits.py --config.data.development_size=500 \
        --config.run.reuse=none --workdir=runs/dev
    python -m benchmarks.posterior_controls --workdir=runs/dev

For each control, trains a new target network on the translations and the source network of a
finished run, into `WORKDIR-CONTROL-SEED`, and prints a line: the weight gamma, the accuracy after
the last round, and that of inference on both images. The formula and gate of a control are not in
the config stored there, only in the name of the folder.
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
    """What a control changes: settings, the formula of the soft labels, the formula of gamma."""

    settings: Mapping[str, Any]
    posterior: Callable | None = None
    gate: Callable | None = None


def geometric_mean(own, other, weight=1.0, log_prior=0.0):
    """`p(z | x)^(1 / (1 + weight)) p(z | x')^(weight / (1 + weight))`, normalised."""
    mean = (jax.nn.log_softmax(own) + weight * jax.nn.log_softmax(other)) / (1 + weight)
    return em.posterior(mean)


def second_alone(own, other, weight=1.0, log_prior=0.0):
    """Posterior of the second image alone; of the first until the weight is measured."""
    return jax.numpy.where(weight > 0, em.posterior(other), em.posterior(own))


def ungated(counts: em.ViewCounts, tolerance: float) -> float:
    """Weight 1 for any counts."""
    return 1.0


_PAIRED = {"em.posterior": "paired"}
CONTROLS = {
    "paired": Control(_PAIRED),
    "paired_ungated": Control(_PAIRED, gate=ungated),
    "paired_second_read_by_posterior": Control(_PAIRED | {"em.second_view": "posterior"}),
    "geometric_mean": Control(_PAIRED, geometric_mean),
    "geometric_mean_threshold_0.95": Control(_PAIRED | {"em.threshold": 0.95}, geometric_mean),
    "second_alone": Control(_PAIRED, second_alone),
    "target": Control({"em.posterior": "target"}),
    "target_threshold_0.95": Control({"em.posterior": "target", "em.threshold": 0.95}),
    "target_threshold_0.8": Control({"em.posterior": "target", "em.threshold": 0.8}),
    "no_em": Control({"em.posterior": "target", "em.threshold": 1.1, "em.decay": 0.0}),
}


@contextlib.contextmanager
def replaced(control: Control) -> Iterator[None]:
    """Context in which a control's formula and gate replace those of `em`."""
    with contextlib.ExitStack() as stack:
        if control.posterior:
            stack.enter_context(mock.patch.object(em, "paired_posterior", control.posterior))
        if control.gate:
            stack.enter_context(mock.patch.object(em.ViewCounts, "weight", control.gate))
        yield


def train(base: Path, name: str, seed: int) -> dict[str, Any]:
    """Trains a control on the translations of the run in `base`; returns its result."""
    config, control = Workdir(base).config(), CONTROLS[name]
    shared = {"pair.seed": config.pair.seed, "source.seed": config.source.seed}
    settings = {"seed": seed, "run.reuse": ""} | shared | control.settings
    config.update_from_flattened_dict(settings)
    with replaced(control):
        return pipeline.run(config, base.with_name(f"{base.name}-{name}-{seed}"))


def main() -> None:
    """Trains the requested controls and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="working directory of a finished run")
    parser.add_argument("--controls", default=",".join(CONTROLS), help="names, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="seed of the target network")
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
