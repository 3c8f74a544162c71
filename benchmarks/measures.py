"""Gradient norm of L_AT with each measure of Table 4 and each kind of map of Table A1.

    python -m daaa_jax.main --config=configs/digits.py --config.adapt.rounds=1 \
        --config.adapt.optimizer.schedule=progress --config.adapt.recolour=0.0 \
        --config.em.posterior=target --config.run.reuse=none --workdir=runs/one
    python -m benchmarks.measures --workdir=runs/one

Gradients are with respect to the target network's parameters after the first round, over all four
groups of a batch; norms are means of 16 batches. `daaa_jax/paper/tables.py` stores the factor on
beta that makes each gradient as large as that of the paper's L2 of summed squares.
"""

import argparse
import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax

from daaa_jax import adaptation, inference, translation
from daaa_jax.data import load_task
from daaa_jax.data.batches import gather
from daaa_jax.data.pairs import all_images
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.runtime import allocator, compilation

# Measure and kind of attention map, by name.
VARIANTS = {
    "l2": ("l2", "sum_squares"),
    "l1": ("l1", "sum_squares"),
    "mmd": ("mmd", "sum_squares"),
    "jmmd": ("jmmd", "sum_squares"),
    "sum_abs": ("l2", "sum_abs"),
    "max_abs": ("l2", "max_abs"),
    "features": ("l2", "features"),
}
_BATCHES = 16


def gradient_norms(workdir: Workdir) -> dict[str, float]:
    """Mean gradient norm of L_AT, by name of `VARIANTS`, for a finished run."""
    config = workdir.config()
    task = load_task(config.data)
    source = inference.load_network(workdir.origin("source"), "source")
    target = inference.load_network(workdir, "last")
    made = [
        translation.read(workdir.origin("translate").translations(f"{origin}_to_{other}"))
        for origin, other in (
            (task.source_name, task.target_name),
            (task.target_name, task.source_name),
        )
    ]
    images = all_images(task.source_train.images, made[0], task.target_train.images, made[1])
    batches = adaptation.target_training(
        config, source.model, source.variables, images, task.source_train.labels, 1
    ).batch_at
    # With gradient descent of rate 1, the change of the parameters is minus the gradient.
    descent = optax.sgd(1.0)
    state = adaptation.create_state(jax.random.key(0), source.variables, target.variables, descent)

    def norm(measure: str, attention: str) -> float:
        updates = []
        for beta in (0.0, 1.0):
            settings = config.copy_and_resolve_references()
            settings.adapt.update(beta=beta, measure=measure)
            updates.append(
                jax.jit(
                    functools.partial(
                        adaptation.train_step,
                        model=source.model.clone(attention=attention),
                        optimizer=descent,
                        config=settings,
                    )
                )
            )

        def of(batch) -> float:
            without, with_it = (update(state, gather([images], batch))[0] for update in updates)
            change = jax.tree.map(jnp.subtract, without.target["params"], with_it.target["params"])
            return float(optax.tree.norm(change))

        return statistics.mean(of(batches(step)) for step in range(_BATCHES))

    return {name: norm(*variant) for name, variant in VARIANTS.items()}


def main() -> None:
    """Prints a table with a row per variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="working directory of a finished run")
    options = parser.parse_args()
    allocator.keep_freed_memory()
    compilation.enable_cache()
    found = gradient_norms(Workdir(options.workdir))
    print("| variant | gradient of L_AT | factor of beta |\n| --- | --- | --- |")
    for name, value in found.items():
        print(f"| {name} | {value:.4g} | {np.float64(found['l2']) / value:.4g} |")


if __name__ == "__main__":
    main()
