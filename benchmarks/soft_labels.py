"""Accuracy of soft labels from each image of a pair and from both, for a finished run.

    python -m daaa_jax.main --config=configs/digits.py --config.data.development_size=500 \
        --config.run.reuse=none --workdir=runs/dev
    python -m benchmarks.soft_labels --workdir=runs/dev

Prints, for the target's test or development images after the last round, the accuracy, the share
kept by p_t = 0.95 and the accuracy of the kept. Target labels are used for these metrics only.
"""

import argparse
from collections.abc import Mapping

import numpy as np

from daaa_jax import em, evaluation, inference, translation
from daaa_jax.data import load_task
from daaa_jax.data.types import LabelledImages
from daaa_jax.evaluation import Evaluation
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.runtime import allocator, compilation, mesh

_THRESHOLD = 0.95


def variants(workdir: Workdir) -> Mapping[str, Evaluation]:
    """Evaluates each kind of soft label, by name, on a finished run."""
    config, devices = workdir.config(), mesh.data_mesh()
    task = load_task(config.data)
    measured, direction = task.evaluation.target_test, f"{task.target_name}_to_{task.source_name}"
    if measured is not task.evaluation.target_train:
        direction += "_test"
    translates = workdir if direction.endswith("_test") else workdir.origin("translate")
    translated = translation.read(translates.translations(direction))
    last = inference.load_network(workdir, "last")
    source = inference.load_network(workdir.origin("source"), "source")
    evaluate = evaluation.make_evaluator(last.model, devices, config)

    def read(network, images) -> np.ndarray:
        return evaluate(network.variables, LabelledImages(images, measured.labels)).log_posteriors

    image, own_second = read(last, measured.images), read(last, translated)
    second = read(source, translated)
    posteriors = {
        "adapted network on x^T": np.exp(image),
        "source network on G_TS(x^T)": np.exp(second),
        "product (gamma 1)": em.paired_posterior(image, second),
        "geometric mean": em.paired_posterior(image / 2, second / 2),
        "arithmetic mean": (np.exp(image) + np.exp(second)) / 2,
        "product, adapted network on both": em.paired_posterior(image, own_second),
        "geometric mean, adapted network on both": em.paired_posterior(image / 2, own_second / 2),
    }
    return {
        name: evaluation.of_posteriors(each, measured.labels, _THRESHOLD)
        for name, each in posteriors.items()
    }


def main() -> None:
    """Prints a table with a row per kind of soft label."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="working directory of a finished run")
    options = parser.parse_args()
    allocator.keep_freed_memory()
    compilation.enable_cache()
    print("| soft labels | accuracy | kept | accuracy of the kept |\n| --- | --- | --- | --- |")
    for name, found in variants(Workdir(options.workdir)).items():
        print(f"| {name} | {found.accuracy:.1%} | {found.kept:.0%} | {found.kept_accuracy:.1%} |")


if __name__ == "__main__":
    main()
