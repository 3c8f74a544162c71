"""Times our training steps against the same in PyTorch, in turn, in one process, on one device.

    python -m pip install -r benchmarks/requirements.txt
    python -m benchmarks.steps [--rounds=20] [--threads=2]

Each line: the median time of a step (minimum to maximum), ours and PyTorch's, and the median of
the ratios of neighbouring measurements, which a drift of the machine's speed does not touch.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
from ml_collections import ConfigDict

from benchmarks.torch_steps import CycleGanStep, DigitStep
from configs import digits
from daaa_jax import models, optimizers, pairing, source
from daaa_jax.data.augment import decode
from daaa_jax.runtime import allocator


def our_digit_step(batch: int) -> Callable[[], float]:
    """The step of stage `source`, the data on the device and no shifts."""
    config = digits.get_config()
    model = models.create_classifier(config.model, 10, config.adapt.attention)
    optimizer = optimizers.make(config.source.optimizer, total_steps=10**6)
    images, labels = _images(batch), np.arange(batch, dtype=np.int32) % 10
    state = source.create_state(jax.random.key(0), model, optimizer, decode(images[:1]))
    config.augment.shift = 0
    step = functools.partial(
        source.train_step, model=model, optimizer=optimizer, augment=config.augment
    )
    return _Step(step, state, jax.device_put((images, np.arange(batch), labels)))


def our_cyclegan_step(settings: ConfigDict, size: int = 32) -> Callable[[], float]:
    """The step of stage `pair` with the settings `config.pair`, the data on the device."""
    optimizer = optimizers.make(settings.optimizer, total_steps=10**6)
    images = _images(settings.batch_size, size)
    state = pairing.create_state(jax.random.key(0), settings, optimizer, decode(images[:1]))
    step = functools.partial(pairing.train_step, settings=settings, optimizer=optimizer)
    rows = np.arange(settings.batch_size)
    return _Step(step, state, jax.device_put((images, images[::-1], rows, rows)))


class _Step:
    """A jitted step that keeps its state, and waits for its loss as PyTorch's `.item()` does."""

    def __init__(self, step, state, batch):
        self.step, self.state, self.batch = jax.jit(step, donate_argnums=0), state, batch

    def __call__(self) -> float:
        self.state, metrics = self.step(self.state, *self.batch)
        return float(metrics["loss"].total)


def _images(batch: int, size: int = 32) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (batch, size, size, 3)).astype(np.uint8)


def compare(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> dict:
    """Times the two in turn, after two steps of each that are not counted."""
    times = {"ours": [], "PyTorch": []}
    for number in range(rounds + 2):
        for name, step in (("ours", ours), ("PyTorch", theirs)):
            start = time.perf_counter()
            step()
            if number >= 2:
                times[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(times["ours"], times["PyTorch"], strict=True)]
    return {**times, "ratio": statistics.median(ratios)}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="measured steps of each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    options = parser.parse_args()
    allocator.keep_freed_memory()  # as daaa_jax.main does; PyTorch has it too here
    torch.set_num_threads(options.threads)
    pair = digits.get_config().pair  # batch 16
    print(f"jax {jax.__version__}, torch {torch.__version__}, {options.threads} threads")
    print("| step | ours, ms | PyTorch, ms | ratio |\n| --- | --- | --- | --- |")
    for name, ours, theirs in (
        ("digit network, batch 128", our_digit_step(128), DigitStep(128)),
        ("CycleGAN 32x32, batch 16", our_cyclegan_step(pair), CycleGanStep(pair)),
    ):
        result = compare(ours, theirs, options.rounds)
        cells = [
            f"{1e3 * statistics.median(t):.0f} ({1e3 * min(t):.0f} to {1e3 * max(t):.0f})"
            for t in (result["ours"], result["PyTorch"])
        ]
        print(f"| {name} | {cells[0]} | {cells[1]} | {result['ratio']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
