"""launch/jobset.yaml and launch/sky.yaml: their fields, and who their processes say they are.

The sets of fields below are those of the JobSet v1alpha2, batch/v1 and core/v1 interfaces and of
SkyPilot's task schema that make sense here; a misspelt field is in none of them.
"""

import pathlib
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from dsmoe_jax import main

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"

JOBSET_FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {
        "replicatedJobs",
        "network",
        "successPolicy",
        "failurePolicy",
        "suspend",
        "coordinator",
        "managedBy",
        "ttlSecondsAfterFinished",
        "volumeClaimPolicies",
    },
    "spec.network": {"enableDNSHostnames", "subdomain", "publishNotReadyAddresses"},
    "spec.failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
    "spec.failurePolicy.rules": {
        "name",
        "action",
        "onJobFailureReasons",
        "onJobFailureMessagePatterns",
        "targetReplicatedJobs",
    },
    "spec.replicatedJobs": {"name", "groupName", "template", "replicas", "dependsOn"},
}
JOB_FIELDS = {
    "parallelism",
    "completions",
    "completionMode",
    "backoffLimit",
    "backoffLimitPerIndex",
    "maxFailedIndexes",
    "activeDeadlineSeconds",
    "podFailurePolicy",
    "podReplacementPolicy",
    "successPolicy",
    "suspend",
    "template",
    "ttlSecondsAfterFinished",
}
POD_FIELDS = {
    "containers",
    "initContainers",
    "volumes",
    "restartPolicy",
    "terminationGracePeriodSeconds",
    "nodeSelector",
    "tolerations",
    "affinity",
    "serviceAccountName",
    "imagePullSecrets",
    "hostNetwork",
    "dnsPolicy",
}
CONTAINER_FIELDS = {
    "name",
    "image",
    "command",
    "args",
    "env",
    "ports",
    "resources",
    "volumeMounts",
    "workingDir",
    "imagePullPolicy",
    "securityContext",
}
SKY_FIELDS = {
    "name",
    "workdir",
    "num_nodes",
    "resources",
    "envs",
    "secrets",
    "file_mounts",
    "volumes",
    "setup",
    "run",
    "config",
}
SKY_RESOURCE_FIELDS = {
    "infra",
    "accelerators",
    "cpus",
    "memory",
    "use_spot",
    "disk_size",
    "network_tier",
    "image_id",
    "labels",
    "job_recovery",
}
SKY_RECOVERY_FIELDS = {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"}

CONFIG = """
from dsmoe_jax.config import schema
def get_config(variant):
    return schema.Experiment(
        dataset="stub",
        data=schema.DataConfig(),
        model=schema.MatcherConfig(),
        teacher=schema.TeacherConfig(),
    )
"""


@pytest.fixture(scope="module")
def manifest() -> tuple[dict[str, Any], dict[str, Any]]:
    """The volume claim and the JobSet."""
    claim, jobset = yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text())
    return claim, jobset


@pytest.fixture(scope="module")
def job(manifest: tuple) -> dict[str, Any]:
    """The specification of the only replicated job."""
    [replicated] = manifest[1]["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    return replicated["template"]["spec"]


@pytest.fixture(scope="module")
def container(job: dict) -> dict[str, Any]:
    """The only container of a pod."""
    [only] = job["template"]["spec"]["containers"]
    return only


def parse_with(arguments: list[str], folder: pathlib.Path) -> main.Options:
    """Parses a launcher's arguments, with a stub in place of the configuration file."""
    (folder / "stub.py").write_text(CONFIG)
    return main.parse(["main", *arguments, f"--config={folder}/stub.py"])


def test_kinds_and_versions(manifest: tuple) -> None:
    claim, jobset = manifest
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert claim["metadata"]["name"]
    assert jobset["metadata"]["name"]


@pytest.mark.parametrize("path", JOBSET_FIELDS)
def test_fields_of_the_jobset_exist(path: str, manifest: tuple) -> None:
    node: Any = manifest[1]
    for name in filter(None, path.split(".")):
        node = node[name]
    for entry in node if isinstance(node, list) else [node]:
        assert set(entry) <= JOBSET_FIELDS[path]


def test_fields_of_job_pod_and_container_exist(job: dict, container: dict) -> None:
    assert set(job) <= JOB_FIELDS
    assert set(job["template"]) == {"spec"}
    assert set(job["template"]["spec"]) <= POD_FIELDS
    assert set(container) <= CONTAINER_FIELDS


def test_coordinator_is_the_first_pods_name_in_the_headless_service(
    manifest: tuple, container: dict
) -> None:
    jobset = manifest[1]
    spec, name = jobset["spec"], jobset["metadata"]["name"]
    assert spec["network"]["enableDNSHostnames"] is True
    [replicated] = spec["replicatedJobs"]
    [port] = container["ports"]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert values["DSMOE_COORDINATOR"] == (
        f"{name}-{replicated['name']}-0-0.{spec['network']['subdomain']}:{port['containerPort']}"
    )


def test_every_pod_is_its_own_process(
    job: dict, container: dict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]
    annotation = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    for index in range(job["completions"]):
        for entry in container["env"]:
            if "value" in entry:
                assert isinstance(entry["value"], str)
                monkeypatch.setenv(entry["name"], entry["value"])
            else:
                assert entry["valueFrom"] == {"fieldRef": {"fieldPath": annotation}}
                monkeypatch.setenv(entry["name"], str(index))
        assert container["command"] == ["python", "-m", "dsmoe_jax.main"]
        options = parse_with(container["args"], tmp_path)
        coordinator = container["env"][0]["value"]
        assert options.processes == (coordinator, job["completions"], index)


def test_workdir_and_data_are_on_the_shared_volume(
    manifest: tuple, job: dict, container: dict, tmp_path: pathlib.Path
) -> None:
    claim = manifest[0]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    volumes = {volume["name"]: volume for volume in job["template"]["spec"]["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(volumes) == set(mounts)
    [shared] = [name for name in volumes if "persistentVolumeClaim" in volumes[name]]
    assert volumes[shared]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    options = parse_with(container["args"], tmp_path)
    root = pathlib.Path(mounts[shared])
    assert options.workdir.is_relative_to(root)
    assert pathlib.Path(options.experiment.data.raw_dir).is_relative_to(root)


def test_pods_may_save_and_restart_together_but_not_after_bad_input(
    manifest: tuple, job: dict
) -> None:
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 120
    # Required by the interface wherever there is a podFailurePolicy.
    assert pod["restartPolicy"] == "Never"
    assert job["backoffLimit"] == 0
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}
    policy = manifest[1]["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    [rule] = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


@pytest.fixture(scope="module")
def task() -> dict[str, Any]:
    """The SkyPilot task."""
    return yaml.safe_load((LAUNCH / "sky.yaml").read_text())


def test_fields_of_the_task_exist(task: dict) -> None:
    assert set(task) <= SKY_FIELDS
    assert set(task["resources"]) <= SKY_RESOURCE_FIELDS
    assert set(task["resources"]["job_recovery"]) <= SKY_RECOVERY_FIELDS
    assert isinstance(task["num_nodes"], int)
    assert all(isinstance(value, str) for value in task["envs"].values())


def test_saved_task_is_recovered(task: dict) -> None:
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [130]


@pytest.mark.parametrize("section", ["setup", "run"])
def test_scripts_of_the_task_parse(section: str, task: dict) -> None:
    subprocess.run(["bash", "-n"], input=task[section], text=True, check=True)


def test_every_node_is_its_own_process(
    task: dict,
    environment: pathlib.Path,
    records: Callable,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    for name, value in task["envs"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FLAGS", "--config.seed=3 --mode=student")
    monkeypatch.setenv("SKYPILOT_NODE_IPS", "10.0.0.5\n10.0.0.6\n10.0.0.7")
    monkeypatch.setenv("SKYPILOT_NUM_NODES", "3")
    for rank in range(3):
        monkeypatch.setenv("SKYPILOT_NODE_RANK", str(rank))
        subprocess.run(["bash", "-c", task["run"]], check=True, cwd=tmp_path)
    for rank, record in enumerate(records()):
        for name, value in record["env"].items():
            monkeypatch.setenv(name, value)
        assert record["argv"][:2] == ["-m", "dsmoe_jax.main"]
        assert record["argv"][2:4] == ["--config", task["envs"]["CONFIG"]]
        options = parse_with(record["argv"][2:], tmp_path)
        assert options.processes == ("10.0.0.5:8476", 3, rank)
        assert (options.experiment.seed, options.mode) == (3, "student")
        assert options.experiment.checkpoint.every_steps > 0
        [(mount, volume)] = task["volumes"].items()
        assert volume
        assert options.workdir == pathlib.Path(mount, task["envs"]["RUN"])
    assert len(records()) == 3
