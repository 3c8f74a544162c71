"""The compared training steps as PyTorch users write them: channels last, fused optimisers."""

import contextlib
import itertools
import random

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import torch_networks


def device() -> torch.device:
    """The accelerator where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_torch(images: np.ndarray) -> torch.Tensor:
    """uint8 `[B,H,W,3]` as float32 `[B,3,H,W]` in [-1,1], channels last."""
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return tensor.to(device()).contiguous(memory_format=torch.channels_last)


def weights(network: torch.nn.Module) -> dict[str, np.ndarray]:
    """As `pretrained.fit` takes them."""
    return {name: value.cpu().numpy() for name, value in network.state_dict().items()}


def synchronize() -> None:
    """Waits for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _place(network):
    return network.to(device(), memory_format=torch.channels_last)


def _batches(images, size):
    return np.split(images, range(size, len(images), size))


class ImagePool:
    """The pool of past translations, as the released CycleGAN keeps it."""

    def __init__(self, size):
        self.size, self.images = size, []

    def draw(self, batch):
        """What the discriminator is shown."""
        shown = []
        for image in batch:
            if len(self.images) < self.size:
                self.images.append(image.clone())
                shown.append(image)
            elif random.random() < 0.5:
                slot = random.randrange(self.size)
                shown.append(self.images[slot])
                self.images[slot] = image.clone()
            else:
                shown.append(image)
        return torch.stack(shown)


class CycleGanStep:
    """One step of CycleGAN: both generators, then both discriminators (LSGAN, a pool)."""

    def __init__(self, settings, a: np.ndarray, b: np.ndarray):
        """Draws the weights; the batch is `a` and `b`, uint8 `[B,H,W,3]`."""
        self.settings, self.a, self.b = settings, to_torch(a), to_torch(b)
        self.to_b, self.to_a = (_place(torch_networks.generator(settings)) for _ in range(2))
        self.judge_a, self.judge_b = (
            _place(torch_networks.Discriminator(settings)) for _ in range(2)
        )
        made = itertools.chain(self.to_b.parameters(), self.to_a.parameters())
        judged = itertools.chain(self.judge_a.parameters(), self.judge_b.parameters())
        self.generators, self.judges = (
            torch.optim.Adam(of, settings.optimizer.learning_rate, (0.5, 0.999), fused=True)
            for of in (made, judged)
        )
        size = max(settings.pool_size, settings.batch_size)
        self.pool_a, self.pool_b = ImagePool(size), ImagePool(size)

    def compile(self) -> None:
        """Has `torch.compile` compile the networks."""
        for network in (self.to_b, self.to_a, self.judge_a, self.judge_b):
            network.compile()

    def __call__(self) -> float:
        a, b, settings = self.a, self.b, self.settings
        for judge in (self.judge_a, self.judge_b):
            judge.requires_grad_(False)
        self.generators.zero_grad(set_to_none=True)
        fake_b, fake_a = self.to_b(a), self.to_a(b)
        score_b, score_a = self.judge_b(fake_b), self.judge_a(fake_a)
        loss = F.mse_loss(score_b, torch.ones_like(score_b))
        loss = loss + F.mse_loss(score_a, torch.ones_like(score_a))
        cycle = F.l1_loss(self.to_a(fake_b), a) + F.l1_loss(self.to_b(fake_a), b)
        loss = loss + settings.cycle_weight * cycle
        if settings.identity_weight:
            same = F.l1_loss(self.to_b(b), b) + F.l1_loss(self.to_a(a), a)
            loss = loss + settings.identity_weight * settings.cycle_weight * same
        loss.backward()
        self.generators.step()

        self.judges.zero_grad(set_to_none=True)
        for judge, real, fake, pool in (
            (self.judge_a, a, fake_a, self.pool_a),
            (self.judge_b, b, fake_b, self.pool_b),
        ):
            judge.requires_grad_(True)
            shown = pool.draw(fake.detach())
            on_real, on_fake = judge(real), judge(shown)
            judged = F.mse_loss(on_real, torch.ones_like(on_real))
            judged = judged + F.mse_loss(on_fake, torch.zeros_like(on_fake))
            (0.5 * judged).backward()
        self.judges.step()
        return loss.item()


@torch.no_grad()
def _learn_statistics(network, images):
    """Gives fresh weights the statistics of a batch, or activations would fade layer by layer."""
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


class AdaptationStep:
    """One step of the adaptation (Eq. 12), EM under way, without variation of the images."""

    def __init__(self, config, classes: int, images: np.ndarray, batch, half: bool):
        """Draws the weights of the source network, which the target starts from.

        Args:
          config: the whole config.
          classes: their number.
          images: all of them, uint8 `[N,H,W,3]`.
          batch: rows of them, a `Batch`.
          half: whether networks run in bfloat16.
        """
        self.config, self.half = config, half
        make = torch_networks.CLASSIFIERS[config.model.name]
        self.source, self.posterior, self.target = (_place(make(classes)) for _ in range(3))
        self.seen, self.by_source, self.by_posterior = (
            to_torch(images[rows])
            for rows in (batch.target_rows, batch.source_rows, batch.posterior_rows)
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
        """Has `torch.compile` compile the networks."""
        for network in (self.source, self.posterior, self.target):
            network.compile()

    def __call__(self) -> float:
        config, size = self.config, len(self.seen)
        half = torch.autocast(device().type, torch.bfloat16) if self.half else None
        self.optimizer.zero_grad(set_to_none=True)
        with half or contextlib.nullcontext():
            with torch.no_grad():
                _, source_maps = self.source(self.by_source)
                posterior = self.posterior(self.by_posterior)[0].float().softmax(1)
            kept = (posterior.max(1).values >= config.em.threshold).float()
            logits, maps = self.target(self.seen)
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
        loss = (supervised + (kept * soft).sum()) / size + config.adapt.beta * alignment
        loss.backward()
        self.optimizer.step()
        return loss.item()


class Translation:
    """All images through a generator, batch by batch, as uint8 on the host."""

    def __init__(self, settings, images: np.ndarray, batch_size: int):
        """Draws the weights."""
        self.network = _place(torch_networks.generator(settings)).eval()
        self.images, self.batch_size = images, batch_size

    def compile(self) -> None:
        """Has `torch.compile` compile the network."""
        self.network.compile()

    @torch.no_grad()
    def __call__(self) -> float:
        made = []
        for batch in _batches(self.images, self.batch_size):
            images = self.network(to_torch(batch)).add(1).mul(127.5).round().clamp(0, 255)
            made.append(images.byte().permute(0, 2, 3, 1).cpu())
        return torch.cat(made).float().mean().item()


class Evaluation:
    """Mean confidence on all images, batch by batch."""

    def __init__(self, config, classes: int, images: np.ndarray):
        """Draws the weights."""
        self.network = _place(torch_networks.CLASSIFIERS[config.model.name](classes)).eval()
        self.images, self.batch_size = images, config.evaluate.batch_size

    def compile(self) -> None:
        """Has `torch.compile` compile the network."""
        self.network.compile()

    @torch.no_grad()
    def __call__(self) -> float:
        sums = [
            self.network(to_torch(batch))[0].softmax(1).max(1).values.sum()
            for batch in _batches(self.images, self.batch_size)
        ]
        return (torch.stack(sums).sum() / len(self.images)).item()
