"""Stage `adapt`: the target network, trained with attention alignment and EM (3.2 to 3.4)."""

import functools
from collections.abc import Mapping, Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax import Array
from ml_collections import ConfigDict

from daaa_jax import attention, baselines, em, losses, target_stage
from daaa_jax.data.augment import (
    Views,
    apply_views,
    decode,
    draw_views,
    evaluation_views,
    recolour,
)
from daaa_jax.data.images import Images, chosen
from daaa_jax.data.pairs import GROUPS, Batch, BatchStream, with_images
from daaa_jax.evaluation import second_view
from daaa_jax.models import Variables, starting_variables
from daaa_jax.training import loop, optimizers
from daaa_jax.training.feed import take


@struct.dataclass
class AdaptationState:
    """The state of stage `adapt`.

    Attributes:
      step: updates made.
      key: the root of the stage's randomness.
      target: the target network's parameters and batch statistics, trained.
      opt_state: their optimiser.
      source: the source network's, fixed.
      posterior: M^post, a copy of the target network's, refreshed every N updates.
      gamma: weight of the second view in the paired posterior, float32; 0 until it is measured.
    """

    step: Array
    key: Array
    target: Variables
    opt_state: optax.OptState
    source: Variables
    posterior: Variables
    gamma: Array


def group_sizes(batch_size: int, proportions: Sequence[float]) -> tuple[int, ...]:
    """Divides a batch among the groups by largest remainder, ties to the earlier group.

    Args:
      batch_size: the sum of the sizes.
      proportions: of the groups, not negative; they need not add up to 1.

    Raises:
      ValueError: if a proportion is negative or all are zero.
    """
    shares = [Fraction(str(share)) for share in proportions]
    if min(shares) < 0 or not sum(shares):
        raise ValueError(f"proportions {tuple(proportions)}: none negative, not all zero")
    exact = [batch_size * share / sum(shares) for share in shares]
    sizes = [int(size) for size in exact]
    by_remainder = sorted(range(len(exact)), key=lambda group: sizes[group] - exact[group])
    for group in by_remainder[: batch_size - sum(sizes)]:
        sizes[group] += 1
    return tuple(sizes)


def objective(
    logits: Array,
    labels: Array,
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
      beta: its weight.
      em_weight: 0 before EM starts, then 1.
      normalize: `batch` divides the EM part by B, `kept` by the number of kept samples, at least 1.

    Returns:
      The loss, and its parts `cross_entropy` and `em` as they enter it.

    Raises:
      ValueError: if `normalize` is unknown.
    """
    if normalize not in ("batch", "kept"):
        raise ValueError(f"em.normalize={normalize!r}: choose batch or kept")
    batch, sources = len(logits), len(logits) - len(posterior)
    supervised = losses.cross_entropy(logits[:sources], labels[:sources]).sum() / batch
    soft = losses.soft_cross_entropy(logits[sources:], posterior)
    divisor = batch if normalize == "batch" else jnp.maximum(kept.sum(), 1)
    expectation = em_weight * (kept * soft).sum() / divisor
    total = supervised + expectation + beta * alignment
    return total, {"cross_entropy": supervised, "em": expectation}


def create_state(
    key: Array,
    source: Variables,
    target: Variables,
    optimizer: optax.GradientTransformation,
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
    images: Array | None,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    log_prior: np.ndarray | float = 0.0,
) -> tuple[AdaptationState, loop.Metrics]:
    """One update of the target network, then the refresh of M^post when it is due.

    Args:
      state: before the update.
      images: all images, uint8 `[N,H,W,3]`, in the order that `BatchStream` says; or None, see
        `feed.take`.
      batch: their rows; or the images themselves.
      model: the classifier of all three networks.
      optimizer: as `create_state` was given.
      config: the whole config; `adapt`, `em` and `augment` are read.
      log_prior: see `em.paired_posterior`.
    """
    settings = config.adapt
    sizes = group_sizes(settings.batch_size, [settings.mix[group] for group in GROUPS])
    size, targets = sum(sizes), sum(sizes[2:])
    view_key, colour_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    by_source = take(images, batch.source_rows)
    views = draw_views(view_key, size, by_source.shape[1], config.augment)

    def view(images: Array, views: Views) -> Array:
        return apply_views(decode(images), views, config.augment)

    observe = functools.partial(model.apply, mutable=["intermediates"], train=False)
    logits, observed = observe(state.source, view(by_source, views))
    source_maps = attention.collect(observed["intermediates"], settings.layers)

    if targets:
        padding = len(batch.posterior_rows) - targets  # to a multiple of the devices

        def of_targets(x: Array) -> Array:
            return jnp.pad(x[size - targets :], ((0, padding), *[(0, 0)] * (x.ndim - 1)))

        def m_post(images: Array) -> Array:
            seen = view(images, jax.tree.map(of_targets, views))
            return model.apply(state.posterior, seen, train=False)[:targets]

        posterior_logits = m_post(take(images, batch.posterior_rows))
        if config.em.posterior == "paired":
            # In the last two groups the source network sees G_TS(x^T).
            reads = config.em.second_view
            other = logits[size - targets :] if reads == "source" else m_post(of_targets(by_source))
            posterior = em.paired_posterior(posterior_logits, other, state.gamma, log_prior)
        else:
            posterior = em.posterior(posterior_logits)
    else:
        posterior = jnp.zeros((0, logits.shape[-1]))
    kept = em.keep_mask(posterior, config.em.threshold)
    em_weight = (state.step >= config.em.start_step).astype(jnp.float32)
    inputs = view(take(images, batch.target_rows), views)
    if settings.recolour:
        in_target_style = np.repeat((0, 1, 1, 0), sizes)  # T_f and T
        inputs = recolour(colour_key, inputs, settings.recolour * in_target_style)
    learns_statistics = settings.batch_norm == "batch"

    def loss(params):
        logits, updates = model.apply(
            {**state.target, "params": params},
            inputs,
            train=learns_statistics,
            mutable=["intermediates", *(["batch_stats"] if learns_statistics else [])],
        )
        target_maps = attention.collect(updates["intermediates"], settings.layers)
        alignment = attention.alignment_loss(
            source_maps, target_maps, settings.measure, settings.jmmd_layers
        )
        total, parts = objective(
            logits,
            batch.labels,
            posterior,
            kept,
            alignment,
            beta=settings.beta,
            em_weight=em_weight,
            normalize=config.em.normalize,
        )
        statistics = updates.get("batch_stats", state.target.get("batch_stats"))
        return total, (logits, statistics, {"loss": total, "alignment": alignment, **parts})

    params = state.target["params"]
    gradient, (logits, statistics, parts) = jax.grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, params)
    target = {**state.target, "params": optax.apply_updates(params, updates)}
    if statistics is not None:
        target["batch_stats"] = statistics
    right = logits[: size - targets].argmax(axis=-1) == batch.labels[: size - targets]
    metrics = {name: loop.mean(value) for name, value in parts.items()} | {
        "accuracy": loop.mean(right.astype(jnp.float32)),
        "kept": loop.mean(kept.astype(jnp.float32)),
        "confidence": loop.mean(posterior.max(axis=-1)),
        "grad_norm": loop.mean(optax.tree.norm(gradient)),
    }
    step = state.step + 1
    state = state.replace(
        step=step,
        target=target,
        opt_state=opt_state,
        posterior=em.refresh(state.posterior, target, step, config.em.refresh_every),
    )
    return state, metrics


def needs_translations(config: ConfigDict) -> bool:
    """Whether any loss of the method looks at a translation."""
    settings = config.adapt
    shown = settings.mix.t_f or settings.mix.s_f
    learnt = shown or settings.beta or config.em.posterior == "paired"
    return config.method == baselines.OURS and bool(learnt)


def trains_cyclegan(config: ConfigDict) -> bool:
    """Whether a run has the stages `pair` and `translate`."""
    return needs_translations(config) and not config.pair.translations


def plan(
    config: ConfigDict,
    model: nn.Module,
    source: Variables,
    images: Images,
    labels: np.ndarray,
    devices: int,
) -> target_stage.Plan:
    """How the target network is trained.

    Args:
      config: the whole config.
      model: the classifier of all three networks.
      source: the source network's variables.
      images: all training images, as `pairs.all_images` lays them out; where no translations are
        needed, the images themselves stand in their place.
      labels: classes of the source training images, int32 `[N_S]`.
      devices: that a batch is split over.
    """
    settings = config.adapt
    sizes = group_sizes(settings.batch_size, [settings.mix[group] for group in GROUPS])
    optimizer = optimizers.make(
        settings.optimizer,
        total_steps=settings.rounds * settings.round_steps,
        restart_every=restart_every(config),
    )
    init_key, key = jax.random.split(loop.stage_key(config.seed, "adapt"))
    target = (
        source
        if settings.init == "source"
        else starting_variables(
            config.model,
            init_key,
            model,
            evaluation_views(decode(images[:1]), config.augment, 1)[0],
        )
    )
    targets = (len(images) - 2 * len(labels)) // 2
    stream = BatchStream(labels, targets, sizes, config.seed, devices)
    # At the end of a round M^post has just become the target network, or has not.
    refreshed = settings.round_steps % config.em.refresh_every == 0
    log_prior = second_view.log_prior(labels, model.num_classes) if config.em.class_prior else 0.0
    translations = chosen(images, np.arange(len(images) - targets, len(images)))
    return target_stage.Plan(
        create_state=functools.partial(create_state, key, source, target, optimizer),
        step=functools.partial(
            train_step, model=model, optimizer=optimizer, config=config, log_prior=log_prior
        ),
        images=(images,),
        batch_at=functools.partial(rows_at, stream),
        fill=with_their_images,
        # Without translations L_AT is between the networks on one and the same image.
        told=("loss", "alignment") if needs_translations(config) else ("loss",),
        posterior=lambda state: None if refreshed else state.posterior,
        second_view=functools.partial(
            second_view.SecondView, source, translations, config=config, log_prior=log_prior
        )
        if needs_translations(config)
        else None,
    )


def restart_every(config: ConfigDict) -> int | None:
    """Updates between two restarts of the learning rate (section 3.3, C), or None for none.

    It restarts with each sync of M^post. EM-A syncs after each update and restarts with each round,
    so that it differs from the method in A alone. Where no posterior is learnt from, nothing is
    new after a sync, and nothing restarts.
    """
    settings = config.adapt
    if not settings.restart or not (settings.mix.t or settings.mix.s_f):
        return None
    every = config.em.refresh_every
    return settings.round_steps if every == 1 else every


def rows_at(stream: BatchStream, step: int) -> tuple[Batch]:
    """The batch of a step, for a `Feed`."""
    return (stream.at(step),)


def with_their_images(domains: Sequence[Images], batch: tuple[Batch]) -> tuple[Batch]:
    """The same with images in place of their rows, for a `Feed`."""
    return (with_images(domains[0], batch[0]),)
