"""The compared training steps as PyTorch users write them: channels last, eager, float32."""

import itertools
import random

import torch
from torch import nn
from torch.nn import functional as F

CHANNELS_LAST = torch.channels_last


def digit_network(widths=(32, 64, 128), classes=10) -> nn.Module:
    """The network of `daaa_jax/models/digits.py`."""
    layers, channels = [], 3
    for width in widths:
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        ]
        channels = width
    return nn.Sequential(*layers, nn.Conv2d(channels, classes, 4), nn.Flatten())


class Residual(nn.Module):
    """Two reflection-padded 3x3 convolutions around a sum."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            nn.InstanceNorm2d(channels, affine=True),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            nn.InstanceNorm2d(channels, affine=True),
        )

    def forward(self, x):
        return x + self.body(x)


def generator(settings) -> nn.Module:
    """The network of `daaa_jax/models/generator.py`, of the sizes in `config.pair`."""
    filters = settings.filters

    def norm(channels):
        return [nn.InstanceNorm2d(channels, affine=True), nn.ReLU(inplace=True)]

    layers = [nn.ReflectionPad2d(3), nn.Conv2d(3, filters, 7, bias=False), *norm(filters)]
    channels = filters
    for _ in range(settings.downsamplings):
        layers += [nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)]
        layers += norm(2 * channels)
        channels *= 2
    layers += [Residual(channels) for _ in range(settings.blocks)]
    for _ in range(settings.downsamplings):
        layers += [
            nn.Upsample(scale_factor=2),
            nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False),
        ]
        layers += norm(channels // 2)
        channels //= 2
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(channels, 3, 7), nn.Tanh())


class Discriminator(nn.Module):
    """The network of `daaa_jax/models/discriminator.py`, of the sizes in `config.pair`."""

    def __init__(self, settings):
        super().__init__()
        filters, layers = settings.discriminator_filters, settings.discriminator_layers
        self.first = nn.Sequential(
            nn.Conv2d(3, filters, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)
        )
        rest, channels = [], filters
        for i in range(1, layers + 1):
            width, stride = filters * min(2**i, 8), 2 if i < layers else 1
            rest += [nn.Conv2d(channels, width, 4, stride=stride, padding=1, bias=False)]
            rest += [nn.InstanceNorm2d(width, affine=True), nn.LeakyReLU(0.2, inplace=True)]
            channels = width
        self.rest = nn.Sequential(*rest)
        self.batch_deviation = settings.batch_deviation
        more = filters if self.batch_deviation else 0
        self.logits = nn.Conv2d(channels + more, 1, 4, padding=1)

    def forward(self, x):
        first = self.first(x)
        features = self.rest(first)
        if self.batch_deviation:
            deviation = (first.mean((2, 3)).var(0, unbiased=False) + 1e-4).sqrt()
            tiled = deviation[None, :, None, None].expand(len(x), -1, *features.shape[2:])
            features = torch.cat([features, tiled], 1)
        return self.logits(features)


class ImagePool:
    """The pool of past translations, as the released CycleGAN keeps it."""

    def __init__(self, size: int):
        self.size, self.images = size, []

    def draw(self, batch):
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


class DigitStep:
    """One step of the digit classifier: cross-entropy, batch statistics, Adam."""

    def __init__(self, batch: int):
        self.network = digit_network().to(memory_format=CHANNELS_LAST).train()
        self.optimizer = torch.optim.Adam(self.network.parameters(), 1e-3)
        self.images = (torch.rand(batch, 3, 32, 32) * 2 - 1).to(memory_format=CHANNELS_LAST)
        self.labels = torch.randint(10, (batch,))

    def __call__(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.network(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()


class CycleGanStep:
    """One step of CycleGAN: both generators, then both discriminators (LSGAN, pool of 50)."""

    def __init__(self, settings, size: int = 32):
        self.to_b, self.to_a = (generator(settings) for _ in range(2))
        self.judge_a, self.judge_b = (Discriminator(settings) for _ in range(2))
        for network in (self.to_b, self.to_a, self.judge_a, self.judge_b):
            network.to(memory_format=CHANNELS_LAST)
        self.generators = torch.optim.Adam(
            itertools.chain(self.to_b.parameters(), self.to_a.parameters()), 2e-4, (0.5, 0.999)
        )
        self.judges = torch.optim.Adam(
            itertools.chain(self.judge_a.parameters(), self.judge_b.parameters()),
            2e-4,
            (0.5, 0.999),
        )
        self.pool_a, self.pool_b = ImagePool(50), ImagePool(50)
        self.a, self.b = (
            (torch.rand(settings.batch_size, 3, size, size) * 2 - 1).to(memory_format=CHANNELS_LAST)
            for _ in range(2)
        )

    def __call__(self) -> float:
        a, b = self.a, self.b
        for judge in (self.judge_a, self.judge_b):
            judge.requires_grad_(False)
        self.generators.zero_grad(set_to_none=True)
        fake_b, fake_a = self.to_b(a), self.to_a(b)
        score_b, score_a = self.judge_b(fake_b), self.judge_a(fake_a)
        loss = F.mse_loss(score_b, torch.ones_like(score_b))
        loss = loss + F.mse_loss(score_a, torch.ones_like(score_a))
        loss = loss + 10 * (F.l1_loss(self.to_a(fake_b), a) + F.l1_loss(self.to_b(fake_a), b))
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
