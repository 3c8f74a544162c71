"""The command `daaa train --config=digits`, or `python -m daaa_jax.main --config=digits`."""

if __name__ == "__main__":  # first, as the imports below may fail
    from daaa_jax.runtime import exit_codes

    exit_codes.run_module("daaa_jax.main")

from collections.abc import Sequence

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
        raise UserError("--config is missing: give one, such as --config=digits")
    config = config_files.load(options.config, settings)
    # Imported here, so that a misspelt flag is reported at once.
    from daaa_jax.runtime import accelerators, allocator, jax_settings

    allocator.keep_freed_memory()
    jax_settings.set_supported()
    from daaa_jax import pipeline
    from daaa_jax.experiment.stages import OURS
    from daaa_jax.experiment.workdir import Workdir, default_workdir
    from daaa_jax.report import templates
    from daaa_jax.runtime import compilation, distributed, error_log

    workdir = options.workdir or default_workdir(options.config, settings)
    error_log.use(Workdir(workdir).path)
    compilation.configure(config.run)
    distributed.start(options.coordinator, options.num_processes, options.process_id)
    jax_settings.check_devices()
    accelerators.warn_if_unused()
    result = pipeline.run(config, workdir, options.stage, options.profile)
    if result:
        shown = {"method": config.method, "ours": config.method == OURS, "smoke": config.smoke}
        shown["data"] = config.data.name
        print(templates.render("result.txt", result=result, workdir=workdir, **shown), end="")
    else:
        print(f"stage {options.stage} finished in {workdir}")


def _parser() -> Parser:
    parser = Parser(
        "train",
        "Adapts a classifier to unlabelled images; rerun the same command to resume.",
        epilog="--config.NAME=VALUE changes a setting (docs/configuration.md). Your own images: "
        "--config=folder:cpu --config.data.source=DIR --config.data.target=DIR, folders or lists",
    )
    parser.add_argument(
        "--config",
        help="required; digits, folder, office, office10, office_home, visda, domainnet or a "
        "config file, and after a colon options (docs/configuration.md): folder:cpu, office10:w2a",
    )
    parser.add_argument(
        "--workdir",
        help="output folder; default: runs/ and the config with its settings, such as "
        "runs/folder-cpu; one with other settings or data is refused",
    )
    parser.add_argument(
        "--stage",
        default="all",
        help="run one stage: pair (the CycleGAN), translate, source (the source network) or adapt; "
        "those that it needs must be finished",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="profile 20 updates of each training stage, into profile/ in the workdir",
    )
    parser.add_argument(
        "--coordinator",
        help="HOST:PORT of process 0, for several machines without Slurm or the like",
    )
    parser.add_argument("--num_processes", type=int, help="number of processes")
    parser.add_argument("--process_id", type=int, help="number of this process, from 0")
    return parser
