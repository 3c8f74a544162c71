"""Times our steps against PyTorch and against the peaks of this device.

    python -m pip install -r benchmarks/requirements.txt
    python -m benchmarks.performance                       all cases for this device
    python -m benchmarks.performance --cases=cyclegan32    cases whose names start with this

Alternates, in one process, on one device and from the same weights, between our step, PyTorch's
("eager"), and PyTorch's with the loss compiled by `torch.compile`. Both frameworks use the same
precision: float32 on a CPU; on a GPU, TF32 for CycleGANs and bfloat16 for classifiers of photos.
The first loss and its change in an update must agree. If both do not fit in a CPU's memory, each
runs in its own process.

Prints tables, and stores all measurements in docs/performance.json, by device.
"""

import argparse
import concurrent.futures.process
import ctypes
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch

from benchmarks import our_steps, peaks, torch_steps
from configs import digits, photos
from daaa_jax.runtime import allocator

RESULTS = Path(__file__).parent.parent / "docs" / "performance.json"
ROUNDS = 10  # measured calls
FEW, LONG = 3, 10.0  # measured calls if one takes longer than LONG seconds
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}  # widest first
# Small, so that rounding errors are not amplified; a step's time does not depend on it.
LEARNING_RATE = 1e-5
# Relative tolerances of the first loss and of its change in an update.
TOLERANCE = {"float32": (1e-3, 0.1), "tf32": (1e-2, 0.3), "bfloat16": (5e-2, 0.5)}


@dataclasses.dataclass(frozen=True)
class Case:
    """A benchmark case.

    Attributes:
      title: title in the table.
      make: returns a function that creates our side, and PyTorch's side with the same weights.
      images: number of real images per call.
      on_cpu: whether to run it on a CPU.
      half: whether it uses bfloat16 on a GPU.
      apart: whether on a CPU each side runs in its own process, as both do not fit in memory; then
        their calls do not alternate.
    """

    title: str
    make: Callable[[], tuple[Callable, Callable]]
    images: int
    on_cpu: bool = True
    half: bool = False
    apart: bool = False


def on_gpu() -> bool:
    """Whether JAX computes on a GPU."""
    return jax.default_backend() == "gpu"


def pixels(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Random images, smooth over four pixels, uint8 `[N,size,size,3]`."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, size // 4, size // 4, 3))
    return coarse.astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)


def cyclegan(size: int, batch: int):
    """A CycleGAN step, without augmentation."""
    settings = (digits if size == 32 else photos).get_config().pair
    settings.update(batch_size=batch, pools=1, enlarge=0, flip=False)
    settings.optimizer.learning_rate = LEARNING_RATE
    a, b = pixels(batch, size), pixels(batch, size, seed=1)
    theirs = torch_steps.CycleGanStep(settings, a, b)
    networks = {"a_to_b": theirs.to_b, "b_to_a": theirs.to_a}
    networks |= {"a": theirs.judge_a, "b": theirs.judge_b}
    weights = {name: torch_steps.weights(network) for name, network in networks.items()}
    return functools.partial(our_steps.cyclegan_update, settings, (a, b), weights), theirs


def classifier_config(name: str, batch: int, size: int):
    """The config of a classifier's adaptation, without augmentation."""
    config = digits.get_config() if name == "digits" else photos.get_config()
    config.model.name = name
    if "image_size" in config.data:
        config.data.image_size = size
        config.model.weights = ""
    else:
        config.data.update(image_size=size)
    config.augment.update(crop=0, shift=0, flip=False)
    config.adapt.recolour = config.adapt.confusion = config.em.decay = 0.0  # Eq. 12 alone
    config.adapt.batch_size = batch
    config.adapt.optimizer.learning_rate = LEARNING_RATE
    config.em.threshold = 0.0  # or untrained networks would keep no posterior
    return config


def half(config) -> bool:
    """Whether a classifier runs in bfloat16."""
    return config.model.name != "digits" and on_gpu()


def adaptation(name: str, batch: int, size: int = 32, classes: int = 10):
    """An adaptation step."""
    config = classifier_config(name, batch, size)
    images, rows = pixels(4 * batch, size), our_steps.adaptation_batch(config, batch, classes)
    theirs = torch_steps.AdaptationStep(config, classes, images, rows, half(config))
    weights = torch_steps.weights(theirs.source)
    model, variables = our_steps.classifier(config, classes, weights)
    make = functools.partial(our_steps.adaptation_step, config, model, variables, images, rows)
    return make, theirs


def translation(count: int, size: int, batch: int):
    """Translation of a domain."""
    settings = (digits if size == 32 else photos).get_config().pair
    images = pixels(count, size)
    theirs = torch_steps.Translation(settings, images, batch)
    weights = torch_steps.weights(theirs.network)
    return functools.partial(our_steps.Translation, settings, images, batch, weights), theirs


def evaluation(count: int):
    """Evaluation on digits."""
    config = classifier_config("digits", 128, 32)
    images = pixels(count, 32)
    theirs = torch_steps.Evaluation(config, 10, images)
    weights = torch_steps.weights(theirs.network)
    model, variables = our_steps.classifier(config, 10, weights)
    return functools.partial(our_steps.Evaluation, config, model, variables, images), theirs


CASES = {
    "cyclegan32_16": Case("CycleGAN at 32, batch 16", lambda: cyclegan(32, 16), 32),
    "cyclegan32_64": Case("CycleGAN at 32, batch 64", lambda: cyclegan(32, 64), 128),
    "cyclegan256_1": Case("CycleGAN at 256, batch 1", lambda: cyclegan(256, 1), 2),
    "cyclegan256_4": Case("CycleGAN at 256, batch 4", lambda: cyclegan(256, 4), 8, apart=True),
    "cyclegan256_16": Case(
        "CycleGAN at 256, batch 16", lambda: cyclegan(256, 16), 32, on_cpu=False
    ),
    "digits_128": Case("digits, adaptation, batch 128", lambda: adaptation("digits", 128), 128),
    "digits_1024": Case("digits, adaptation, batch 1024", lambda: adaptation("digits", 1024), 1024),
    "resnet50_32": Case(
        "ResNet-50 at 224, adaptation, batch 32",
        lambda: adaptation("resnet50", 32, 224, 31),
        32,
        half=True,
    ),
    "resnet50_128": Case(
        "ResNet-50 at 224, adaptation, batch 128",
        lambda: adaptation("resnet50", 128, 224, 31),
        128,
        on_cpu=False,
        half=True,
    ),
    "efficientnet_32": Case(
        "EfficientNet-Lite0 at 224, adaptation, batch 32",
        lambda: adaptation("efficientnet_lite0", 32, 224, 31),
        32,
        half=True,
    ),
    "translation": Case(
        "translation of 2,048 images at 32", lambda: translation(2048, 32, 256), 2048
    ),
    "evaluation": Case("evaluation on 10,240 digits", lambda: evaluation(10240), 10240),
}


def measure(name: str, compiled: bool, rounds: int) -> dict:
    """Times a case of `CASES`, after warm-up calls of each side.

    Raises:
      ValueError: if the losses do not agree.
      RuntimeError: if a side fails, or the system kills its process.
    """
    case = CASES[name]
    apart = case.apart and not on_gpu()
    found = {"title": case.title, "images": case.images, "precision": precision(case)}
    found |= (in_own_processes if apart else in_turn)(name, compiled, rounds)
    return found | {"apart": apart}


def in_turn(name: str, compiled: bool, rounds: int) -> dict:
    """Times both sides alternately in this process."""
    make_ours, eager = CASES[name].make()
    ours = make_ours()
    sides = {"ours": ours, "eager": eager}
    losses = {side: [call(), call()] for side, call in sides.items()}
    check(CASES[name], losses["ours"], losses["eager"])
    found = {"losses": losses, "cost": dataclasses.asdict(ours.cost)}
    times = alternate(sides, rounds)
    if compiled:
        eager.compile()
        found["torch_compiled_in"] = seconds(eager)
        eager()
        times |= alternate({"ours with compiled": ours, "compiled": eager}, rounds)
    return found | {"seconds": times}


@dataclasses.dataclass(frozen=True)
class Alone:
    """Measurements of one side in its own process.

    Attributes:
      losses: the first two losses.
      first: seconds of the first call.
      seconds: seconds of the measured calls.
      cost: `our_steps.Cost` as a dict; None for PyTorch.
    """

    losses: list[float]
    first: float
    seconds: list[float]
    cost: dict | None


def in_own_processes(name: str, compiled: bool, rounds: int) -> dict:
    """Times each side in its own process, one after the other, so that memory is freed."""
    give_memory_back()
    found = {"losses": {}, "seconds": {}}
    sides = ["ours", "eager"] + (["compiled"] if compiled else [])
    for side in sides:
        measured = in_own_process(name, side, rounds)
        found["losses"][side], found["seconds"][side] = measured.losses, measured.seconds
        if side == "ours":
            found["cost"] = measured.cost
        else:
            check(CASES[name], found["losses"]["ours"], measured.losses)
        if side == "compiled":
            found["torch_compiled_in"] = measured.first
            found["seconds"]["ours with compiled"] = found["seconds"]["ours"]
    return found


def in_own_process(name: str, side: str, rounds: int) -> Alone:
    """Calls `alone` in a new process.

    Raises:
      RuntimeError: if it fails, or the system kills it.
    """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as process:
        try:
            return process.submit(alone, name, side, rounds).result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise RuntimeError(f"the process of {side} ended early; out of memory?") from error


def alone(name: str, side: str, rounds: int) -> Alone:
    """Times one side, `ours`, `eager` or `compiled`, in a new process."""
    allocator.keep_freed_memory()
    torch.manual_seed(0)  # the same weights in every process
    make_ours, theirs = CASES[name].make()
    if side == "compiled":
        theirs.compile()
    call = make_ours() if side == "ours" else theirs
    losses: list[float] = []
    first = seconds(lambda: losses.append(call()))
    losses.append(call())
    times = alternate({side: call}, rounds, warm=True)[side]
    return Alone(losses, first, times, dataclasses.asdict(call.cost) if side == "ours" else None)


def check(case: Case, mine, theirs) -> None:
    """Checks that the first two losses of both frameworks agree.

    Raises:
      ValueError: if they do not.
    """
    of_loss, of_change = TOLERANCE[precision(case)]
    changes = [after - before for before, after in (mine, theirs)]
    same = abs(mine[0] - theirs[0]) <= of_loss * abs(theirs[0])
    changed = abs(changes[0] - changes[1]) <= of_change * abs(changes[1]) + 1e-5 * abs(theirs[0])
    if not (same and changed):  # also refuses NaN
        raise ValueError(f"{case.title}: our losses are {mine}, PyTorch's {theirs}")


def precision(case: Case) -> str:
    """The precision of a case on this device."""
    if not on_gpu():
        return "float32"
    return "bfloat16" if case.half else "tf32"


def seconds(call: Callable) -> float:
    """Seconds that a call takes."""
    torch_steps.synchronize()
    start = time.perf_counter()
    call()
    torch_steps.synchronize()
    return time.perf_counter() - start


def alternate(sides: dict[str, Callable], rounds: int, warm=False) -> dict[str, list[float]]:
    """Seconds of each side, called alternately, after a warm-up round unless `warm`.

    In the warm-up round the heap grows, and a call took up to three times as long.
    """
    for side in [] if warm else sides.values():
        side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    while len(times[next(iter(sides))]) < rounds:
        for name, side in sides.items():
            times[name].append(seconds(side))
        if max(each[-1] for each in times.values()) > LONG:
            rounds = min(rounds, FEW)
    return times


def give_memory_back() -> None:
    """Returns freed memory that glibc keeps to the system."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def ratio(found: dict, mine: str, theirs: str) -> float:
    """Median ratio of neighbouring measurements of both sides, robust to drift."""
    times = found["seconds"]
    if found.get("apart"):  # no measurements are neighbours
        return statistics.median(times[mine]) / statistics.median(times[theirs])
    return statistics.median(a / b for a, b in zip(times[mine], times[theirs], strict=True))


def row(found: dict) -> str:
    """A row of the Markdown table; the other measurements are in the JSON file."""
    low, middle, high = (1e3 * of(found["seconds"]["ours"]) for of in (min, statistics.median, max))
    compiled = "compiled" in found["seconds"]
    return " | ".join(
        [
            f"| {found['title']}",
            f"{middle:,.0f} ({low:,.0f} to {high:,.0f})",
            f"{ratio(found, 'ours', 'eager'):.2f}",
            f"{ratio(found, 'ours with compiled', 'compiled'):.2f} |" if compiled else "– |",
        ]
    )


HEAD = (
    "| step | ours, ms | ratio to PyTorch eager | to PyTorch compiled |\n| --- | --- | --- | --- |"
)


def about() -> dict:
    """Date, cores, threads and versions."""
    names = ("jax", "jaxlib", "flax", "torch", "numpy")
    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names},
        "threads": torch.get_num_threads(),
    }


def device_name() -> str:
    """Name of the GPU, or of the processor with its number of cores."""
    if on_gpu():
        return jax.devices()[0].device_kind
    path = Path("/proc/cpuinfo")
    return f"{processor(path.read_text() if path.exists() else '')}, {os.cpu_count()} cores"


def processor(cpuinfo: str) -> str:
    """The processor's model and, on x86, its widest vector extension, which affects timings."""
    lines = (line.replace("\t", "") for line in cpuinfo.splitlines())
    fields = dict(line.split(": ", 1) for line in lines if ": " in line)
    flags = fields.get("flags", "").split()  # absent on ARM
    vectors = [name for flag, name in VECTORS.items() if flag in flags][:1]
    return " with ".join([fields.get("model name", "CPU"), *vectors])


def main() -> None:
    """Measures, stores and prints the chosen cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="", help="prefixes of names, such as digits,cyclegan")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measured calls per side")
    parser.add_argument("--no_compile", action="store_true", help="skip torch.compile")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the measurements")
    options = parser.parse_args()
    allocator.keep_freed_memory()  # as in daaa_jax.main; also affects PyTorch
    # Read when JAX first lists devices; otherwise JAX reserves most of the memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if on_gpu():
        torch.set_float32_matmul_precision("high")  # TF32, as in JAX
        torch.backends.cudnn.benchmark = True  # autotuning, as in XLA
    begins = tuple(options.cases.split(","))
    chosen = {
        name: case
        for name, case in CASES.items()
        if name.startswith(begins) and (case.on_cpu or on_gpu())
    }
    if not chosen:
        parser.error(f"--cases={options.cases}: expected prefixes of {', '.join(CASES)}")
    most = {"copying": peaks.copying(), "float32": peaks.matmul("float32")}
    if on_gpu():
        most |= {"tf32": most["float32"], "bfloat16": peaks.matmul("bfloat16")}
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    here = kept.setdefault(device_name(), {"cases": {}})
    print(f"{device_name()}, {about()}")
    print(", ".join(f"{name} {value / 1e9:.4g} G/s" for name, value in most.items()))
    print(HEAD, flush=True)
    failed = 0
    for name, case in chosen.items():
        try:
            found = measure(name, not options.no_compile, options.rounds)
        except (RuntimeError, ValueError) as error:  # go on with the other cases
            print(f"| {case.title} | failed: {str(error).splitlines()[0]} |", flush=True)
            failed += 1
            continue
        finally:
            jax.clear_caches()
            torch_steps.free()
        here["cases"][name] = found | about() | {"most": most}
        options.out.write_text(json.dumps(kept, indent=1) + "\n")
        print(row(found), flush=True)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
