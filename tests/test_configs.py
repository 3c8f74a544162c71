"""Configs: an argument of words and settings, overrides that keep types, and errors that help."""

import functools
import re
import subprocess
import sys

import commands
import jax
import pytest
from ml_collections import ConfigDict

from configs import digits, office
from daaa_jax import config_files, validate
from daaa_jax.errors import UserError
from daaa_jax.experiment.workdir import identity_settings
from daaa_jax.runtime.mesh import data_mesh

TASKS = ["embedded", "mnist2mnistm"]


# The argument


@pytest.mark.parametrize(
    ("argument", "name", "limit"),
    [
        ("", "embedded", 0),
        ("embedded", "embedded", 0),
        ("mnist2mnistm", "mnist2mnistm", 0),
        ("smoke", "embedded", 256),
        ("embedded,smoke", "embedded", 256),
        ("mnist2mnistm,smoke", "mnist2mnistm", 256),
    ],
)
def test_argument_names_the_task_and_whether_it_is_a_smoke_run(argument, name, limit):
    config = digits.get_config(argument)
    assert (config.data.name, config.data.limit) == (name, limit)


def test_no_argument_is_embedded():
    assert digits.get_config().to_dict() == digits.get_config("embedded").to_dict()


def test_settings_in_the_argument_come_after_the_words_whatever_the_order():
    config = digits.get_config("adapt.beta=0.3,pair.epochs=7,smoke,data.limit=9")
    assert (config.adapt.beta, config.pair.epochs, config.data.limit) == (0.3, 7, 9)


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("smok", "smoke"),
        ("mnist2mnist_m", "mnist2mnistm"),
        ("embeded,smoke", "embedded"),
        ("adapt.bata=0.3", "adapt.beta"),
        ("em.treshold=0.5", "em.threshold"),
        ("pair.optimizer.learningrate=1", "pair.optimizer.learning_rate"),
        ("adapt.mix.tf=0.5", "adapt.mix.t_f"),
        ("adapt.beta.x=0.3", "adapt.beta"),
    ],
)
def test_unknown_word_or_setting_names_the_nearest(argument, nearest):
    wrong = argument.split(",")[0].split("=")[0]
    with pytest.raises(ValueError) as error:
        digits.get_config(argument)
    words = {word.strip(".") for word in re.findall(r"[\w.]+", str(error.value))}
    assert {wrong, nearest} <= words


def test_word_that_is_near_to_none_lists_all_words():
    with pytest.raises(ValueError, match="embedded, mnist2mnistm, mnist2usps, smoke"):
        digits.get_config("xyz")


def test_two_tasks_are_refused():
    with pytest.raises(ValueError, match="embedded,mnist2mnistm"):
        digits.get_config("embedded,mnist2mnistm")


# Overrides


@pytest.mark.parametrize(
    ("setting", "text", "value"),
    [
        ("adapt.beta", "1", 1.0),
        ("adapt.beta", "3e-1", 0.3),
        ("adapt.rounds", "3", 3),
        ("adapt.restart", "False", False),
        ("adapt.restart", "false", False),
        ("run.deterministic", "true", True),
        ("adapt.measure", "l1", "l1"),
        ("data.dir", "/a/b=c", "/a/b=c"),
        ("adapt.layers", "conv[12]", "conv[12]"),
        ("seed", "7", 7),
        ("data.expected_counts.mnist_train", "0", 0),
    ],
)
def test_override_keeps_the_type_of_the_setting(setting, text, value):
    config = digits.get_config(f"{setting}={text}")
    for name in setting.split("."):
        config = config[name]
    assert config == value and type(config) is type(value)


@pytest.mark.parametrize(
    ("setting", "text", "kind"),
    [
        ("adapt.rounds", "2.5", "int"),
        ("adapt.rounds", "many", "int"),
        ("adapt.beta", "high", "float"),
        ("adapt.beta", "", "float"),
        ("adapt.restart", "no", "bool"),
        ("adapt.restart", "1", "bool"),
        ("pair.epochs", "True", "int"),
    ],
)
def test_value_of_another_type_is_refused(setting, text, kind):
    with pytest.raises(ValueError, match=rf"{setting}={text}.*\b{kind}\b"):
        digits.get_config(f"{setting}={text}")


GOOD = {bool: ("True", True), int: ("7", 7), float: ("1", 1.0), str: ("x", "x")}
BAD = {bool: ["1", "no", ""], int: ["2.5", "x", "True"], float: ["x", "", "True"], str: []}


def settings_by_type(config, prefix=""):
    """One setting of each type in each group."""
    found = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            found |= settings_by_type(value, f"{prefix}{name}.")
        else:
            found[prefix, type(value)] = f"{prefix}{name}"
    return found


def loaded_or_refused(*arguments):
    try:
        return config_files.load(*arguments).to_dict()
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("file", ["digits", "folder"])
def test_both_spellings_of_a_setting_give_the_same_value_and_the_same_error(file):
    tried = set()
    for (_, kind), name in settings_by_type(config_files.load(file)).items():
        if kind is tuple:  # has commas, which the argument cannot have
            continue
        good, value = GOOD[kind]
        for text in [good, *BAD[kind]]:
            in_argument = loaded_or_refused(f"{file}:{name}={text}")
            assert in_argument == loaded_or_refused(file, {name: text}), (name, text)
            if text == good:
                found = functools.reduce(dict.__getitem__, name.split("."), in_argument)
                assert found == value and type(found) is kind, name
            else:
                assert name in in_argument and isinstance(in_argument, str), (name, text)
            tried.add((kind, text))
    assert len(tried) == 4 + sum(map(len, BAD.values()))
    for name in ("adapt.bta", "adapt", "adapt.beta.x"):
        assert loaded_or_refused(f"{file}:{name}=1") == loaded_or_refused(file, {name: "1"})


def test_config_takes_no_new_setting():
    config = config_files.load("digits:smoke")
    with pytest.raises(AttributeError, match="bta"):
        config.adapt.bta = 1.0


@pytest.mark.parametrize(
    "text",
    ["import nothing_at_all", "def get_config(", "x = 1", "def get_config(): return {}[1]"],
)
def test_mistake_in_a_config_file_is_one_line(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(f"--config={path}")) as error:
        config_files.load(str(path))
    assert "\n" not in str(error.value)


def test_another_package_called_configs_is_left_alone(tmp_path):
    """Also with a config file that imports one of ours, and a module beside it."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("")
    (tmp_path / "configs" / "theirs.py").write_text("name = 'theirs'")
    (tmp_path / "beside.py").write_text("rounds = 7")
    (tmp_path / "mine.py").write_text(
        "import beside\n"
        "from configs import digits\n"
        "def get_config():\n"
        "    config = digits.get_config('smoke')\n"
        "    config.adapt.rounds = beside.rounds\n"
        "    return config\n"
    )
    code = (
        "import configs, daaa_jax; assert daaa_jax.load_config('digits:smoke').smoke; "
        "assert daaa_jax.load_config('mine.py').adapt.rounds == 7; "
        "import configs.theirs; assert configs.theirs.name == 'theirs'; "
        "assert daaa_jax.load_config('folder:smoke').smoke"
    )
    place = {"PYTHONPATH": str(commands.ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=commands.environment() | place,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# Settings that depend on others


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["refresh_every", "start_step"])
def test_em_follows_the_length_of_a_round_unless_set(task, name):
    config = digits.get_config(task)
    assert config.em[name] == config.adapt.round_steps
    assert digits.get_config(f"{task},adapt.round_steps=17").em[name] == 17
    config.adapt.round_steps = 18  # as --config.adapt.round_steps=18 does
    assert config.em[name] == 18

    for changes in (f"em.{name}=1,adapt.round_steps=17", f"adapt.round_steps=17,em.{name}=1"):
        config = digits.get_config(f"{task},{changes}")
        assert (config.em[name], config.adapt.round_steps) == (1, 17)
    config.adapt.round_steps = 19
    assert config.em[name] == 1


@pytest.mark.parametrize(
    ("name", "rounds"), [("folder:cpu", 2), ("office:w2a", 2), ("visda", 2), ("folder:smoke", 1)]
)
def test_em_of_photos_starts_after_some_rounds_unless_set(name, rounds):
    argument = f"{name}{',' if ':' in name else ':'}"
    config = config_files.load(f"{argument}adapt.round_steps=17")
    assert config.em.start_step == 17 * rounds and config.em.refresh_every == 17
    config.adapt.round_steps = 18  # as --config.adapt.round_steps=18 does
    assert config.em.start_step == 18 * rounds
    config = config_files.load(f"{argument}em.start_step=0,adapt.round_steps=17")
    assert config.em.start_step == 0


def test_benchmark_has_the_papers_settings_but_for_additions_and_sizes():
    config = digits.get_config("mnist2mnistm")
    assert (config.em.posterior, config.em.second_view) == ("paired", "posterior")
    assert config.em.decay == 0.6
    assert (config.augment.shift, config.adapt.recolour) == (2, 0.5)
    optimizer = config.adapt.optimizer
    assert (optimizer.learning_rate, optimizer.schedule) == (2e-3, "linear")
    assert config.model.widths == (64, 128, 256)
    assert (config.adapt.rounds, config.adapt.round_steps) == (20, 500)
    assert config.pair.epochs * 60000 == 30000 * config.pair.batch_size  # updates
    assert config.adapt.mix.to_dict() == {"s": 0.35, "t_f": 0.15, "t": 0.35, "s_f": 0.15}
    assert config.em.threshold == 0.95
    for stage in (config.source, config.adapt):
        assert stage.optimizer.name == "adam"
    assert config.source.optimizer.learning_rate == 1e-3
    assert (config.pair.cycle_weight, config.pair.identity_weight) == (10.0, 0.0)
    assert (config.pair.pool_size, config.pair.adversarial) == (50, "lsgan")
    assert (config.adapt.attention, config.adapt.measure) == ("sum_squares", "l2")
    assert config.adapt.restart and config.em.normalize == "batch"
    assert config.data.limit == config.data.development_size == 0


@pytest.mark.parametrize("argument", [*TASKS, *(f"{task},smoke" for task in TASKS)])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_every_config_runs_on_one_to_eight_devices_as_it_is(argument, devices):
    validate.check_settings(digits.get_config(argument), data_mesh(jax.devices()[:devices]))


# Invalid settings


@pytest.mark.parametrize(
    "change",
    [
        "pair.adversarial=wgan",
        "pair.epochs=0",
        "pair.pool_size=-1",
        "adapt.init=sorce",
        "adapt.batch_norm=freeze",
        "adapt.attention=sum",
        "adapt.measure=cosine",
        "adapt.round_steps=0",
        "adapt.mix.t=-0.1",
        "adapt.optimizer.name=adamw",
        "source.optimizer.schedule=cosine",
        "em.normalize=mean",
        "em.refresh_every=0",
        "em.decay=1.5",
        "em.refresh_every=7",
        "run.log_every=0",
        "evaluate.batch_size=0",
        "adapt.batch_size=-8",
        "source.optimizer.decay_fraction=2.0",
        "adapt.layers=conv(",
        "data.seed=-1",
        "data.limit=-1",
        "data.source_holdout=1.5",
    ],
)
def test_invalid_setting_is_named_before_anything_starts(change):
    name, value = change.split("=")
    with pytest.raises(UserError) as error:
        validate.check_settings(digits.get_config(change), data_mesh(jax.devices()[:1]))
    assert name in str(error.value) and value in str(error.value)


def test_empty_mix_is_refused():
    nothing = ",".join(f"adapt.mix.{group}=0" for group in ("s", "t_f", "t", "s_f"))
    with pytest.raises(UserError, match=r"adapt\.mix"):
        validate.check_settings(digits.get_config(nothing), data_mesh(jax.devices()[:1]))


def test_batch_that_the_devices_do_not_divide_is_named():
    config = digits.get_config("adapt.batch_size=100")
    with pytest.raises(UserError, match=r"adapt\.batch_size\b.*\b100\b.*\b96\b.*\b104\b"):
        validate.check_settings(config, data_mesh(jax.devices()[:8]))


def test_resumed_run_keeps_the_batch_size_that_it_started_with_on_other_devices():
    started = office.get_config("w2a")
    validate.resolve(started, 8)
    assert (started.pair.batch_size, started.pair.pools) == (8, 8)
    resumed = office.get_config("w2a")
    validate.resolve(resumed, 4, started)
    assert identity_settings(resumed) == identity_settings(started)
