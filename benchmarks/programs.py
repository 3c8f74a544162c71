"""The compiled step of every stage for any number of devices, with its cost analysis."""

import functools
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks import collectives
from configs import digits, folder
from daaa_jax import adaptation, cyclegan, models, source
from daaa_jax.data.pairs import GROUPS, AdaptationBatch, group_sizes
from daaa_jax.models import layers
from daaa_jax.runtime import mesh as meshes
from daaa_jax.training import optimizers

CLASSES = 345  # DomainNet's; fewer classes shorten a step by a thousandth


def config_of(family: str, devices: int) -> ConfigDict:
    """The config of a family, with batch sizes for `devices` devices."""
    if family == "digits":
        config = digits.get_config()
        config.augment.shift = config.adapt.recolour = config.em.decay = 0  # a few operations
        config.data.image_size = config.augment.crop = 32
        config.model.dtype = "float32"
        sizes = {"pair": max(16, devices), "source": 128, "adapt": 128}
    else:
        # With more than eight devices, as many images per device as with `,pod` on 32.
        config = folder.get_config()
        config.model.update(name="resnet50", weights="", dtype="bfloat16")
        whole = 64 if devices <= 8 else 8 * devices
        sizes = {"pair": devices, "source": whole, "adapt": whole}
    for stage, size in sizes.items():
        config[stage].batch_size = size
    config.pair.pools = config.pair.batch_size
    return config


def programs(config: ConfigDict, mesh: Mesh) -> Iterator[tuple[str, tuple]]:
    """Yields for each stage its name and step, state shapes, state shardings and batch shapes."""
    size, crop = config.data.image_size, config.augment.crop
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=np.uint8)
    one = functools.partial(jnp.zeros, (1, crop, crop, 3))
    key = jax.random.key(0)

    optimizer = optimizers.make(config.pair.optimizer, total_steps=10**6)
    batch = shape((config.pair.batch_size, size, size, 3))
    yield (
        "pair",
        (
            functools.partial(cyclegan.train_step, settings=config.pair, optimizer=optimizer),
            jax.eval_shape(
                lambda: cyclegan.create_state(
                    key, config.pair, optimizer, jnp.zeros((1, size, size, 3))
                )
            ),
            cyclegan.state_shardings,
            (cyclegan.UnpairedBatch(batch, batch),),
        ),
    )

    model = models.create_classifier(config.model, CLASSES, config.adapt.attention)
    optimizer = optimizers.make(config.source.optimizer, total_steps=10**6)
    labels = jax.ShapeDtypeStruct((config.source.batch_size,), np.int32)
    yield (
        "source",
        (
            functools.partial(
                source.train_step, model=model, optimizer=optimizer, augment=config.augment
            ),
            jax.eval_shape(lambda: source.create_state(key, model, optimizer, one())),
            meshes.state_shardings,
            (source.LabelledBatch(shape((config.source.batch_size, size, size, 3)), labels),),
        ),
    )

    settings = config.adapt
    optimizer = optimizers.make(settings.optimizer, total_steps=10**6, restart_every=200)
    groups = group_sizes(settings.batch_size, [settings.mix[g] for g in GROUPS])
    targets = -(-sum(groups[2:]) // mesh.size) * mesh.size
    batch = shape((settings.batch_size, size, size, 3))
    labels = jax.ShapeDtypeStruct((settings.batch_size,), np.int32)

    def create():
        variables = models.initial_variables(key, model, one())
        return adaptation.create_state(key, variables, variables, optimizer)

    yield (
        "adapt",
        (
            functools.partial(
                adaptation.train_step, model=model, optimizer=optimizer, config=config
            ),
            jax.eval_shape(create),
            meshes.state_shardings,
            (AdaptationBatch(batch, batch, shape((targets, size, size, 3)), labels),),
        ),
    )


def count(step, state, shardings, batch, mesh: Mesh) -> dict:
    """Compiles a step for a mesh; returns its cost per device."""
    places = shardings(state, mesh)
    update = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(places, *jax.tree.map(lambda _: meshes.batch_sharded(mesh), batch)),
        out_shardings=(places, meshes.replicated(mesh)),
    )
    start = time.monotonic()
    with layers.plain_convolutions():
        compiled = update.lower(state, *batch).compile()
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "memory": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        "sent": collectives.bytes_by_kind(compiled.as_text()),
        "compiled_in": round(time.monotonic() - start),
    }
