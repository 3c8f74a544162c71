"""How commands end: one line for every failure, and quietly where nobody reads their output."""

import csv
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import commands
import pytest
from photo_trees import write_domain

from daaa_jax.errors import UserError, writable
from daaa_jax.runtime import distributed, exit_codes, preemption

NAMES = ("写真", "café")
# Command → its flags, and a function that it calls.
COMMANDS = {
    "train": (("--config=digits:smoke", "--workdir={run}"), "pipeline.run"),
    "predict": (("--workdir={run}", "{images}"), "inference.load_network"),
    "export": (("--workdir={run}", "--out={new}"), "inference.load_network"),
    "check": (("{images}",), "data.folders.find"),
    "convert": (("{images}", "--out={new}"), "data.folders.find"),
    "reproduce": (("table1", "--workdir={sweep}", "--only_show"), "paper.cells.share"),
    "report": (("--workdir={run}",), "report.page.write"),
}
MODULES = {"train": "main"}
LOGGED_BESIDE_THE_RUN = {"train", "predict", "export", "reproduce", "report"}


@pytest.fixture
def places(tiny_run, tmp_path) -> dict[str, Path]:
    """Folders for the flags of the commands."""
    (tmp_path / "sweep").mkdir()
    images = write_domain(tmp_path / "web", NAMES, each=2)
    return {"run": tiny_run, "images": images, "new": tmp_path / "new", "sweep": tmp_path / "sweep"}


def run(command: str, places: dict[str, Path], *more: str, **how) -> subprocess.CompletedProcess:
    flags, _ = COMMANDS[command]
    module = MODULES.get(command, command)
    return commands.call(module, *(flag.format(**places) for flag in flags), *more, **how)


def assert_logged(done: subprocess.CompletedProcess, folder: Path) -> None:
    """One line for an injected failure, which names the file with its traceback."""
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "RuntimeError" in line and "an injected failure" in line
    (log,) = (Path(word) for word in line.split() if word.endswith(".log"))
    assert log.parent == folder
    text = log.read_text()
    assert "Traceback" in text and "of two lines" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_unexpected_error_is_one_line_and_its_traceback_is_in_a_file(command, places, tmp_path):
    (tmp_path / "tmp").mkdir()
    variables = {"TMPDIR": str(tmp_path / "tmp")}
    done = run(command, places, fails=COMMANDS[command][1], variables=variables)
    if command in LOGGED_BESIDE_THE_RUN:
        assert_logged(done, places["sweep" if command == "reproduce" else "run"])
    else:
        assert_logged(done, tmp_path / "tmp")


@pytest.mark.parametrize("command", COMMANDS)
def test_unexpected_error_before_the_flags_are_read_is_logged_in_the_temporary_folder(
    command, tmp_path
):
    variables = {"TMPDIR": str(tmp_path)}
    for words in ([MODULES.get(command, command)], ["__main__", command]):
        done = commands.call(*words, fails="command_line.Parser", variables=variables)
        assert_logged(done, tmp_path)


def test_unexpected_error_is_one_line_where_no_file_can_be_written(monkeypatch, capsys):
    def fail(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkstemp", fail)
    with pytest.raises(SystemExit) as ended:
        exit_codes.run(lambda: {}["a name"])
    line = capsys.readouterr().err
    assert ended.value.code == 1
    assert "KeyError" in line and "a name" in line and line.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "more"),
    [
        *((command, ()) for command in COMMANDS if command != "train"),
        *((command, ("--help",)) for command in COMMANDS),
        ("predict", ("--out=-",)),
    ],
)
def test_command_whose_output_nobody_reads_ends_quietly(command, more, places):
    done = run(command, places, *more, is_read=False)
    if command == "predict" and not more:  # prints to standard error only
        assert done.returncode == 0
    else:
        assert done.returncode == -signal.SIGPIPE
        assert "Error" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_is_written_before_python_ends(unbuffered):
    """Else Python reports an error of its own at its end."""
    program = "from daaa_jax.runtime import exit_codes; exit_codes.run(lambda: print('a line'))"
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}

    def end(stdout) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        return done.returncode, done.stderr

    reader, writer = os.pipe()
    os.close(reader)
    assert end(writer) == (-signal.SIGPIPE, "")
    os.close(writer)
    with open("/dev/full", "w") as full:
        code, line = end(full)
    assert code == 1 and line.startswith("error: ") and line.count("\n") == 1


def test_broken_pipe_is_not_blamed_on_the_file_that_is_written():
    with pytest.raises(BrokenPipeError), writable("--out=records"):
        raise BrokenPipeError


def test_other_broken_pipe_is_an_error(monkeypatch, capfd, tmp_path):
    """Of a pipe within the program, as opposed to its output."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def fail():
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(SystemExit) as ended:
        exit_codes.run(fail)
    line = capfd.readouterr().err
    assert ended.value.code == 1 and "BrokenPipeError" in line and line.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_that_the_output_cannot_encode_are_escaped(encoding, places):
    how = {"variables": {"PYTHONIOENCODING": encoding}}
    done = run("check", places, **how)
    assert done.returncode == 0 and not done.stderr
    assert r"\u5199\u771f: 2" in done.stdout

    done = run("predict", places, "--out=-", **how)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    paths = [row["file"] for row in csv.DictReader(done.stdout.splitlines())]
    assert len(paths) == 4 and any(r"\u5199\u771f" in path for path in paths)

    done = commands.call("predict", f"--workdir={places['run']}", "写真.jpg", **how)
    assert done.returncode == 1 and r"\u5199\u771f.jpg" in done.stderr
    assert done.stderr.count("\n") == 1

    listed = commands.call("__main__", "--help", **how)
    assert listed.returncode == 0 and re.search("^  predict ", listed.stdout, re.MULTILINE)


def test_workdir_whose_name_is_not_valid_text_is_read_but_not_trained_in(tiny_run, places):
    """As with an accent in the locale C."""
    run = Path(os.fsdecode(os.fsencode(tiny_run) + b"\xe9"))
    tiny_run.rename(run)
    new = Path(f"{run}-model")
    for command in (
        ("predict", f"--workdir={run}", places["images"]),
        ("export", f"--workdir={run}", f"--out={new}"),
        ("report", f"--workdir={run}"),
    ):
        done = commands.call(*command)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (run / "report" / "index.html").is_file() and (new / "README.md").is_file()
    line = commands.refused("main", "--config=digits:smoke", f"--workdir={new}")
    assert r"\udce9-model" in line and "--workdir" in line and "\n" not in line


@pytest.mark.parametrize(
    ("error", "code", "waits"),
    [
        (KeyError("a bug"), 1, False),
        (UserError("a mistake"), 1, False),
        (distributed.Unreached("too late"), distributed.RESTART, False),
        (preemption.Preempted("saved"), distributed.RESTART, True),
    ],
)
def test_one_of_several_processes_does_not_wait_for_the_others(
    error, code, waits, monkeypatch, capsys, tmp_path
):
    """Unless all of them were preempted together."""

    def fail():
        raise error

    ended = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(distributed, "started", lambda: True)
    monkeypatch.setattr(distributed, "end_at_once", ended.append)
    with pytest.raises(SystemExit) as end:
        exit_codes.run(fail)
    assert end.value.code == code and ended == ([] if waits else [code])
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_home_of_nobody_is_named_in_one_line(command, places):
    """Whatever the path is for: read or written."""
    flags, _ = COMMANDS[command]
    for name in (name for name in places if f"{{{name}}}" in "".join(flags)):
        done = run(command, places | {name: "~nobody-here/x"})
        # The dataset check goes on with other folders.
        error, *more = (done.stdout if command == "check" else done.stderr).splitlines()
        assert done.returncode == 1 and len(more) == (command == "check")
        assert error.startswith("error: ") and "~nobody-here/x" in error and "Error" not in error


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_need_no_docstrings(command, places):
    """`python -OO` removes them, and assertions."""
    flags = [flag.format(**places) for flag in COMMANDS[command][0]]
    if command in ("train", "reproduce"):  # take long
        flags = ["--help"]
    module = MODULES.get(command, command)
    done = commands.fresh(module, *flags, variables={"PYTHONOPTIMIZE": "2"})
    assert done.returncode == 0, done.stderr
