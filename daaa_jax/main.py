"""The command `daaa train --config=digits`, or `python -m daaa_jax.main --config=digits`."""

if __name__ == "__main__":  # first, as the imports below may fail
    from daaa_jax.runtime import exit_codes

    exit_codes.run_module("daaa_jax.main")

from collections.abc import Mapping, Sequence
from typing import Any

from daaa_jax import config_files
from daaa_jax.command_line import Parser, settings_of
from daaa_jax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the pipeline and prints the result.

    Raises:
      UserError: for any error that the user can fix.
      Preempted: if SIGTERM ended the run; rerun the same command to resume.
    """
    options, others = _parser().parse_known_args(arguments)
    settings = settings_of(others)
    if not options.config:
        raise UserError("--config is missing: give one, such as --config=configs/digits.py")
    config = config_files.load(options.config, settings)
    # Imported here, so that a misspelt flag is reported at once.
    from absl import logging

    from daaa_jax.runtime import accelerators, allocator, jax_settings

    allocator.keep_freed_memory()
    jax_settings.set_supported()
    from daaa_jax import pipeline
    from daaa_jax.experiment.workdir import Workdir, default_workdir
    from daaa_jax.runtime import compilation, distributed, error_log

    workdir = options.workdir or default_workdir(options.config, settings)
    error_log.use(Workdir(workdir).path)
    compilation.configure(config.run)
    distributed.start(options.coordinator, options.num_processes, options.process_id)
    logging.set_verbosity(logging.WARNING)  # Orbax logs every file
    jax_settings.check_devices()
    accelerators.warn_if_unused()
    result = pipeline.run(config, workdir, options.stage, options.profile)
    if result:
        print("\n".join(_lines(result, config.method, config.smoke, workdir)))
    else:
        print(f"stage {options.stage} finished in {workdir}")


def _parser() -> Parser:
    parser = Parser(
        "train",
        "Adapts a classifier to unlabelled images; rerun the same command to resume.",
        epilog="--config.NAME=VALUE overrides a setting, such as --config.adapt.beta=0.3",
    )
    parser.add_argument(
        "--config", help="a config file or name, with its argument after a colon: office:w2a"
    )
    parser.add_argument(
        "--workdir", help="output folder; by default runs/<config and overridden settings>"
    )
    parser.add_argument(
        "--stage", default="all", help="pair, translate, source, adapt or all (default)"
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="profile 20 updates of each training stage, into profile/ in the workdir",
    )
    parser.add_argument(
        "--coordinator", help="HOST:PORT of process 0, for several processes without a launcher"
    )
    parser.add_argument("--num_processes", type=int, help="number of processes")
    parser.add_argument("--process_id", type=int, help="number of this process, from 0")
    return parser


def _lines(result: Mapping[str, Any], method: str, smoke: bool, workdir: Any) -> list[str]:
    """The result as lines for the terminal."""
    from daaa_jax.experiment.stages import OURS

    accuracy = result["accuracy"]
    reached = accuracy["target_test"]
    baseline = "" if method == OURS else f"method {method}, "
    on_source = ("source_test", "the source domain")
    if "source_test" not in accuracy:
        on_source = ("source_train", "its training images")
    rows = [
        (f"source network on {on_source[1]}", accuracy[on_source[0]], ""),
        ("source network on the target domain", accuracy["source_only"], ""),
        ("adapted, after the last round", reached["last"], "  (last)"),
        ("adapted, chosen without labels", reached["selected"], "  (selected)"),
        ("adapted, best by target labels", reached["oracle"], "  (oracle)"),
    ]
    lines = [f"{result['task']}, {baseline}seed {result['seed']}, {result['evaluated_on']}:"]
    lines += [_row(*row) for row in rows]
    if "paired_last" in reached:
        lines.append("beyond the paper, using translations into the source's style:")
        for name in ("last", "selected"):
            value = reached[f"paired_{name}"]
            lines.append(_row(f"adapted, both images, {name}", value, f"  (paired_{name})"))
        lines.append(_row("source network on translations", accuracy["source_translated"], ""))
    minutes = sum(result["seconds"].values()) / 60
    hours = result.get("device_hours", 0.0)  # absent in results of earlier versions
    lines.append(
        f"  {minutes:.1f} minutes in the stages, {hours:.2f} device hours; outputs in {workdir}"
    )
    return lines + (["  smoke run: metrics are not meaningful"] if smoke else [])


def _row(meaning: str, accuracy: float | None, name: str) -> str:
    shown = "no labels" if accuracy is None else f"{accuracy:7.2%}"
    return f"  {meaning:36} {shown}{name}"
