"""The size of each network of a run, printed and listed before any is made."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from clu import parameter_overview
from ml_collections import ConfigDict

from daaa_jax import adaptation, baselines, models
from daaa_jax.baselines import training
from daaa_jax.data.augment import evaluation_views
from daaa_jax.data.types import Task
from daaa_jax.models import network_file
from daaa_jax.runtime import markers


def write(config: ConfigDict, task: Task, path: Path) -> None:
    """Prints the size of each network, and writes tables of their parameters; makes none."""
    shape = task.source_train.images.shape[1:]
    key, image = jax.random.key(0), jnp.zeros((1, *shape))
    classifier = models.create_classifier(config.model, len(task.class_names), "sum_squares")
    shapes = {"classifier": network_file.variable_shapes(classifier, shape[0], config.augment)}
    if adaptation.trains_cyclegan(config):
        for name, network in zip(
            ("generator", "discriminator"), models.create_gan(config.pair), strict=True
        ):
            shapes[name] = jax.eval_shape(network.init, key, image)
    if config.method != baselines.OURS:
        view = evaluation_views(image, config.augment, 1)[0]
        own = jax.eval_shape(
            functools.partial(training.create_auxiliary, config, classifier, view), key
        )
        shapes |= {f"{name} of {config.method}": {"params": own[name]} for name in own}
    tables = []
    for name, variables in shapes.items():
        params = variables["params"]
        table = parameter_overview.get_parameter_overview(params, include_stats=False)
        tables.append(f"{name}:\n{table}\n")
        count = parameter_overview.count_parameters(params)
        print(f"{name}: {count:,} parameters, listed in {path}", flush=True)
    markers.write_bytes(path, "\n".join(tables).encode())
