"""The installed package: its parts, requirements and commands, and the order of imports."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import commands
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "daaa_jax"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMMANDS = ("train", "predict", "export", "check", "convert", "reproduce", "report")
# Each imports only from those before it.
LAYERS = (
    ("errors",),
    ("command_line", "config_files"),
    ("losses", "em", "schedules"),
    ("attention",),
    ("runtime",),
    ("data",),
    ("models",),
    ("experiment",),
    ("evaluation",),
    ("training",),
    ("cyclegan", "translation", "source", "adaptation", "baselines"),
    ("inference",),
    ("validate",),
    ("report",),
    ("pipeline",),
    ("api",),
    ("paper",),
    ("main", "predict", "export", "check", "convert", "reproduce"),
    ("__main__",),
)


def requirements(path: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / path).read_text().splitlines())
    return [line for line in lines if line]


def imports(path: Path) -> set[str]:
    """The parts of this package that a module imports, also inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "daaa_jax":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
    return found


def test_every_part_has_a_layer():
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert parts - {"__init__", "__pycache__"} == {name for layer in LAYERS for name in layer}


def test_imports_point_one_way():
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imports(path) - {own}:
            assert level[name] < level[own], f"{path.relative_to(ROOT)} imports {name}"


def test_stages_do_not_import_each_other():
    stages = ("cyclegan", "translation", "source", "adaptation")
    for stage in stages:
        assert not imports(PACKAGE / f"{stage}.py") & set(stages)


def test_every_folder_of_the_package_is_installed():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == names | {"daaa_jax.configs"}


def test_packages_that_are_imported_are_required():
    named = {re.match(r"[\w-]+", line)[0].lower() for line in requirements("requirements.txt")}
    names = {"PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn"}
    names |= {"orbax": "orbax-checkpoint", "ml_collections": "ml-collections", "absl": "absl-py"}
    names |= {"tensorflow_datasets": "tensorflow-datasets", "jaxlib": "jax"}
    optional = {"jax2onnx", "onnxruntime", "h5py", "huggingface_hub", "daaa_jax", "configs"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found = [node.module] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            top = {name.split(".")[0] for name in found} - optional - sys.stdlib_module_names
            assert {names.get(name, name).lower() for name in top} <= named, path


def test_requirements_and_extras_agree():
    extras = PROJECT["project"]["optional-dependencies"]
    assert extras["test"] == requirements("tests/requirements.txt")
    (jax,) = (line for line in requirements("requirements.txt") if line.startswith("jax>"))
    for name in ("cuda12", "tpu"):
        assert extras[name] == [jax.replace("jax", f"jax[{name}]", 1)]
    optional = requirements("tests/requirements-optional.txt")
    for line in extras["onnx"]:
        name = re.match(r"[\w-]+", line)[0]
        assert any(other.startswith(name) for other in optional)


def test_ci_runs_the_test_command_of_the_readme():
    (command,) = (
        line for line in (ROOT / "README.md").read_text().splitlines() if "-m pytest" in line
    )
    assert f"\n{command} || exit 1\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_daaa_refuses_an_unknown_flag(command):
    done = commands.call("__main__", command, "--nonsense")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_daaa_lists_its_commands_and_refuses_others():
    listed = commands.call("__main__").stdout
    assert all(f"\n  {command} " in listed for command in COMMANDS)
    done = commands.call("__main__", "trian")
    assert done.returncode == 1 and "trian" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_command_refuses_an_unknown_flag_with_one_line_and_exit_code_1(command):
    module = {"train": "main"}.get(command, command)
    done = commands.call(module, "--nonsense")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert commands.call(module, "--help").returncode == 0
