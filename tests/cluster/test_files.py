"""The files of cluster/: their schemas, their versions, and what must not stand in them."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import scpo_ray

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
CLOUDS = [CLUSTER / "aws.yaml", CLUSTER / "gcp.yaml"]
KUBERNETES = [CLUSTER / "raycluster.yaml", CLUSTER / "rayjob.yaml"]
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line
)

# The part of KubeRay's v1 API that is used here.
RAY_CLUSTER = {
    "rayVersion",
    "authOptions",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
RAY_JOB = {
    "entrypoint",
    "runtimeEnvYAML",
    "backoffLimit",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "rayClusterSpec",
}
HEAD_GROUP = {"rayStartParams", "template"}
WORKER_GROUP = {*HEAD_GROUP, "groupName", "replicas", "minReplicas", "maxReplicas"}
POD = {"restartPolicy", "securityContext", "containers", "volumes"}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def of_kind(path: Path, kind: str) -> dict[str, Any]:
    (found,) = (document for document in documents(path) if document["kind"] == kind)
    return found


def ray_cluster(path: Path) -> dict[str, Any]:
    if path.name == "rayjob.yaml":
        return of_kind(path, "RayJob")["spec"]["rayClusterSpec"]
    return of_kind(path, "RayCluster")["spec"]


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_that_can_be_run(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.stat().st_mode & 0o111 == 0o111
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_end_no_ray_but_their_own(script):
    commands = [line for line in script.read_text().splitlines() if not line.startswith("#")]
    assert not re.search(r"ray stop|pkill|killall", "\n".join(commands))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.name)
def test_cloud_files_are_what_the_cluster_launcher_takes(path):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(path.read_text()))

    validate_config(config)
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert config["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0}
    assert gpu["min_workers"] == 0 < gpu["max_workers"] == config["max_workers"]
    assert config["provider"]["cache_stopped_nodes"] is False


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.name)
def test_clouds_install_the_pinned_versions_and_share_the_token(path):
    config = yaml.safe_load(path.read_text())
    setup = "\n".join(config["setup_commands"])

    assert setup.count("-c ~/scpo_ray/constraints.txt") == 2
    assert setup.index("constraints.txt torch") < setup.index("constraints.txt ~/scpo_ray")
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert "RAY_AUTH_MODE=token" in setup and "chmod 600 ~/.ray/auth_token" in setup
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.name)
def test_what_the_two_clouds_have_in_common_is_alike(path):
    ours, theirs = (yaml.safe_load(one.read_text()) for one in (path, CLOUDS[0]))

    for name in ("file_mounts", "rsync_exclude", "idle_timeout_minutes", "max_workers"):
        assert ours[name] == theirs[name]
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert ours[name] == theirs[name]


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_files_have_the_parts_of_kuberays_api(path):
    for document in documents(path):
        known = {"PersistentVolumeClaim": "v1", "RayCluster": "ray.io/v1", "RayJob": "ray.io/v1"}
        assert document["apiVersion"] == known[document["kind"]]
        assert set(document["metadata"]) & {"name", "generateName"}
    if path.name == "rayjob.yaml":
        assert set(of_kind(path, "RayJob")["spec"]) == RAY_JOB

    spec = ray_cluster(path)

    assert set(spec) == RAY_CLUSTER
    assert set(spec["headGroupSpec"]) == HEAD_GROUP
    assert [group["groupName"] for group in spec["workerGroupSpecs"]] == ["gpu"]
    for group in spec["workerGroupSpecs"]:
        assert set(group) == WORKER_GROUP
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for pod in pods(spec):
        assert set(pod) == POD
        assert pod["restartPolicy"] == "Never"
        assert pod["securityContext"]["runAsNonRoot"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["resources"]["limits"] == container["resources"]["requests"]
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_runs_the_pinned_ray_with_a_token_gpus_and_a_shared_volume(path):
    spec = ray_cluster(path)

    assert spec["rayVersion"] == PINS["ray"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    _, worker = pods(spec)
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    claim = of_kind(CLUSTER / "raycluster.yaml", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(spec):
        (container,) = pod["containers"]
        assert container["image"].endswith(f"/scpo-ray:{scpo_ray.__version__}")
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
        claims = [v["persistentVolumeClaim"] for v in pod["volumes"] if v["name"] == "shared"]
        assert claims == [{"claimName": claim["metadata"]["name"]}]


def test_the_job_and_the_cluster_that_stays_are_made_alike():
    standing, single = (ray_cluster(path) for path in KUBERNETES)
    assert standing == single


def dockerfile() -> list[list[str]]:
    text = (CLUSTER / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.M)).splitlines()
    return [line.split() for line in lines if line.strip()]


def test_the_image_holds_the_pinned_versions_and_no_root():
    steps = dockerfile()
    words = [" ".join(step) for step in steps]

    assert steps[0] == ["FROM", "python:3.11-slim-bookworm"]
    installs = [word for word in words if "pip install" in word]
    assert len(installs) == 2
    assert all("--constraint /build/constraints.txt" in install for install in installs)
    assert words.index("USER ray") > words.index(installs[-1])
    assert not [word for word in words if re.search("token=|password|secret|AWS_", word, re.I)]


def test_what_the_image_copies_is_there_and_passes_its_ignore_file():
    allowed = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [name for step in dockerfile() if step[0] == "COPY" for name in step[1:-1]]

    assert set(copied) == {"constraints.txt", "pyproject.toml", "README.md", "LICENSE", "scpo_ray"}
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in allowed
    assert "*" in allowed


def test_every_version_named_is_the_pinned_one():
    for path in CLUSTER.iterdir():
        for name, version in re.findall(r"\b([a-z][a-z0-9_-]+)==([0-9][0-9.]*)", path.read_text()):
            assert PINS[name] == version, f"{path.name}: {name}=={version}"


def test_no_file_names_a_machine_a_secret_or_a_registry():
    for path in CLUSTER.iterdir():
        text = path.read_text()
        for place in {ROOT, Path.home()} - {Path("/")}:
            assert f"{place}/" not in text, f"{path.name} names {place}"
        assert not re.search(r"kind: Secret|stringData|AKIA[0-9A-Z]{16}|BEGIN .*KEY", text)
        assert not re.search(r"(auth_token|RAY_AUTH_TOKEN)[\"']?\s*[:=]\s*[\"']?[0-9a-f]{16}", text)
        assert not re.search(r"docker\.io|ghcr\.io|quay\.io|gcr\.io|\.pkg\.dev|amazonaws", text)


def test_the_readme_names_every_file():
    readme = (CLUSTER / "README.md").read_text()
    for path in CLUSTER.iterdir():
        if path.name not in ("README.md", "Dockerfile.dockerignore"):
            assert path.name in readme, path.name
