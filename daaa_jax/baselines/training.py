"""Stage `adapt` of a compared method: same classifier, start, data, updates and evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax import Array
from ml_collections import ConfigDict

from daaa_jax import baselines, models, target_stage
from daaa_jax.baselines.method import Batch, Method, Outputs, Params
from daaa_jax.data.augment import decode, evaluation_views, random_view, recolour
from daaa_jax.data.batches import IndexStream
from daaa_jax.data.types import LabelledImages, UnlabelledImages
from daaa_jax.models import Variables
from daaa_jax.training import loop, optimizers
from daaa_jax.training.feed import take


@struct.dataclass
class ComparedState:
    """The state of stage `adapt` of a compared method.

    Attributes:
      step: updates made.
      key: the root of the stage's randomness.
      target: the classifier's parameters and batch statistics.
      opt_state: their optimiser.
      own: parameters of the networks that the method has beside it.
      own_opt_state: their optimiser.
    """

    step: Array
    key: Array
    target: Variables
    opt_state: optax.OptState
    own: Params
    own_opt_state: optax.OptState


def make_optimizers(
    method: Method, total_steps: int
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Those of the classifier and of the method's own networks, none restarted.

    The method's own networks are new, and learn as the classifier's last layer does.
    """
    config = method.config
    own = config[method.optimizer].optimizer.copy_and_resolve_references()
    own.learning_rate *= own.classifier_factor
    own.classifier_factor = 1.0
    return (
        optimizers.make(config.adapt.optimizer, total_steps=total_steps),
        optimizers.make(own, total_steps=total_steps),
    )


def create_own(config: ConfigDict, model: nn.Module, image: Array, key: Array) -> Params:
    """Parameters of what `config.method` has beside a fresh classifier, to see if they can be had.

    Raises:
      ValueError: if they do not suit images of this size.
    """
    variables = models.initial_variables(key, model, image)
    return baselines.make(config).create(key, model, image, _outputs(model, variables, image))


def _outputs(model: nn.Module, variables: Variables, image: Array) -> Outputs:
    logits, observed = model.apply(variables, image, train=False, mutable=["features"])
    return Outputs(logits, models.features(observed), variables.get("batch_stats"))


def create_state(
    key: Array,
    method: Method,
    model: nn.Module,
    start: Variables,
    image: Array,
    updates: tuple[optax.GradientTransformation, optax.GradientTransformation],
) -> ComparedState:
    """The state before the first update.

    Args:
      key: of the stage.
      method: the compared method.
      model: the classifier.
      start: the variables that it begins with.
      image: float32 `[1,H,W,3]`, for its shape alone.
      updates: as `make_optimizers` gives them.
    """
    own_key, step_key = jax.random.split(key)
    own = method.create(own_key, model, image, _outputs(model, start, image))
    target = jax.tree.map(jnp.array, start)
    return ComparedState(
        step=jnp.int32(0),
        key=step_key,
        target=target,
        opt_state=updates[0].init(target["params"]),
        own=own,
        own_opt_state=updates[1].init(own),
    )


def train_step(
    state: ComparedState,
    source_images: Array | None,
    target_images: Array | None,
    source_rows: Array,
    target_rows: Array,
    labels: Array,
    target_labels: Array,
    *,
    method: Method,
    model: nn.Module,
    updates: tuple[optax.GradientTransformation, optax.GradientTransformation],
    total_steps: int,
) -> tuple[ComparedState, loop.Metrics]:
    """One update of the classifier and of the method's own networks.

    Args:
      state: before the update.
      source_images: all source training images, uint8 `[N_S,H,W,3]`; or None, see `feed.take`.
      target_images: all target training images, uint8 `[N_T,H,W,3]`; or None.
      source_rows: those in the batch, int32 `[B_S]`; or the images themselves.
      target_rows: likewise, `[B_T]`.
      labels: classes of the source images, int32 `[B_S]`.
      target_labels: see `Batch.target_labels`.
      method: the compared method.
      model: the classifier.
      updates: as `create_state` was given.
      total_steps: of the stage.
    """
    config = method.config
    key = jax.random.fold_in(state.key, state.step)
    views = [
        random_view(jax.random.fold_in(key, number), decode(take(images, rows)), config.augment)
        for number, (images, rows) in enumerate(
            ((source_images, source_rows), (target_images, target_rows))
        )
    ]
    if config.adapt.recolour and method.recolours:
        views[1] = recolour(jax.random.fold_in(key, 3), views[1], config.adapt.recolour)
    progress = state.step.astype(jnp.float32) / total_steps
    batch = Batch(*views, labels, target_labels, progress, jax.random.fold_in(key, 2))
    learns_statistics = config.adapt.batch_norm == "batch"

    def loss(params, own):
        def classify(images: Array) -> Outputs:
            logits, observed = model.apply(
                {**state.target, "params": params},
                images,
                train=learns_statistics,
                mutable=["features", *(["batch_stats"] if learns_statistics else [])],
            )
            statistics = observed.get("batch_stats", state.target.get("batch_stats"))
            return Outputs(logits, models.features(observed), statistics)

        total, parts, given = method.loss(own, model, classify, batch)
        return total, ({"loss": total, **parts}, given)

    params = state.target["params"]
    gradient, (parts, given) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, state.own)
    change, opt_state = updates[0].update(gradient[0], state.opt_state, params)
    own_change, own_opt_state = updates[1].update(gradient[1], state.own_opt_state, state.own)
    target = {**state.target, "params": optax.apply_updates(params, change)}
    if given.batch_stats is not None:
        target["batch_stats"] = given.batch_stats
    taught = target_labels if method.reads_target_labels else labels
    right = given.logits[: len(taught)].argmax(axis=-1) == taught
    metrics = {name: loop.mean(value) for name, value in parts.items()} | {
        "accuracy": loop.mean(right.astype(jnp.float32)),
        "grad_norm": loop.mean(optax.tree.norm(gradient)),
    }
    state = state.replace(
        step=state.step + 1,
        target=target,
        opt_state=opt_state,
        own=optax.apply_updates(state.own, own_change),
        own_opt_state=own_opt_state,
    )
    return state, metrics


def plan(
    config: ConfigDict,
    model: nn.Module,
    source: Variables,
    source_train: LabelledImages,
    target_train: UnlabelledImages,
    target_labels: np.ndarray,
) -> target_stage.Plan:
    """How a compared method trains the classifier; half of a batch is of each domain.

    Args:
      config: the whole config.
      model: the classifier.
      source: the source network's variables, where it begins unless `adapt.init=scratch`.
      source_train: labelled source images.
      target_train: unlabelled target images.
      target_labels: their classes, which are read if the method is `UpperBound`.
    """
    settings, method = config.adapt, baselines.make(config)
    steps = settings.rounds * settings.round_steps
    updates = make_optimizers(method, steps)
    image = evaluation_views(decode(source_train.images[:1]), config.augment, 1)[0]
    init_key, key = jax.random.split(loop.stage_key(config.seed, f"adapt {config.method}"))
    start = (
        source
        if settings.init == "source"
        else models.starting_variables(config.model, init_key, model, image)
    )
    sets = (source_train.images, target_train.images)
    streams = [
        IndexStream(len(images), settings.batch_size // 2, config.seed, f"adapt {group}")
        for group, images in zip(("s", "t"), sets, strict=True)
    ]
    known = target_labels if method.reads_target_labels else np.zeros_like(target_labels)
    return target_stage.Plan(
        create_state=functools.partial(create_state, key, method, model, start, image, updates),
        step=functools.partial(
            train_step, method=method, model=model, updates=updates, total_steps=steps
        ),
        images=sets,
        batch_at=functools.partial(_rows, streams, source_train.labels, known),
        fill=_images,
    )


def _rows(streams, labels, target_labels, step):
    source, target = (stream.at(step) for stream in streams)
    return source, target, labels[source], target_labels[target]


def _images(domains, batch):
    source, target, *labels = batch
    return (domains[0][source], domains[1][target], *labels)
