"""Stage `adapt`: the target network, trained with attention alignment and EM (3.2 to 3.4)."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax import Array
from ml_collections import ConfigDict

from daaa_jax import attention, em, losses
from daaa_jax.data.augment import Views, apply_views, decode, draw_views, evaluation_views, recolour
from daaa_jax.data.images import chosen
from daaa_jax.data.pairs import GROUPS, AdaptationBatch, BatchStream, group_sizes
from daaa_jax.data.types import ImageArray
from daaa_jax.errors import check_choice
from daaa_jax.evaluation import second_view
from daaa_jax.experiment.stages import needs_translations
from daaa_jax.models import Variables, starting_variables
from daaa_jax.training import loop, optimizers
from daaa_jax.training.rounds import TargetTraining

# Losses on real target images that are not the paper's, by the setting of their weight.
_TERMS = {"confusion": losses.class_confusion, "information": losses.negative_information}


class AdaptationState(struct.PyTreeNode):
    """The state of stage `adapt`.

    Attributes:
      step: updates made.
      key: the root of the stage's randomness.
      target: the target network's parameters and batch statistics, trained.
      opt_state: their optimiser.
      source: the source network's variables, fixed.
      posterior: M^post, updated from the target network every N updates, see `em.refresh`.
      gamma: weight of the second view in the paired posterior, float32; 0 until it is measured.
    """

    step: Array
    key: Array
    target: Variables
    opt_state: optax.OptState
    source: Variables
    posterior: Variables
    gamma: Array


def objective(
    logits: Array,
    labels: Array | np.ndarray,
    posterior: Array,
    kept: Array,
    alignment: Array,
    *,
    beta: float,
    em_weight: Array,
    normalize: str,
) -> tuple[Array, Mapping[str, Array]]:
    """L_full of Eq. 12: cross-entropy, EM and attention alignment.

    Args:
      logits: of the target network on the whole batch, `[B,K]`; the last B_T rows are of the real
        target and the synthetic source.
      labels: classes of the first B - B_T rows, int32 `[B]`; the others are not read.
      posterior: p_post of the last B_T rows' real originals, `[B_T,K]`.
      kept: the filter of section 3.3, B, `[B_T]`.
      alignment: L_AT, scalar.
      beta: weight of `alignment`.
      em_weight: 0 before EM starts, then 1.
      normalize: `batch` divides the EM part by B, `kept` by the number of kept samples, at least 1.

    Returns:
      The loss, and its parts `cross_entropy` and `em` as they enter it.

    Raises:
      ValueError: if `normalize` is unknown.
    """
    check_choice("em.normalize", normalize, em.NORMALIZERS)
    batch, sources = len(logits), len(logits) - len(posterior)
    supervised = losses.cross_entropy(logits[:sources], labels[:sources]).sum() / batch
    soft = losses.soft_cross_entropy(logits[sources:], posterior)
    divisor = batch if normalize == "batch" else jnp.maximum(kept.sum(), 1)
    expectation = em_weight * (kept * soft).sum() / divisor
    total = supervised + expectation + beta * alignment
    return total, {"cross_entropy": supervised, "em": expectation}


def create_state(
    key: Array, source: Variables, target: Variables, optimizer: optax.GradientTransformation
) -> AdaptationState:
    """The state before the first update; source, target and posterior share no buffer."""
    copy = functools.partial(jax.tree.map, jnp.array)
    return AdaptationState(
        step=jnp.int32(0),
        key=key,
        target=copy(target),
        opt_state=optimizer.init(target["params"]),
        source=copy(source),
        posterior=copy(target),
        gamma=jnp.float32(0),
    )


def train_step(
    state: AdaptationState,
    batch: AdaptationBatch[Array],
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    log_prior: np.ndarray | float = 0.0,
) -> tuple[AdaptationState, loop.Metrics]:
    """One update of the target network, then the sync of M^post when it is due (section 3).

    Args:
      batch: uint8 images, see `data.pairs`.
      model: the classifier of all three networks.
      optimizer: the same as for `create_state`.
      config: `adapt`, `em` and `augment` are read.
      log_prior: see `em.paired_posterior`.
    """
    settings = config.adapt
    sizes = _sizes(settings)
    sources = sum(sizes[:2])

    # Views.
    seen = draw_views_of_pairs(state, batch, sizes, config)

    # Posterior: Eq. 8, and the filter of section 3.3, B.
    source_logits, source_maps, _ = observe(model, state.source, seen.source, settings.layers)
    posterior = soft_labels(state, seen, source_logits, sizes, model, config, log_prior)
    kept = em.keep_mask(posterior, config.em.threshold)
    em_weight = (state.step >= config.em.start_step).astype(jnp.float32)

    # Losses: Eq. 12.
    weights = {"beta": settings.beta, "em_weight": em_weight, "normalize": config.em.normalize}

    def loss(params):
        variables = {**state.target, "params": params}
        logits, maps, statistics = observe(
            model, variables, seen.target, settings.layers, train=settings.batch_norm == "batch"
        )
        alignment, measured = jnp.float32(0), {}
        if needs_translations(config):  # else both networks see the same image: nothing to align
            how = settings.measure, settings.jmmd_layers
            alignment = attention.alignment_loss(source_maps, maps, *how)
            measured = {"alignment": alignment}
        total, parts = objective(logits, batch.labels, posterior, kept, alignment, **weights)
        terms = target_terms(logits[sources : sources + sizes[2]], settings)
        total = losses.total([total, *terms.values()])
        return total, (logits, statistics, {"loss": total, **measured, **parts, **terms})

    # Update.
    params = state.target["params"]
    gradient, (logits, statistics, parts) = jax.grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, params)
    target = {**state.target, "params": optax.apply_updates(params, updates), **statistics}

    # Sync of M^post.
    step = state.step + 1
    decay = config.em.decay if sum(sizes[2:]) else 0.0  # a batch without target images has none
    m_post = em.refresh(state.posterior, target, step, config.em.refresh_every, decay)
    right = logits[:sources].argmax(axis=-1) == batch.labels[:sources]
    metrics = {name: loop.mean(value) for name, value in parts.items()} | {
        "accuracy": loop.mean(right.astype(jnp.float32)),
        "kept": loop.mean(kept.astype(jnp.float32)),
        "confidence": loop.mean(posterior.max(axis=-1)),
        "grad_norm": loop.mean(optax.tree.norm(gradient)),
    }
    state = state.replace(step=step, target=target, opt_state=opt_state, posterior=m_post)
    return state, metrics


def target_terms(logits: Array, settings: ConfigDict) -> dict[str, Array]:
    """The weighted losses on real target images that are not the paper's, by name.

    Args:
      logits: of the target network on the real target images of a batch, `[B_T,K]`.
      settings: `config.adapt`.
    """
    return {name: settings[name] * term(logits) for name, term in _TERMS.items() if settings[name]}


def draw_views_of_pairs(
    state: AdaptationState, batch: AdaptationBatch[Array], sizes: Sequence[int], config: ConfigDict
) -> AdaptationBatch[Array]:
    """Random views of a batch, float32 in [-1, 1], the same crop and flip for a pair's images.

    Args:
      state: `key` and `step` are read.
      batch: uint8 images.
      sizes: of the groups.
      config: `augment` and `adapt.recolour` are read.
    """
    view_key, colour_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    views = draw_views(view_key, sum(sizes), batch.source.shape[1], config.augment)

    def view(images: Array, views: Views) -> Array:
        return apply_views(decode(images), views, config.augment)

    target = view(batch.target, views)
    if config.adapt.recolour:
        in_target_style = np.repeat((0, 1, 1, 0), sizes)  # T_f and T
        target = recolour(colour_key, target, config.adapt.recolour * in_target_style)
    of_targets = functools.partial(_of_targets, sizes=sizes, count=len(batch.posterior))
    posterior = view(batch.posterior, jax.tree.map(of_targets, views))
    return batch.replace(source=view(batch.source, views), target=target, posterior=posterior)


def observe(
    model: nn.Module, variables: Variables, images: Array, layers: str, train: bool = False
) -> tuple[Array, Mapping[str, Array], Any]:
    """Logits of a network, `[B,K]`, its attention maps by layer (Eq. 4), and updated variables.

    Args:
      model: the classifier.
      variables: of the network.
      images: `[B,h,w,3]`.
      layers: see `attention.collect`.
      train: whether it normalises by the statistics of the batch, and updates its `batch_stats`.
    """
    collections = ["intermediates", "batch_stats"] if train else ["intermediates"]
    logits, updates = model.apply(variables, images, train=train, mutable=collections)
    maps = attention.collect(updates.pop("intermediates"), layers)
    return logits, maps, updates


def soft_labels(
    state: AdaptationState,
    seen: AdaptationBatch[Array],
    source_logits: Array,
    sizes: Sequence[int],
    model: nn.Module,
    config: ConfigDict,
    log_prior: np.ndarray | float,
) -> Array:
    """Soft labels of the last two groups, `[B_T,K]` (Eq. 8).

    Args:
      state: M^post and gamma are read.
      seen: the networks' inputs.
      source_logits: of the source network, `[B,K]`.
      sizes: of the groups.
      config: `em` is read; with `em.posterior=paired` the posterior is of both images of a pair.
      log_prior: see `em.paired_posterior`.
    """
    targets = sum(sizes[2:])
    if not targets:
        return jnp.zeros((0, source_logits.shape[-1]))

    def m_post(images: Array) -> Array:
        return model.apply(state.posterior, images, train=False)[:targets]

    logits = m_post(seen.posterior)
    if config.em.posterior == "target":
        return em.posterior(logits)
    # In the last two groups the source network sees G_TS(x^T).
    if config.em.second_view == "source":
        other = source_logits[-targets:]
    else:
        other = m_post(_of_targets(seen.source, sizes, len(seen.posterior)))
    return em.paired_posterior(logits, other, state.gamma, log_prior)


def _of_targets(x: Array, sizes: Sequence[int], count: int) -> Array:
    """The rows of the last two groups, the last one repeated up to `count`."""
    rows = x[sum(sizes[:2]) :]
    return jnp.pad(rows, ((0, count - len(rows)), *[(0, 0)] * (x.ndim - 1)), mode="edge")


def _sizes(settings: ConfigDict) -> tuple[int, ...]:
    """Sizes of the groups in a batch; `settings` are `config.adapt`."""
    return group_sizes(settings.batch_size, [settings.mix[group] for group in GROUPS])


def batch_line(config: ConfigDict) -> str:
    """How many images of each group are in a batch, by `adapt.mix`, and whether EM never starts."""
    settings, sizes = config.adapt, _sizes(config.adapt)
    groups = (f"{size} {group}" for group, size in zip(GROUPS, sizes, strict=True) if size)
    start, updates = config.em.start_step, settings.rounds * settings.round_steps
    never = f"; no EM, as em.start_step={start} of {updates} updates"
    is_never = sum(sizes[2:]) and start >= updates
    return f"adapt: batches of {', '.join(groups)}{never if is_never else ''}"


def target_training(
    config: ConfigDict,
    model: nn.Module,
    source: Variables,
    images: ImageArray,
    labels: np.ndarray,
    devices: int,
) -> TargetTraining:
    """How the target network is trained.

    Args:
      config: the whole config.
      model: the classifier of all three networks.
      source: the source network's variables.
      images: all training images, in the order of `pairs.all_images`; if no translations are
        needed, the images themselves take their place.
      labels: classes of the source training images, int32 `[N_S]`.
      devices: number of devices that a batch is split over.
    """
    settings = config.adapt
    sizes = _sizes(settings)
    steps, every = settings.rounds * settings.round_steps, restart_every(config)
    optimizer = optimizers.make(settings.optimizer, total_steps=steps, restart_every=every)
    init_key, key = jax.random.split(loop.stage_key(config.seed, "adapt"))
    target = source
    if settings.init == "scratch":
        image = evaluation_views(decode(images[:1]), config.augment, 1)[0]
        target = starting_variables(config.model, init_key, model, image)
    targets = (len(images) - 2 * len(labels)) // 2
    stream = BatchStream(labels, targets, sizes, config.seed, devices)
    # Whether M^post is synced at the end of every round. If so, M^post is the result.
    synced = settings.round_steps % config.em.refresh_every == 0
    log_prior = second_view.log_prior(labels, model.num_classes) if config.em.class_prior else 0.0
    translations = chosen(images, np.arange(len(images) - targets, len(images)))
    view = functools.partial(
        second_view.SecondView, source, translations, config=config, log_prior=log_prior
    )
    return TargetTraining(
        create_state=functools.partial(create_state, key, source, target, optimizer),
        train_step=functools.partial(
            train_step, model=model, optimizer=optimizer, config=config, log_prior=log_prior
        ),
        image_sets=(images,),
        batch_at=stream.at,
        images=config.adapt.batch_size,
        network=lambda state: state.posterior if synced else state.target,
        posterior=lambda state: state.posterior,
        second_view=view if needs_translations(config) else None,
    )


def restart_every(config: ConfigDict) -> int | None:
    """Updates between two restarts of the learning rate (section 3.3, C), or None for none.

    It restarts with each sync of M^post. EM-A syncs after each update and restarts with each round,
    so that it differs from the method in A alone. If no soft labels are used, a sync changes
    nothing and there are no restarts.
    """
    settings = config.adapt
    if not settings.restart or not (settings.mix.t or settings.mix.s_f):
        return None
    every = config.em.refresh_every
    return settings.round_steps if every == 1 else every
