"""Idiomatic PyTorch versions of our networks; classifiers optionally return attention maps.

Layers are named as ours or as in the published weights, so that `fit` of
`daaa_jax/models/pretrained.py` can convert the weights.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F


def sow(maps, features):
    """Adds the attention map (Eq. 4), `[B, h * w]`, to `maps` unless it is None."""
    if maps is not None:
        maps.append(features.float().square().sum(1).flatten(1))


class DigitNetwork(nn.Module):
    """The digit network of `daaa_jax/models/digits.py`."""

    def __init__(self, classes=10, widths=(32, 64, 128)):
        super().__init__()
        self.convolution1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.convolution2 = nn.Conv2d(widths[0], widths[1], 3, padding=1, bias=False)
        self.convolution3 = nn.Conv2d(widths[1], widths[2], 3, padding=1, bias=False)
        self.norm1, self.norm2, self.norm3 = (nn.BatchNorm2d(width) for width in widths)
        self.classifier = nn.Conv2d(widths[2], classes, 4)

    def forward(self, x, maps=None):
        """Logits; adds its maps to `maps`."""
        mean, variance = x.mean((1, 2, 3), True), x.var((1, 2, 3), False, keepdim=True)
        x = (x - mean) / variance.clamp(min=1 / x[0].numel()).sqrt()
        for convolution, norm in (
            (self.convolution1, self.norm1),
            (self.convolution2, self.norm2),
            (self.convolution3, self.norm3),
        ):
            x = F.relu(norm(convolution(x)), inplace=True)
            sow(maps, x)
            x = F.max_pool2d(x, 2)
        return self.classifier(x).flatten(1)


class Bottleneck(nn.Module):
    """A block of torchvision's ResNet-50."""

    def __init__(self, inputs, width, stride, shortcut):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride=stride, bias=False),
                nn.BatchNorm2d(4 * width),
            )
            if shortcut
            else None
        )

    def forward(self, x, maps):
        """Features; adds its maps to `maps`."""
        identity = x
        if self.downsample is not None:
            identity = self.downsample(x)
            sow(maps, identity)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        sow(maps, x)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        sow(maps, x)
        x = self.bn3(self.conv3(x))
        sow(maps, x)
        return F.relu(x + identity)


class ResNet50(nn.Module):
    """ResNet-50 of `daaa_jax/models/resnet.py`, version v1.5 (torchvision's)."""

    def __init__(self, classes, blocks=(3, 4, 6, 3), width=64):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225])[:, None, None], False)
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, count in enumerate(blocks):
            layers = []
            for number in range(count):
                stride = 2 if stage and not number else 1
                layers.append(Bottleneck(inputs, width * 2**stage, stride, shortcut=not number))
                inputs = 4 * width * 2**stage
            setattr(self, f"layer{stage + 1}", nn.ModuleList(layers))
        self.stages = len(blocks)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x, maps=None):
        """Logits; adds the maps of all convolutions but the first to `maps`."""
        x = ((x + 1) / 2 - self.mean) / self.deviation
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage in range(1, self.stages + 1):
            for block in getattr(self, f"layer{stage}"):
                x = block(x, maps)
        return self.fc(x.float().mean((2, 3)))


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding, which EfficientNet-Lite0's weights expect."""

    def forward(self, x):
        """Features."""
        size, stride = self.kernel_size[0], self.stride[0]
        if stride > 1:
            extents = x.shape[3], x.shape[2]
            pads = [max((-(-e // stride) - 1) * stride + size - e, 0) for e in extents]
            x = F.pad(x, [side for p in pads for side in (p // 2, p - p // 2)])
        return F.conv2d(x, self.weight, None, self.stride, self.padding, groups=self.groups)


def same(inputs, outputs, size=1, stride=1, groups=1):
    """A convolution of EfficientNet-Lite0."""
    padding = size // 2 if stride == 1 else 0
    return SameConv2d(inputs, outputs, size, stride, padding, groups=groups, bias=False)


def efficient_norm(width):
    """A batch normalisation of EfficientNet-Lite0."""
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)


class InvertedResidual(nn.Module):
    """A block of EfficientNet-Lite0."""

    def __init__(self, inputs, channels, size, stride, expansion):
        super().__init__()
        wide = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = same(inputs, wide), efficient_norm(wide)
        self._depthwise_conv = same(wide, wide, size, stride, groups=wide)
        self._bn1 = efficient_norm(wide)
        self._project_conv, self._bn2 = same(wide, channels), efficient_norm(channels)
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == channels

    def forward(self, x, maps):
        """Features; adds its maps to `maps`."""
        inputs = x
        if self.expands:
            x = F.relu6(self._bn0(self._expand_conv(x)), inplace=True)
            sow(maps, x)
        x = F.relu6(self._bn1(self._depthwise_conv(x)), inplace=True)
        sow(maps, x)
        x = self._bn2(self._project_conv(x))
        sow(maps, x)
        return x + inputs if self.adds else x


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 of `daaa_jax/models/efficientnet.py`."""

    # Repeats, kernel size, stride of the first repeat, expansion, output channels.
    stages = (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )

    def __init__(self, classes):
        super().__init__()
        self._conv_stem, self._bn0 = same(3, 32, 3, 2), efficient_norm(32)
        blocks, inputs = [], 32
        for repeats, size, stride, expansion, channels in self.stages:
            for repeat in range(repeats):
                step = 1 if repeat else stride
                blocks.append(InvertedResidual(inputs, channels, size, step, expansion))
                inputs = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = same(inputs, 1280), efficient_norm(1280)
        self._fc = nn.Linear(1280, classes)

    def forward(self, x, maps=None):
        """Logits; adds the maps of all convolutions but the first to `maps`."""
        x = F.relu6(self._bn0(self._conv_stem(x)), inplace=True)
        for block in self._blocks:
            x = block(x, maps)
        x = F.relu6(self._bn1(self._conv_head(x)), inplace=True)
        sow(maps, x)
        return self._fc(x.float().mean((2, 3)))


CLASSIFIERS = {
    "digits": DigitNetwork,
    "resnet50": ResNet50,
    "efficientnet_lite0": EfficientNetLite0,
}


class Residual(nn.Module):
    """A residual block of two reflection-padded 3x3 convolutions."""

    def __init__(self, channels):
        super().__init__()
        self.a, self.b = (nn.Conv2d(channels, channels, 3, bias=False) for _ in "ab")
        self.a_norm, self.b_norm = (nn.InstanceNorm2d(channels, affine=True) for _ in "ab")

    def forward(self, x):
        """Features."""
        inner = F.relu(self.a_norm(self.a(F.pad(x, (1, 1, 1, 1), "reflect"))), inplace=True)
        return x + self.b_norm(self.b(F.pad(inner, (1, 1, 1, 1), "reflect")))


def generator(settings) -> nn.Module:
    """The generator of `daaa_jax/models/generator.py`; `settings` are `config.pair`."""
    channels = settings.filters
    layers = OrderedDict(enter_pad=nn.ReflectionPad2d(3))

    def add(name, convolution):
        layers[name] = convolution
        layers[f"{name}_norm"] = nn.InstanceNorm2d(convolution.out_channels, affine=True)
        layers[f"{name}_relu"] = nn.ReLU(inplace=True)

    add("enter", nn.Conv2d(3, channels, 7, bias=False))
    for i in range(1, settings.downsamplings + 1):
        add(f"down{i}", nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False))
        channels *= 2
    for i in range(1, settings.blocks + 1):
        layers[f"block{i}"] = Residual(channels)
    for i in range(settings.downsamplings, 0, -1):
        layers[f"up{i}_double"] = nn.Upsample(scale_factor=2)
        add(f"up{i}", nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False))
        channels //= 2
    layers["leave_pad"] = nn.ReflectionPad2d(3)
    layers["leave"] = nn.Conv2d(channels, 3, 7)
    layers["tanh"] = nn.Tanh()
    return nn.Sequential(layers)


class Discriminator(nn.Module):
    """The discriminator of `daaa_jax/models/discriminator.py`; `settings` are `config.pair`."""

    def __init__(self, settings):
        super().__init__()
        channels, filters = 3, settings.discriminator_filters
        self.layers = settings.discriminator_layers
        for i in range(self.layers + 1):
            width, stride = filters * min(2**i, 8), 2 if i < self.layers else 1
            convolution = nn.Conv2d(channels, width, 4, stride=stride, padding=1, bias=i == 0)
            setattr(self, f"conv{i + 1}", convolution)
            if i:
                setattr(self, f"conv{i + 1}_norm", nn.InstanceNorm2d(width, affine=True))
            channels = width
        self.batch_deviation = settings.batch_deviation
        more = filters if self.batch_deviation else 0
        self.logits = nn.Conv2d(channels + more, 1, 4, padding=1)

    def forward(self, x):
        """Logits of patches."""
        first = x = F.leaky_relu(self.conv1(x), 0.2)
        for i in range(2, self.layers + 2):
            x = getattr(self, f"conv{i}_norm")(getattr(self, f"conv{i}")(x))
            x = F.leaky_relu(x, 0.2, inplace=True)
        if self.batch_deviation:
            deviation = (first.mean((2, 3)).var(0, unbiased=False) + 1e-4).sqrt()
            tiled = deviation[None, :, None, None].expand(len(x), -1, *x.shape[2:])
            x = torch.cat([x, tiled], 1)
        return self.logits(x)
