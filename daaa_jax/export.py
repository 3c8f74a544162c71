"""Exports a trained network with its preprocessing; running it needs only JAX.

    daaa export --workdir=runs/office-w2a --out=DIR

Writes `model.stablehlo`, a program serialised by `jax.export` that maps uint8 images `[B,H,W,3]`,
for any B, to probabilities `[B,K]`; with `--onnx` also `model.onnx`; `classes.txt`, the class
names; `preprocessing.json`, the size of the images and how values of more than 8 bits become
pixels (`data.photos.value_ranges`); and `README.md`, the model card. `--paired` includes G_TS, for
inference on both images of a pair; `--generators` exports only the generators, which map uint8
images to uint8 images.
"""

if __name__ == "__main__":  # first, as the imports below may fail
    from daaa_jax.runtime import exit_codes

    exit_codes.run_module("daaa_jax.export")

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax import export as jax_export

from daaa_jax import inference
from daaa_jax.command_line import Parser, given_path
from daaa_jax.errors import UserError, first_line, writable
from daaa_jax.experiment.workdir import Workdir
from daaa_jax.models import layers
from daaa_jax.report import model_card, templates
from daaa_jax.runtime import error_log, files, jax_settings

Program = Callable[[Array], Array]

_UNFAITHFUL = (
    "--onnx: jax2onnx did not convert this network correctly; leave out --onnx, or try another "
    "version of jax2onnx"
)
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def main(arguments: Sequence[str] | None = None) -> None:
    """Exports the network of a working directory.

    Raises:
      UserError: for any error that the user can fix.
    """
    parser = Parser("export", __doc__)
    what = parser.add_network_flags(inference.NETWORKS)
    parser.add_argument("--out", type=given_path, required=True, help="folder to create")
    parser.add_argument(
        "--onnx", action="store_true", help="also write ONNX (pip install jax2onnx onnxruntime)"
    )
    what.add_argument(
        "--generators",
        action="store_true",
        help="export the CycleGAN's two generators, which translate images, and no classifier",
    )
    options = parser.parse_args(arguments)
    workdir = Workdir(options.workdir)
    out = files.output("--out", options.out, inference.photos_of(workdir))
    error_log.use(workdir.path)
    if out.exists():
        raise UserError(f"--out={options.out} exists: remove it, or give another folder")
    if options.generators and options.network:
        raise UserError("--generators exports no classifier: leave out --network")
    missing = [name for name in ("jax2onnx", "onnxruntime") if not importlib.util.find_spec(name)]
    if options.onnx and missing:
        raise UserError(f"--onnx needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    jax_settings.set_supported()
    jax_settings.check_devices()
    chosen = options.network or "selected"
    if options.generators:
        generators = inference.load_generators(workdir)
        side, programs = generators.image_size, generators.functions()
        card = templates.render("generators_card.md", side=side, directions=sorted(programs))
        texts = {"README.md": card}
    else:
        network = inference.load_network(workdir, chosen, options.paired)
        side = network.about["image_size"]
        preprocessing = {"image_size": side, "ranges": network.about.get("ranges", {})}
        programs = {"model": lambda x: inference.posterior(network, network.variables, x)}
        texts = {
            "classes.txt": "".join(f"{name}\n" for name in network.about["classes"]),
            "preprocessing.json": json.dumps(preprocessing, indent=2),
            "README.md": model_card.write(network, workdir, chosen),
        }
    # Of ONNX. Generators round to uint8, where values halfway between two may be rounded otherwise.
    tolerance = 1 if options.generators else 1e-2 if options.paired else 1e-4
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with writable(f"--out={out}"):
            temporary.mkdir(parents=True)
            for name, text in texts.items():
                (temporary / name).write_bytes(files.encoded(text))
            for name, program in programs.items():
                (temporary / f"{name}.stablehlo").write_bytes(stablehlo(program, side))
                if options.onnx:
                    (temporary / f"{name}.onnx").write_bytes(onnx(program, side, tolerance))
            names = sorted(os.listdir(temporary))
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{', '.join(names)} in {out}")


def stablehlo(program: Program, side: int) -> bytes:
    """Serialises a function with `jax.export`, for all of `PLATFORMS`.

    Args:
      program: a function of uint8 images `[B,side,side,3]`.
      side: height and width of the images.
    """
    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)
    with layers.plain_convolutions():
        exported = jax_export.export(jax.jit(program), platforms=PLATFORMS)(images)
    return bytes(exported.serialize())


def onnx(program: Program, side: int, tolerance: float) -> bytes:
    """Converts a function to ONNX, and checks that the model gives the same outputs.

    Args:
      program: a function of uint8 images `[B,side,side,3]`.
      side: height and width of the images.
      tolerance: largest absolute difference allowed in an output.

    Raises:
      UserError: if jax2onnx fails or exceeds the tolerance.
    """
    import onnxruntime
    from jax2onnx import to_onnx

    shape = jax.ShapeDtypeStruct(("B", side, side, 3), jnp.uint8)
    images = np.random.default_rng(0).integers(0, 256, (3, side, side, 3)).astype(np.uint8)
    wanted = np.asarray(jax.jit(program)(images), np.float32)
    try:
        with layers.plain_convolutions():
            content = to_onnx(program, [shape]).SerializeToString()
        session = onnxruntime.InferenceSession(content)
        (found,) = session.run(None, {session.get_inputs()[0].name: images})
    except Exception as error:  # both packages raise many types of their own
        raise UserError(f"{_UNFAITHFUL}: {first_line(error)}") from error
    if (difference := float(np.abs(found.astype(np.float32) - wanted).max())) > tolerance:
        raise UserError(f"{_UNFAITHFUL}: outputs differ by {difference:.2g}")
    return content
