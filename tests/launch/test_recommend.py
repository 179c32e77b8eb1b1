"""Launchers of bulk recommendation: every part of the users is made once, by the real flags."""

import json
import pathlib
import subprocess
from typing import Any

import pytest
import yaml

from dsmoe_jax import main
from dsmoe_jax.serving import recommend_command
from tests.launch import conftest, test_manifests

LAUNCH = conftest.ROOT / "launch"
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"

# `ray`: submissions leave their arguments and end with the exit status that their number has in
# $STATUSES, or, with $STUB_WAIT, once they are stopped; a stop leaves a file.
RAY = """
import json, os, pathlib, sys, time
folder = pathlib.Path(os.environ["RECORDS"])
action, *arguments = sys.argv[2:]
if action == "stop":
    (folder / f"stopped-{arguments[-1].rpartition('-')[2]}").touch()
    sys.exit(0)
number = arguments[arguments.index("--submission-id") + 1].rpartition("-")[2]
new = folder / f"{number}.new"
new.write_text(json.dumps(sys.argv[1:]))
new.rename(folder / f"{number}.json")
if os.environ.get("STUB_WAIT"):
    while not (folder / f"stopped-{number}").exists():
        time.sleep(0.01)
    sys.exit(1)
sys.exit(json.loads(os.environ.get("STATUSES", "{}")).get(number, 0))
"""


def parts_of(commands: list[list[str]]) -> list[tuple[int, int]]:
    """The part that each `-m dsmoe_jax.main recommend ...` makes, by the real parser."""
    parts = []
    for command in commands:
        assert command[:3] == ["-m", "dsmoe_jax.main", "recommend"]
        assert main.PLAIN_MODULE_OF["recommend"] == recommend_command.__name__
        parts.append(recommend_command.parse(command[3:]).part)
    return parts


@pytest.fixture(scope="module")
def jobset() -> dict[str, Any]:
    """The JobSet."""
    return yaml.safe_load((LAUNCH / "jobset-recommend.yaml").read_text())


@pytest.fixture(scope="module")
def job(jobset: dict) -> dict[str, Any]:
    """The specification of its only job."""
    [replicated] = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    return replicated["template"]["spec"]


def test_fields_of_jobset_job_and_pod_exist(jobset: dict, job: dict) -> None:
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(jobset) <= test_manifests.JOBSET_FIELDS[""]
    assert set(jobset["spec"]) <= test_manifests.JOBSET_FIELDS["spec"]
    assert (
        set(jobset["spec"]["failurePolicy"]) <= (test_manifests.JOBSET_FIELDS["spec.failurePolicy"])
    )
    assert set(job) <= test_manifests.JOB_FIELDS
    assert set(job["template"]["spec"]) <= test_manifests.POD_FIELDS
    [container] = job["template"]["spec"]["containers"]
    assert set(container) <= test_manifests.CONTAINER_FIELDS


def test_completion_index_is_the_part(
    job: dict,
    environment: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [container] = job["template"]["spec"]["containers"]
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] <= job["completions"]
    names = {entry["name"]: entry for entry in container["env"]}
    assert names["JOB_COMPLETION_INDEX"]["valueFrom"] == {"fieldRef": {"fieldPath": INDEX}}
    monkeypatch.setenv("PARTS", names["PARTS"]["value"])
    commands = []
    for index in range(job["completions"]):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(index))
        subprocess.run([*container["command"], *container["args"]], check=True)
        commands.append(json.loads((tmp_path / "records" / "0.json").read_text())["argv"])
    total = job["completions"]
    assert parts_of(commands) == [(index, total) for index in range(total)]


def test_pods_read_and_write_on_the_volume_of_the_training(job: dict) -> None:
    claim, _ = yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text())
    pod = job["template"]["spec"]
    [volume] = pod["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    [container] = pod["containers"]
    [mount] = container["volumeMounts"]
    options = recommend_command.parse(container["args"])
    for path in (options.bundle, options.users, options.out):
        assert pathlib.Path(path).is_relative_to(mount["mountPath"])


def test_a_part_is_tried_again_by_itself_but_not_after_bad_input(job: dict) -> None:
    # Required by the interface wherever an index has a limit of its own.
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["backoffLimitPerIndex"] > 0
    assert job["maxFailedIndexes"] <= job["completions"]
    bad, evicted = job["podFailurePolicy"]["rules"]
    assert bad == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}
    assert evicted["action"] == "Ignore"
    assert evicted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


@pytest.fixture
def ray(environment: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A `ray` that records; returns the folder of its records."""
    conftest.write_program(environment / "ray", RAY)
    return tmp_path / "records"


def submit(*arguments: str) -> subprocess.CompletedProcess:
    command = [str(LAUNCH / "ray-recommend.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def submitted(folder: pathlib.Path) -> list[list[str]]:
    """What `ray` was given, by part."""
    paths = sorted(folder.glob("*.json"), key=lambda path: int(path.stem))
    return [json.loads(path.read_text()) for path in paths]


def test_ray_gets_one_job_for_each_part(ray: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUS", "2")
    flags = ["b", "--users=a b.parquet", "--out=l.parquet", "--k=7"]
    done = submit("3", *flags)
    assert done.returncode == 0, done.stderr
    runs = submitted(ray)
    options = [run[: run.index("--")] for run in runs]
    entries = [run[run.index("--") + 1 :] for run in runs]
    assert parts_of([entry[1:] for entry in entries]) == [(0, 3), (1, 3), (2, 3)]
    for option, entry in zip(options, entries, strict=True):
        assert option[:2] == ["job", "submit"]
        # Options of `ray job submit`, each with a value (Ray 2.60).
        assert option[2::2] == [
            "--submission-id",
            "--entrypoint-num-gpus",
            "--entrypoint-num-cpus",
        ]
        assert option[5::2] == ["2", "1"]
        assert entry[0] == "python" and entry[4:-2] == flags
    assert len({option[3] for option in options}) == 3


@pytest.mark.parametrize(("statuses", "status"), [({}, 0), ({"2": 1}, 1), ({"1": 3, "2": 1}, 3)])
def test_the_largest_status_is_returned(
    statuses: dict[str, int], status: int, ray: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATUSES", json.dumps(statuses))
    assert submit("2", "b", "--users=u.csv", "--out=l.parquet").returncode == status


@pytest.mark.parametrize("arguments", [[], ["0", "b"], ["b", "--users=u.csv"], ["2"]])
def test_parts_and_a_bundle_are_asked_for(arguments: list[str], ray: pathlib.Path) -> None:
    done = submit(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: launch/ray-recommend.sh NUM_PARTS BUNDLE")
    assert submitted(ray) == []


def test_a_signal_stops_every_job(ray: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_WAIT", "1")
    command = [str(LAUNCH / "ray-recommend.sh"), "2", "b", "--users=u.csv", "--out=l.parquet"]
    with subprocess.Popen(command) as running:
        while len(submitted(ray)) < 2:
            assert running.poll() is None
        running.terminate()
        assert running.wait(timeout=60) == 1
    assert {path.name for path in ray.glob("stopped-*")} == {"stopped-1", "stopped-2"}
