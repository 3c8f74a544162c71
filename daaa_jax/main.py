"""The command: `python -m daaa_jax.main --config=configs/digits.py`."""

import re
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from daaa_jax.errors import UserError
from daaa_jax.runtime import exit_codes

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The config, and after a colon its argument: configs/digits.py:mnist2mnistm."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where everything is written; by default runs/<config and its settings>."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Of several processes, where no launcher says it: HOST:PORT of the first."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process_id", None, "Which this one is, counted from 0.")
_STAGE = flags.DEFINE_string("stage", "all", "One of pair, translate, source, adapt; or all.")
_PROFILE = flags.DEFINE_bool(
    "profile", False, "Trace 20 updates of each stage that trains, into profile/ of the workdir."
)


def main(_: list[str]) -> None:
    """Runs the pipeline and prints the result."""
    # Imported here, so that a misspelt flag is answered at once.
    from daaa_jax.runtime import allocator

    allocator.keep_freed_memory()
    from daaa_jax import pipeline
    from daaa_jax.experiment.stages import OURS
    from daaa_jax.experiment.workdir import default_workdir
    from daaa_jax.runtime import compilation, distributed

    config = _CONFIG.value
    if config.run.deterministic:
        compilation.be_deterministic()
    distributed.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)

    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells of every file
    if config.run.compilation_cache:
        compilation.enable_cache()
    flag = flags.FLAGS["config"]
    changed = config_flags.get_override_values(flag)
    workdir = _WORKDIR.value or default_workdir(flag.config_filename, changed)
    result = pipeline.run(config, workdir, _STAGE.value, _PROFILE.value)
    if not result:
        print(f"stage {_STAGE.value} finished in {workdir}")
        return
    accuracy = result["accuracy"]
    method = "" if config.method == OURS else f"method {config.method}, "
    print(f"{result['task']}, {method}seed {result['seed']}, {result['evaluated_on']}:")
    if "source_test" in accuracy:
        print(f"  source network on the source domain  {_percent(accuracy['source_test'])}")
    else:
        print(f"  source network on what it learnt on  {_percent(accuracy['source_train'])}")
    print(f"  source network on the target domain  {_percent(accuracy['source_only'])}")
    for name, meaning in (
        ("last", "after the last round"),
        ("selected", "chosen without labels"),
        ("oracle", "best by target labels"),
    ):
        print(f"  {f'adapted, {meaning}':36} {_percent(accuracy['target_test'][name])}  ({name})")
    if "paired_last" in accuracy["target_test"]:
        reached = accuracy["target_test"]
        print("beyond the paper, with translations into the source's style:")
        for name in ("last", "selected"):
            value = _percent(reached[f"paired_{name}"])
            print(f"  {f'adapted, both images, {name}':36} {value}  (paired_{name})")
        print(f"  source network on translations       {_percent(accuracy['source_translated'])}")
    minutes = sum(result["seconds"].values()) / 60
    print(f"  {minutes:.1f} minutes in the stages; all of it in {workdir}")
    if config.smoke:
        print("  a trial in little: the figures say nothing but that every stage runs")


def _percent(accuracy: float | None) -> str:
    return "no labels" if accuracy is None else f"{accuracy:7.2%}"


def command() -> None:
    """Parses the flags and runs; see `endings.run` for how it ends."""
    exit_codes.run(lambda: app.run(main, flags_parser=_parse))


def _parse(arguments: list[str]) -> list[str]:
    if not any(re.match("--?(config=|config$|help|version)", word) for word in arguments):
        raise UserError("--config is missing: for instance --config=configs/digits.py")
    for word in arguments:
        path = word.partition("=")[2].partition(":")[0]
        if re.match("--?config=", word) and not Path(path).is_file():
            known = ", ".join(sorted(str(found) for found in Path("configs").glob("*.py")))
            there = f"there are {known}" if known else "run from the root of the repository"
            raise UserError(f"--config={path}: there is no such file; {there}")
    try:
        rest = flags.FLAGS(arguments)
    except ImportError as error:
        raise UserError(
            f"the config cannot be imported ({error}): run from the root of the repository"
        ) from error
    except (
        flags.Error,
        AttributeError,
        KeyError,
        OSError,
        SyntaxError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(_misspelt(arguments, _reason(error))) from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag: flags look like --config=configs/digits.py")
    return rest


def _misspelt(arguments: list[str], reason: str) -> str:
    """The reason; where ml_collections says which word is wrong, which setting it stands in."""
    found = re.fullmatch(r'(\S+) Did you mean "(\S+)" instead of "\S+"\?', reason)
    for word in arguments if found else ():
        name = word.lstrip("-").partition("=")[0].removeprefix("config.")
        *parents, last = name.split(".")
        if last == found[1]:
            meant = ".".join([*parents, found[2]])
            return f"setting {name!r} is unknown; did you mean {meant!r}?"
    return reason


def _reason(error: BaseException) -> str:
    """The message of an error, without the traceback that ml_collections puts into it."""
    while "Traceback" in str(error) and error.__context__ is not None:
        error = error.__context__
    # The text of a KeyError is the repr of its message, and ml_collections puts it into others.
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(re.sub(r"\\n|\\'", " ", str(text)).strip("\"'").split())


if __name__ == "__main__":
    command()
