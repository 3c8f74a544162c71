"""Idiomatic PyTorch versions of our steps, with fused optimisers.

Classifiers are channels last. The CycleGAN is channels first, like the released one: instance
normalisation and the pool return images in that order.
"""

import gc
import itertools
import random
import sys

import jax
import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import torch_networks


def device() -> torch.device:
    """The device that JAX uses.

    Raises:
      SystemExit: if PyTorch does not support it.
    """
    kind = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend(), "")
    if not kind or (kind == "cuda" and not torch.cuda.is_available()):
        sys.exit(f"JAX uses a {jax.default_backend()}, which this PyTorch does not support")
    return torch.device(kind)


def to_torch(images: np.ndarray, order=torch.channels_last) -> torch.Tensor:
    """uint8 `[B,H,W,3]` as float32 `[B,3,H,W]` in [-1,1], on the device."""
    tensor = torch.from_numpy(images).to(device()).permute(0, 3, 1, 2)
    return (tensor.float() / 127.5 - 1).contiguous(memory_format=order)


def weights(network: torch.nn.Module) -> dict[str, np.ndarray]:
    """A copy of the weights for `pretrained.fit`."""
    return {name: value.numpy(force=True).copy() for name, value in network.state_dict().items()}


def synchronize() -> None:
    """Waits for the device."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def free() -> None:
    """Frees memory that PyTorch caches."""
    gc.collect()
    if device().type == "cuda":
        torch.cuda.empty_cache()


def _place(network):
    return network.to(device(), memory_format=torch.channels_last)


def _compiled(function):
    """Compiles with `torch.compile` for static shapes."""
    return torch.compile(function, dynamic=False)


def _batches(images, size):
    return np.split(images, range(size, len(images), size))


class ImagePool:
    """The pool of past translations of the released CycleGAN."""

    def __init__(self, size):
        self.size, self.images = size, []

    def draw(self, batch):
        """Replaces about half of a batch by past translations once the pool is full."""
        replayed = []
        for image in batch:
            if len(self.images) < self.size:
                self.images.append(image.clone())
                replayed.append(image)
            elif random.random() < 0.5:
                slot = random.randrange(self.size)
                replayed.append(self.images[slot])
                self.images[slot] = image.clone()
            else:
                replayed.append(image)
        return torch.stack(replayed)


class CycleGanStep:
    """One step of CycleGAN: both generators, then both discriminators (LSGAN, a pool)."""

    def __init__(self, settings, a: np.ndarray, b: np.ndarray):
        """Initialises the networks; the batch is `a` and `b`, uint8 `[B,H,W,3]`."""
        self.settings = settings
        self.a, self.b = (to_torch(each, torch.contiguous_format) for each in (a, b))
        self.to_b, self.to_a = (torch_networks.generator(settings).to(device()) for _ in range(2))
        self.judge_a, self.judge_b = (
            torch_networks.Discriminator(settings).to(device()) for _ in range(2)
        )
        g_params = itertools.chain(self.to_b.parameters(), self.to_a.parameters())
        d_params = itertools.chain(self.judge_a.parameters(), self.judge_b.parameters())
        self.generators, self.judges = (
            torch.optim.Adam(of, settings.optimizer.learning_rate, (0.5, 0.999), fused=True)
            for of in (g_params, d_params)
        )
        size = max(settings.pool_size, settings.batch_size)
        self.pool_a, self.pool_b = ImagePool(size), ImagePool(size)

    def compile(self) -> None:
        """Compiles both losses with `torch.compile`."""
        self.generator_loss = _compiled(self.generator_loss)
        self.judge_loss = _compiled(self.judge_loss)

    def generator_loss(self):
        """The loss of the generators, and the translations."""
        a, b, settings = self.a, self.b, self.settings
        fake_b, fake_a = self.to_b(a), self.to_a(b)
        score_b, score_a = self.judge_b(fake_b), self.judge_a(fake_a)
        loss = F.mse_loss(score_b, torch.ones_like(score_b))
        loss = loss + F.mse_loss(score_a, torch.ones_like(score_a))
        cycle = F.l1_loss(self.to_a(fake_b), a) + F.l1_loss(self.to_b(fake_a), b)
        loss = loss + settings.cycle_weight * cycle
        if settings.identity_weight:
            same = F.l1_loss(self.to_b(b), b) + F.l1_loss(self.to_a(a), a)
            loss = loss + settings.identity_weight * settings.cycle_weight * same
        return loss, fake_a, fake_b

    def judge_loss(self, shown_a, shown_b):
        """The loss of the discriminators."""
        loss = 0.0
        for discriminator, real, replayed in (
            (self.judge_a, self.a, shown_a),
            (self.judge_b, self.b, shown_b),
        ):
            on_real, on_fake = discriminator(real), discriminator(replayed)
            loss = loss + 0.5 * F.mse_loss(on_real, torch.ones_like(on_real))
            loss = loss + 0.5 * F.mse_loss(on_fake, torch.zeros_like(on_fake))
        return loss

    def __call__(self) -> float:
        discriminators = (self.judge_a, self.judge_b)
        for discriminator in discriminators:
            discriminator.requires_grad_(False)
        self.generators.zero_grad(set_to_none=True)
        loss, fake_a, fake_b = self.generator_loss()
        loss.backward()
        self.generators.step()
        for discriminator in discriminators:
            discriminator.requires_grad_(True)
        self.judges.zero_grad(set_to_none=True)
        replayed = self.pool_a.draw(fake_a.detach()), self.pool_b.draw(fake_b.detach())
        self.judge_loss(*replayed).backward()
        self.judges.step()
        return loss.item()


@torch.no_grad()
def _learn_statistics(network, images):
    """Sets batch statistics for new weights, or activations would vanish with depth."""
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


class AdaptationStep:
    """One step of the adaptation (Eq. 12), with EM active and without augmentation."""

    def __init__(self, config, classes: int, images: np.ndarray, batch, half: bool):
        """Initialises the source network, and copies it to the other two.

        Args:
          config: the whole config.
          classes: number of classes.
          images: all images, uint8 `[N,H,W,3]`.
          batch: an `AdaptationBatch` of rows of `images`.
          half: whether networks run in bfloat16.
        """
        self.config, self.half = config, half
        make = torch_networks.CLASSIFIERS[config.model.name]
        self.source, self.posterior, self.target = (_place(make(classes)) for _ in range(3))
        self.seen, self.by_source, self.by_posterior = (
            to_torch(images[rows])
            for rows in (batch.target.rows, batch.source.rows, batch.posterior.rows)
        )
        _learn_statistics(self.source, self.by_source)
        self.posterior.load_state_dict(self.source.state_dict())
        self.target.load_state_dict(self.source.state_dict())
        for fixed in (self.source, self.posterior):
            fixed.eval().requires_grad_(False)
        self.target.train(config.adapt.batch_norm == "batch")
        sources = len(self.seen) - len(self.by_posterior)
        self.labels = torch.from_numpy(batch.labels[:sources]).long().to(device())
        self.optimizer = self._optimizer(config.adapt.optimizer)

    def _optimizer(self, settings):
        named = list(self.target.named_parameters())
        new = ("classifier", "fc", "_fc")
        groups = [
            {"params": [p for n, p in named if n.split(".")[0] not in new]},
            {
                "params": [p for n, p in named if n.split(".")[0] in new],
                "lr": settings.learning_rate * settings.classifier_factor,
            },
        ]
        if settings.name == "adam":
            betas = settings.b1, settings.b2
            return torch.optim.Adam(groups, settings.learning_rate, betas, fused=True)
        return torch.optim.SGD(
            groups,
            settings.learning_rate,
            settings.momentum,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def compile(self) -> None:
        """Compiles the loss with `torch.compile`."""
        self.loss = _compiled(self.loss)

    def loss(self):
        """L_full of Eq. 12."""
        config, size = self.config, len(self.seen)
        maps, source_maps = [], []
        with torch.autocast(device().type, torch.bfloat16, enabled=self.half):
            with torch.no_grad():
                self.source(self.by_source, source_maps)
                posterior = self.posterior(self.by_posterior).float().softmax(1)
            kept = (posterior.max(1).values >= config.em.threshold).float()
            logits = self.target(self.seen, maps)
        logits = logits.float()
        sources = len(self.labels)
        supervised = F.cross_entropy(logits[:sources], self.labels, reduction="sum")
        soft = -(posterior * F.log_softmax(logits[sources:], 1)).sum(1)
        alignment = sum(
            (F.normalize(ours, dim=1) - F.normalize(theirs, dim=1))
            .square()
            .sum(1)
            .add(1e-8)
            .sqrt()
            .mean()
            for ours, theirs in zip(maps, source_maps, strict=True)
        )
        return (supervised + (kept * soft).sum()) / size + config.adapt.beta * alignment

    def __call__(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class Translation:
    """Translates all images in batches, to uint8 on the host."""

    def __init__(self, settings, images: np.ndarray, batch_size: int):
        """Initialises the network."""
        self.network = torch_networks.generator(settings).to(device()).eval()
        self.images, self.batch_size = images, batch_size

    def compile(self) -> None:
        """Compiles the network with `torch.compile`."""
        self.network.compile()

    @torch.no_grad()
    def __call__(self) -> float:
        made = []
        for batch in _batches(self.images, self.batch_size):
            images = (
                self.network(to_torch(batch, torch.contiguous_format))
                .add(1)
                .mul(127.5)
                .round()
                .clamp(0, 255)
            )
            made.append(images.byte().permute(0, 2, 3, 1).cpu())
        return torch.cat(made)[0].float().mean().item()


class Evaluation:
    """Mean confidence on all images, computed in batches."""

    def __init__(self, config, classes: int, images: np.ndarray):
        """Initialises the network."""
        self.network = _place(torch_networks.CLASSIFIERS[config.model.name](classes)).eval()
        self.images, self.batch_size = images, config.evaluate.batch_size

    def compile(self) -> None:
        """Compiles the network with `torch.compile`."""
        self.network.compile()

    @torch.no_grad()
    def __call__(self) -> float:
        sums = [
            self.network(to_torch(batch)).softmax(1).max(1).values.sum()
            for batch in _batches(self.images, self.batch_size)
        ]
        return (torch.stack(sums).sum() / len(self.images)).item()
