"""What is deployed: objects that KubeRay takes, an image that has what they need."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deploy" / "kuberay"
SCHEMAS = ROOT.parent / "shared" / "kuberay"
MANIFESTS = sorted(path for path in KUBERAY.rglob("*.yaml") if path.name != "kustomization.yaml")
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text("utf-8"))


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The part that is a RayCluster's."""
    return manifest["spec"] if manifest["kind"] == "RayCluster" else manifest["spec"]["rayClusterSpec"]


def pods(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = cluster_of(manifest)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


def test_there_is_a_job_for_each_stage_and_a_cluster_to_work_with() -> None:
    kinds = [(path.parent.name, read(path)["kind"]) for path in MANIFESTS]
    assert kinds == [("build", "RayJob"), ("interactive", "RayCluster"), ("search", "RayJob")]


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason="KubeRay's schemas are not at ../shared/kuberay")
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.parent.name)
def test_kuberay_knows_every_field(path: Path) -> None:
    manifest = read(path)
    schema = json.loads((SCHEMAS / f"{manifest['kind'].lower()}.v1.schema.json").read_text("utf-8"))
    errors = Draft7Validator(schema).iter_errors(manifest)
    assert [f"{'/'.join(map(str, error.path))}: {error.message}" for error in errors] == []


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.parent.name)
def test_gpus_come_on_demand_and_the_head_has_no_room_for_work(path: Path) -> None:
    cluster = cluster_of(read(path))
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    (workers,) = cluster["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["replicas"]) == (0, 0)
    assert workers["maxReplicas"] >= 1
    (container,) = workers["template"]["spec"]["containers"]
    # KubeRay tells Ray of as many GPUs as the limit has.
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    keys = {toleration["key"] for toleration in workers["template"]["spec"]["tolerations"]}
    assert keys >= {"nvidia.com/gpu", "cloud.google.com/gke-spot"}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.parent.name)
def test_pods_are_nobody_special_and_have_their_secrets_by_reference(path: Path) -> None:
    for pod in pods(read(path)):
        assert pod["restartPolicy"] == "Never"  # as autoscaler v2 wants it
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["image"] == "evoray"  # the kustomization puts yours in its place
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        plain = {entry["name"] for entry in container["env"] if "value" in entry}
        assert plain == {"RAY_JOB_STOP_WAIT_TIME_S", "HF_HOME"}
        secrets = {
            entry["name"]: entry["valueFrom"]["secretKeyRef"]["name"]
            for entry in container["env"]
            if "valueFrom" in entry
        }
        assert secrets.pop("HF_TOKEN") == "evoray-hub"
        assert set(secrets.values()) == {"evoray-s3"}
        assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= secrets.keys()


@pytest.mark.parametrize("path", [path for path in MANIFESTS if read(path)["kind"] == "RayJob"], ids=str)
def test_a_failed_job_goes_on_on_a_new_cluster_and_leaves_none(path: Path) -> None:
    spec = read(path)["spec"]
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    # What a retry goes on with must not lie in a pod.
    for option in ("--store", "--run") if path.parent.name == "search" else ("--store",):
        assert re.search(rf"{option} s3://\S+", spec["entrypoint"])


@pytest.mark.parametrize("folder", ["build", "interactive", "search"])
def test_kustomizations_name_what_there_is(folder: str) -> None:
    found = read(KUBERAY / folder / "kustomization.yaml")
    assert {path for name in found["resources"] for path in (KUBERAY / folder).glob(name)} == {
        path for path in MANIFESTS if path.parent.name == folder
    }
    assert [(KUBERAY / folder / name).resolve() for name in found["components"]] == [KUBERAY / "common"]
    (image,) = read(KUBERAY / "common" / "kustomization.yaml")["images"]
    assert image["name"] == "evoray"


def test_the_image_has_the_versions_that_the_manifests_and_the_package_want() -> None:
    pinned = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.M))
    assert {cluster_of(read(path))["rayVersion"] for path in MANIFESTS} == {pinned["RAY"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = {requirement.name: requirement for requirement in map(Requirement, project["dependencies"])}
    for name in ("ray", "torch", "transformers"):
        assert pinned[name.upper()] in wanted[name].specifier
    assert Requirement(f"python{project['requires-python']}").specifier.contains(pinned["PYTHON"].partition("-")[0])
    (image,) = read(KUBERAY / "common" / "kustomization.yaml")["images"]
    assert image["newTag"] == project["version"]
    packages = read(ROOT / "deploy" / "runtime-env.yaml")["pip"]["packages"]
    assert packages[1:] == [f"{name}=={pinned[name.upper()]}" for name in ("torch", "transformers")]
    assert packages[0].endswith(f"/evoray-{project['version']}-py3-none-any.whl")


def test_the_image_is_made_of_what_there_is_and_runs_as_nobody_special() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    assert set(bases) == {"python:${PYTHON}"}
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M):
        for source in sources.split():
            assert (ROOT / source).exists()
            assert source in kept
    users = re.findall(r"^USER (\S+)", DOCKERFILE, re.M)
    assert users[-1:] == ["1000:1000"]
    assert {pod["securityContext"]["runAsUser"] for path in MANIFESTS for pod in pods(read(path))} == {1000}
