"""Weights and inputs drawn alike here and where the references were made."""

import zlib
from collections.abc import Mapping

import numpy as np

SIZE = 64


def drawn_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Values for a PyTorch state dict, each drawn by its name, that keep activations moderate."""
    state = {}
    for name, shape in shapes.items():
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            value = np.zeros(shape, np.int64)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            value = generator.uniform(0.5, 1.5, shape)
        elif len(shape) < 2:
            value = generator.normal(0, 0.1, shape)
        else:
            value = generator.normal(0, np.sqrt(1 / np.prod(shape[1:])), shape)
        state[name] = value if value.dtype == np.int64 else value.astype(np.float32)
    return state


def pixels() -> np.ndarray:
    """Two images of coloured squares, uint8 `[2,SIZE,SIZE,3]`."""
    squares = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    return squares.repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2)


def drawn_images(network: str) -> np.ndarray:
    """The same as the network's own preprocessing leaves them, float64."""
    images = pixels() / 255
    if network.startswith("resnet"):
        return (images - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return (images - 0.5) / 0.5
