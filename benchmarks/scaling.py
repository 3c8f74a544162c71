"""Estimates time, memory, communication and price of training on other machines.

    python -m benchmarks.scaling              compiles what docs/scaling.json lacks, prints tables
    python -m benchmarks.scaling --check      compares the model with measured steps of this device

The step of every stage is compiled for TPU slices by `libtpu` (0.0.42 for jax 0.10.2), without a
TPU; this takes an hour or two on two cores. The compiler reports a step's floating-point
operations, bytes moved and memory; `collectives.py` reads the communication. For GPUs the program
of as many TPU chips is used: operations and communication are the same, memory is close.

Lower bounds of a step's time are its operations at the device's peak and its bytes at the memory's
bandwidth. Estimates divide the larger of the two by `REACHED`, and add the communication at the
interconnect's bandwidth, as if it did not overlap with computation.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from benchmarks import peaks
from benchmarks.programs import config_of, count, programs
from daaa_jax.runtime import allocator
from daaa_jax.runtime import mesh as meshes

RESULTS = Path(__file__).parent.parent / "docs" / "scaling.json"
# Assumed share of the device's peak that a step reaches.
REACHED = 0.4


@dataclasses.dataclass(frozen=True)
class Device:
    """An accelerator, from its data sheet.

    Attributes:
      peak: dense FLOP/s by precision.
      bandwidth: memory bandwidth, bytes/s.
      memory: bytes.
      price: US dollars per hour, on demand; an assumption, prices differ by region and change.
    """

    peak: Mapping[str, float]
    bandwidth: float
    memory: float
    price: float


# By default JAX multiplies float32 in bfloat16 on a TPU, and in TF32 on a GPU.
DEVICES = {
    "H100": Device({"float32": 494.7e12, "bfloat16": 989.4e12}, 3.35e12, 80e9, 4.0),
    "v5e": Device({"float32": 197e12, "bfloat16": 197e12}, 819e9, 16 * 2**30, 1.2),
    "v5p": Device({"float32": 459e12, "bfloat16": 459e12}, 2765e9, 95 * 2**30, 4.2),
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices that train together.

    Attributes:
      device: a key of `DEVICES`.
      count: number of devices.
      topology: the TPU slice that programs are compiled for.
      link: bytes/s of an all-reduce over all devices, in each direction.
    """

    device: str
    count: int
    topology: str
    link: float


MACHINES = {
    "1 H100": Machine("H100", 1, "v5p:2x2x1", math.inf),
    # Two axes of 90 GB/s in both directions, halved, as so short a torus is not closed.
    "v5e-8": Machine("v5e", 8, "v5e:2x4", 90e9),
    # Three axes of 180 GB/s in both directions; the one of two chips is not closed. v5p-64 has 64
    # cores, 32 chips.
    "v5p-64": Machine("v5p", 32, "v5p:2x4x4", 450e9),
    # An eighth of each gradient over 400 Gb/s between hosts, all of it over NVLink within one.
    "64 H100": Machine("H100", 64, "v5p:4x4x4", 1 / (1 / 400e9 + 1 / 450e9)),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A dataset and the length of each stage on it.

    Attributes:
      family: `digits` or `photos`; determines networks and sizes.
      images: numbers of images by domain; the first two are source and target of the smallest task.
      cyclegan_epochs: epochs over the larger domain of a pair.
      source_epochs: epochs of a source network.
      adaptation_steps: updates of an adaptation.
      pairs, sources, tasks: numbers of CycleGANs, source networks and adaptations in the benchmark.
    """

    family: str
    images: tuple[int, ...]
    cyclegan_epochs: int
    source_epochs: int
    adaptation_steps: int
    pairs: int = 1
    sources: int = 1
    tasks: int = 1


TASKS = {
    "MNIST to MNIST-M": Task("digits", (60000, 59001), 8, 10, 20000),
    "Office-31, six tasks": Task("photos", (2817, 795, 498), 100, 30, 4000, 3, 3, 6),
    # Fewer epochs, as there are more images.
    "VisDA-2017": Task("photos", (152397, 55388), 5, 5, 20000),
    "DomainNet, thirty tasks": Task(
        "photos", (172947, 172500, 72266, 69128, 51605, 48129), 4, 5, 20000, 15, 6, 30
    ),
}


def complete(path: Path) -> dict:
    """Reads the costs in a file, and compiles and adds the missing ones."""
    known = json.loads(path.read_text()) if path.exists() else {}
    for family in ("digits", "photos"):
        for name, machine in MACHINES.items():
            missing = {"pair", "source", "adapt"} - known.get(family, {}).get(name, {}).keys()
            if not missing:
                continue
            topology = topologies.get_topology_desc(machine.topology, platform="tpu")
            mesh = meshes.data_mesh(topology.devices[: machine.count])
            for stage, program in programs(config_of(family, machine.count), mesh):
                if stage not in missing:
                    continue
                costs = count(*program, mesh)
                print(f"{family}, {name}, {stage}: {costs}", flush=True)
                known.setdefault(family, {}).setdefault(name, {})[stage] = costs
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(known, indent=1) + "\n")
    return known


def step_seconds(figures: Mapping, machine: Machine, precision: str) -> tuple[float, float]:
    """Estimated seconds of one step: computation and communication."""
    device = DEVICES[machine.device]
    bound = max(figures["flops"] / device.peak[precision], figures["bytes"] / device.bandwidth)
    # An all-reduce is a reduce-scatter and an all-gather, and counts twice.
    once = sum(figures["sent"].values()) + figures["sent"].get("all-reduce", 0)
    sent = once * (machine.count - 1) / machine.count
    return bound / REACHED, sent / machine.link


def steps_of(task: Task, config: ConfigDict) -> dict[str, float]:
    """Number of steps of each stage in the whole benchmark."""
    domains = task.images
    larger = [
        max(a, b) for place, a in enumerate(domains) for b in domains[place + 1 :]
    ]  # of each pair
    sources = domains if task.sources > 1 else domains[:1]
    return {
        "pair": task.cyclegan_epochs * sum(larger) / config.pair.batch_size,
        "source": task.source_epochs * sum(sources) / config.source.batch_size,
        "adapt": task.tasks * task.adaptation_steps,
    }


def print_tables(known: Mapping) -> None:
    """Prints Markdown tables: one step of each stage on each machine, then whole benchmarks."""
    # All values but the batch are per device.
    head = "step | machine | batch | GFLOP | GB moved | GB of memory | MB sent | ms, computing"
    print(f"| {head} | ms, sending |\n|" + " --- |" * 9)
    for family, by_machine in known.items():
        for stage in ("pair", "source", "adapt"):
            for name, machine in MACHINES.items():
                costs, config = by_machine[name][stage], config_of(family, machine.count)
                computing, sending = step_seconds(costs, machine, _precision(family, stage))
                print(
                    f"| {family}, {stage} | {name} | {config[stage].batch_size} "
                    f"| {_short(costs['flops'] / 1e9)} | {costs['bytes'] / 1e9:.2f} "
                    f"| {costs['memory'] / 1e9:.2f} | {sum(costs['sent'].values()) / 1e6:.1f} "
                    f"| {1e3 * computing:.2f} | {1e3 * sending:.2f} |"
                )
    print("\n| benchmark | machine | CycleGAN, h | source, h | adaptation, h | all, h | US$ |")
    print("|" + " --- |" * 7)
    for title, task in TASKS.items():
        for name, machine in MACHINES.items():
            config = config_of(task.family, machine.count)
            hours = {}
            for stage, number in steps_of(task, config).items():
                # With a larger batch, fewer updates on the same number of images.
                if stage == "adapt":
                    number *= config_of(task.family, 1).adapt.batch_size / config.adapt.batch_size
                seconds = step_seconds(
                    known[task.family][name][stage], machine, _precision(task.family, stage)
                )
                hours[stage] = number * sum(seconds) / 3600
            whole = sum(hours.values())
            cost = whole * machine.count * DEVICES[machine.device].price
            each = " | ".join(_short(hours[stage]) for stage in ("pair", "source", "adapt"))
            print(f"| {title} | {name} | {each} | {_short(whole)} | {_short(cost)} |")


def _short(value: float) -> str:
    """Formats a number with two significant digits below 10, else without decimals."""
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _precision(family: str, stage: str) -> str:
    return "bfloat16" if family == "photos" and stage != "pair" else "float32"


def check(rounds: int) -> None:
    """Prints measured steps of this device against the model with its measured peaks."""
    allocator.keep_freed_memory()  # as daaa_jax.main does
    kind = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    flops, bandwidth = peaks.matmul(kind), peaks.copying()
    print(f"{jax.devices()[0].device_kind}: {flops / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s")
    print("| step | batch | measured, ms | operations, ms | bytes, ms | of the larger bound |")
    print("|" + " --- |" * 6)
    for family, stages in (("digits", ("source", "adapt")), ("photos", ("pair", "adapt"))):
        config = config_of(family, 1)
        if family == "photos" and jax.default_backend() == "cpu":
            config.data.image_size, config.augment.crop = 112, 96
            config.pair.update(filters=32, blocks=6, discriminator_filters=32, enlarge=124)
            config.model.dtype = "float32"
            config.adapt.batch_size = 16
        mesh = meshes.data_mesh(jax.devices()[:1])
        for stage, (step, state, _, batch) in programs(config, mesh):
            if stage not in stages:
                continue
            compiled = jax.jit(step, donate_argnums=0).lower(state, *batch).compile()
            cost = compiled.cost_analysis()
            bounds = cost["flops"] / flops, cost["bytes accessed"] / bandwidth
            seconds = _seconds(compiled, state, batch, rounds)
            print(
                f"| {family}, {stage} | {config[stage].batch_size} | {1e3 * seconds:.1f} "
                f"| {1e3 * bounds[0]:.1f} | {1e3 * bounds[1]:.1f} | {max(bounds) / seconds:.2f} |",
                flush=True,
            )


def _seconds(compiled, state, batch, rounds: int) -> float:
    generator = np.random.default_rng(0)

    def fill(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if np.issubdtype(leaf.dtype, np.floating):
            return jnp.asarray(0.01 * np.abs(generator.standard_normal(leaf.shape)), leaf.dtype)
        high = 256 if leaf.dtype == np.uint8 else 1
        return jnp.asarray(generator.integers(0, high, leaf.shape), leaf.dtype)

    state, batch = jax.tree.map(fill, (state, batch))
    times = []
    for _ in range(rounds + 2):  # two warm up
        start = time.perf_counter()
        state, metrics = compiled(state, *batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def main() -> None:
    """Prints the tables, or with `--check` the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with measured steps")
    parser.add_argument("--rounds", type=int, default=10, help="measured steps per stage")
    options = parser.parse_args()
    if options.check:
        check(options.rounds)
        return
    # Compiling needs no TPU, but without these settings libtpu waits for one of this machine.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    jax.config.update("jax_platforms", "cpu")
    print_tables(complete(RESULTS))


if __name__ == "__main__":
    main()
