"""The launch files: valid shell, known fields, and the right reaction to every exit code.

Cloud and cluster commands are replaced by scripts that record how they were called.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parent.parent / "launch"
SCRIPTS = ("local.sh", "tpu_vm.sh", "slurm.sbatch")
# The fields of the schemas cited in the files, as far as the files use them.
JOBSET = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "network": {"enableDNSHostnames": bool},
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [{"name": str, "action": str, "onJobFailureReasons": [str]}],
        },
        "replicatedJobs": [
            {
                "name": str,
                "replicas": int,
                "template": {
                    "spec": {
                        "parallelism": int,
                        "completions": int,
                        "completionMode": str,
                        "backoffLimit": int,
                        "podFailurePolicy": {
                            "rules": [
                                {
                                    "action": str,
                                    "onExitCodes": {
                                        "containerName": str,
                                        "operator": str,
                                        "values": [int],
                                    },
                                }
                            ]
                        },
                        "template": {
                            "spec": {
                                "serviceAccountName": str,
                                "restartPolicy": str,
                                "terminationGracePeriodSeconds": int,
                                "nodeSelector": dict,
                                "containers": [
                                    {
                                        "name": str,
                                        "image": str,
                                        "command": [str],
                                        "args": [str],
                                        "resources": {"limits": dict},
                                        "volumeMounts": [{"name": str, "mountPath": str}],
                                    }
                                ],
                                "volumes": [
                                    {"name": str, "persistentVolumeClaim": {"claimName": str}}
                                ],
                            }
                        },
                    }
                },
            }
        ],
    },
}
SKY = {
    "workdir": str,
    "resources": {"use_spot": bool, "job_recovery": {"recover_on_exit_codes": [int]}},
    "envs": dict,
    "setup": str,
    "run": str,
}


def assert_fields(value, schema, where: str) -> None:
    """Every field is known, and of the type that the schema gives it."""
    if isinstance(schema, dict):
        assert isinstance(value, dict), where
        assert value.keys() <= schema.keys(), f"{where}: {value.keys() - schema.keys()}"
        for name, item in value.items():
            assert_fields(item, schema[name], f"{where}.{name}")
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, where
        for item in value:
            assert_fields(item, schema[0], where)
    else:
        assert isinstance(value, schema), where


def test_yaml_files_have_known_fields():
    jobset = yaml.safe_load((LAUNCH / "gke/jobset.yaml").read_text())
    assert_fields(jobset, JOBSET, "jobset")
    (job,) = jobset["spec"]["replicatedJobs"]
    pods = job["template"]["spec"]
    assert pods["parallelism"] == pods["completions"] == 8 and pods["completionMode"] == "Indexed"
    (rule,) = pods["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [1]
    (container,) = pods["template"]["spec"]["containers"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    account, role, binding = yaml.safe_load_all((LAUNCH / "gke/service-account.yaml").read_text())
    name = pods["template"]["spec"]["serviceAccountName"]
    assert account["metadata"]["name"] == binding["subjects"][0]["name"] == name
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert all(set(rule["verbs"]) <= {"get", "list"} for rule in role["rules"])
    assert_fields(yaml.safe_load((LAUNCH / "sky.yaml").read_text()), SKY, "sky")


def shellcheck(*arguments: str) -> subprocess.CompletedProcess:
    program = shutil.which("shellcheck") or shutil.which(
        "shellcheck", path=str(Path(sys.executable).parent)
    )
    if program is None:
        pytest.skip("shellcheck is not installed (tests/requirements.txt)")
    return subprocess.run([program, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_pass_shellcheck(name):
    done = shellcheck("--shell=bash", str(LAUNCH / name))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("part", ["setup", "run"])
def test_shell_in_the_sky_file_passes_shellcheck(part, tmp_path):
    script = tmp_path / "part.sh"
    content = yaml.safe_load((LAUNCH / "sky.yaml").read_text())[part]
    script.write_text(f"#!/usr/bin/env bash\n{content}")
    done = shellcheck(str(script))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", sorted(LAUNCH.rglob("*.*")), ids=lambda path: path.name)
def test_every_file_shows_how_to_see_logs_and_stop_and_has_no_default_project(path):
    text = path.read_text()
    if path.suffix != ".md" and path.name != "service-account.yaml":
        assert all(re.search(rf"(?i)^# {word}\b", text, re.MULTILINE) for word in ("logs", "stop"))
    assert not re.search(r"(PROJECT|ZONE|ACCELERATOR|BUCKET)=[a-z0-9-]+\}", text)


# Exit codes


def stand_in(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "{folder}/calls"\n{body}\n')
    path.chmod(0o755)


def start(script: str, folder: Path, *arguments: str, **variables: str):
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | variables
    done = subprocess.run(
        [LAUNCH / script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
    )
    calls = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    return done, calls


def codes(folder: Path, *each: int) -> str:
    """A command that ends with these codes, one after another, and then with 0."""
    (folder / "codes").write_text("".join(f"{code}\n" for code in each))
    return f'code=$(head -n 1 "{folder}/codes"); sed -i 1d "{folder}/codes"; exit "${{code:-0}}"'


@pytest.mark.parametrize(
    ("ends", "code", "starts"), [([], 0, 1), ([1], 1, 1), ([75, 134], 0, 3), ([75] * 9, 75, 4)]
)
def test_local_restarts_a_run_that_can_resume(ends, code, starts, tmp_path):
    stand_in(tmp_path, "python", codes(tmp_path, *ends))
    done, calls = start(
        "local.sh", tmp_path, "--config=c", PYTHON=str(tmp_path / "python"), RESTARTS="3"
    )
    assert done.returncode == code, done.stderr
    assert calls == ["python -m daaa_jax.main --config=c"] * starts


def test_local_gives_each_process_its_number(tmp_path):
    stand_in(tmp_path, "python", "echo out")
    done, calls = start(
        "local.sh",
        tmp_path,
        "--config=c",
        PYTHON=str(tmp_path / "python"),
        PROCESSES="3",
        PORT="1234",
        LOGS=str(tmp_path / "logs"),
    )
    assert done.returncode == 0 and done.stdout == "out\n"
    common = "python -m daaa_jax.main --config=c --coordinator=localhost:1234 --num_processes=3"
    assert sorted(calls) == [f"{common} --process_id={number}" for number in range(3)]
    assert (tmp_path / "logs" / "2.log").read_text() == "out\n"


def test_local_forwards_sigterm_and_does_not_restart(tmp_path):
    waits = f'touch "{tmp_path}/up"; sleep 60 > /dev/null 2>&1 & wait'
    stand_in(tmp_path, "python", f'trap "exit 75" TERM; {waits}')
    with subprocess.Popen(
        [LAUNCH / "local.sh", "--config=c"], env=os.environ | {"PYTHON": str(tmp_path / "python")}
    ) as process:
        while not (tmp_path / "up").exists():
            assert process.poll() is None
        process.terminate()
        assert process.wait(60) == 75
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_slurm_task_forwards_sigterm_to_the_run(tmp_path):
    """Slurm signals only a task's first process; the run saves, and the job is queued again."""
    stand_in(
        tmp_path,
        "srun",
        'while [ "$1" != bash ]; do shift; done; "$@" & task=$!\n'
        f'while [ ! -e "{tmp_path}/up" ]; do sleep 0.1; done; kill -TERM "$task"; wait "$task"',
    )
    stand_in(tmp_path, "scontrol", "")
    waits = f'touch "{tmp_path}/up"; sleep 60 > /dev/null 2>&1 & wait'
    stand_in(tmp_path, "python", f'trap "touch {tmp_path}/saved; exit 75" TERM; {waits}')
    done, calls = start(
        "slurm.sbatch",
        tmp_path,
        PYTHON=str(tmp_path / "python"),
        WORKDIR="/share/run",
        SLURM_JOB_ID="7",
        SLURM_SUBMIT_DIR=str(tmp_path),
    )
    assert done.returncode == 75, done.stderr
    assert (tmp_path / "saved").exists() and "scontrol requeue 7" in calls


@pytest.mark.parametrize(
    ("node", "other", "ends"),
    [(0, False, 0), (1, False, 1), (75, False, 75)] + [(75, True, 1), (134, True, 1)],
)
def test_sky_node_does_not_resume_after_an_error_that_a_person_must_fix(
    node, other, ends, tmp_path
):
    content = yaml.safe_load((LAUNCH / "sky.yaml").read_text())["run"]
    script = tmp_path / "run.sh"
    script.write_text(content.replace("/share", str(tmp_path / "share")))
    stand_in(tmp_path, "sleep", "")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    stand_in(tmp_path / ".venv/bin", "python", f"exit {node}")
    (tmp_path / "share/runs").mkdir(parents=True)
    failed = tmp_path / "share/runs/failed-job_7_2"
    if other:
        failed.touch()
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_TASK_ID": "job 7/2",
        "ARGUMENTS": "--config=c --config.data.dir=/d",
    }
    done = subprocess.run(["bash", script], env=environment, cwd=tmp_path, check=False)
    assert done.returncode == ends
    assert failed.exists() == (other or node == 1)
    called = (tmp_path / ".venv/bin/calls").read_text()
    assert (
        "--config=c --config.data.dir=/d --coordinator=10.0.0.1:29500 --num_processes=2" in called
    )


@pytest.mark.parametrize(("end", "requeued"), [(0, False), (1, False), (75, True), (137, True)])
def test_slurm_job_is_queued_again_if_it_can_resume(end, requeued, tmp_path):
    stand_in(tmp_path, "srun", 'while [ "$1" != bash ]; do shift; done; "$@"')
    stand_in(tmp_path, "scontrol", "")
    stand_in(tmp_path, "python", f"exit {end}")
    done, calls = start(
        "slurm.sbatch",
        tmp_path,
        "--config=c d",
        PYTHON=str(tmp_path / "python"),
        WORKDIR="/share/run",
        SLURM_JOB_ID="7",
        SLURM_SUBMIT_DIR=str(tmp_path),
    )
    assert done.returncode == end, done.stderr
    assert "python -m daaa_jax.main --workdir=/share/run --config=c d" in calls
    assert ("scontrol requeue 7" in calls) == requeued


def test_slurm_job_names_a_missing_variable(tmp_path):
    done, calls = start("slurm.sbatch", tmp_path, WORKDIR="")
    assert done.returncode and "WORKDIR" in done.stderr and not calls


GCLOUD = """
case "$*" in
  *"queued-resources describe"*)
    state=$(head -n 1 "{folder}/states"); sed -i 1d "{folder}/states"
    if [ "$state" = ABSENT ]; then echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; fi
    if [ "$state" = OFFLINE ]; then echo "ERROR: no route to host" >&2; exit 1; fi
    echo "${{state:-ACTIVE}}" ;;
  *"cat ~/daaa_jax.code"*)
    code=$(head -n 1 "{folder}/codes"); sed -i 1d "{folder}/codes"
    if [ "$code" = lost ]; then exit 255; fi
    if [ "$code" = stop ]; then printf '75\\n75\\nstop\\n'; exit; fi
    printf '%s\\n%s\\n' "${{code:-0}}" 0 ;;
esac
"""


@pytest.mark.parametrize(
    ("states", "ends", "code", "runs", "creates"),
    [
        (["ACTIVE"], ["0"], 0, 1, 0),
        (["ACTIVE"], ["1"], 1, 1, 0),
        (["ACTIVE", "SUSPENDED", "ACTIVE"], ["lost", "0"], 0, 2, 1),
        (["ACTIVE", "ACTIVE", "ACTIVE"], ["75", "134", "0"], 0, 3, 0),
        # Somebody has stopped the run, or deleted the slice: nothing that costs money is started.
        (["ACTIVE"], ["stop"], 0, 1, 0),
        (["ACTIVE", "ABSENT"], ["lost"], 1, 1, 0),
        (["ABSENT"], [], 1, 0, 0),
        (["FAILED"], [], 1, 0, 0),
        # Its state could not be read for a while.
        (["OFFLINE", "ACTIVE"], ["0"], 0, 1, 0),
    ],
)
def test_tpu_slice_is_requested_again_and_the_run_resumes(
    states, ends, code, runs, creates, tmp_path
):
    (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
    (tmp_path / "codes").write_text("".join(f"{end}\n" for end in ends))
    stand_in(tmp_path, "gcloud", GCLOUD.format(folder=tmp_path))
    stand_in(tmp_path, "sleep", "")
    done, _ = start(
        "tpu_vm.sh",
        tmp_path,
        "run",
        "--config=configs/office.py:w2a,pod",
        "--config.data.dir=/mnt/share/of fice",
        PROJECT="p",
        ZONE="z",
        NAME="n",
        ACCELERATOR="v5litepod-32",
        RUNTIME="r",
        SPOT="true",
        REPOSITORY="https://example.org/d.git",
        SHARE="host:/export",
        WORKDIR="/mnt/share/run",
    )
    assert done.returncode == code, done.stderr
    text = (tmp_path / "calls").read_text()
    assert text.count("-m daaa_jax.main --workdir=/mnt/share/run --config=configs/") == runs
    assert text.count("queued-resources create n") == creates
    assert not runs or "--config.data.dir=/mnt/share/of\\ fice" in text
    assert not creates or ("--accelerator-type=v5litepod-32" in text and "--spot" in text)


def test_setup_of_tpu_hosts_is_tried_twice(tmp_path):
    stand_in(tmp_path, "gcloud", 'case "$*" in *describe*) echo ACTIVE ;; *pip*) exit 1 ;; esac')
    stand_in(tmp_path, "sleep", "")
    names = ("PROJECT", "ZONE", "NAME", "REPOSITORY", "SHARE", "WORKDIR")
    done, calls = start("tpu_vm.sh", tmp_path, "run", **dict.fromkeys(names, "x"))
    assert done.returncode == 1 and "billed" in done.stderr.lower()
    assert sum("git fetch" in call for call in calls) == 2


def test_pattern_that_stops_a_tpu_run_does_not_match_its_shell():
    """The pattern matches the run's own command line, and not that of a shell around it."""
    text = (LAUNCH / "tpu_vm.sh").read_text()
    pattern = re.search(r"^process='(.*)'$", text, re.MULTILINE)[1]
    assert re.search(pattern, ".venv/bin/python -m daaa_jax.main --workdir=/x")
    assert not re.search(
        pattern, "bash -c cd daaa_jax; .venv/bin/python -m daaa_jax.main --workdir"
    )


def test_tpu_script_without_arguments_shows_how_to_use_it(tmp_path):
    done, _ = start("tpu_vm.sh", tmp_path, PROJECT="p", ZONE="z", NAME="n")
    assert done.returncode == 1 and "launch/tpu_vm.sh delete" in done.stdout
