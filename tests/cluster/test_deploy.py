"""The deploy files: manifests and container files."""

from __future__ import annotations

import copy
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.placement import NodeConfig, demands, place
from cluster.submit import JOB_ENVIRONMENT
from configs.errors import UserError
from configs.load import load
from configs.schema import RunConfig
from tests.cluster.dashboards import (
    DEPLOY,
    ROOT,
)

KUBERAY = DEPLOY / "kuberay"
PROMETHEUS = DEPLOY / "prometheus"
CRDS = {"RayJob": "ray.io_rayjobs.yaml", "RayCluster": "ray.io_rayclusters.yaml"}


def documents(name: str) -> list[Any]:
    """The objects in a manifest."""
    return [one for one in yaml.safe_load_all((KUBERAY / name).read_text("utf-8")) if one]


def rayjob() -> Any:
    (job,) = documents("rayjob.yaml")
    return job


def groups(spec: Any) -> dict[str, Any]:
    """The worker groups of a RayCluster by name."""
    return {group["groupName"]: group for group in spec["workerGroupSpecs"]}


def containers(spec: Any) -> Iterator[Any]:
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        (container,) = group["template"]["spec"]["containers"]
        yield container


# --- KubeRay ---


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A CRD's schema as an API server validates with it when it is strict: no unknown keys."""
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {key: strict(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            closed[inner] = strict(schema[inner])
    return closed


@cache
def published(folder: Path, kind: str) -> dict[str, Any]:
    """The schema of KubeRay's objects of a kind, version v1."""
    crd = yaml.load((folder / "kuberay" / CRDS[kind]).read_text("utf-8"), yaml.CSafeLoader)
    (version,) = [one for one in crd["spec"]["versions"] if one["name"] == "v1"]
    return strict(version["schema"]["openAPIV3Schema"])


def check(manifest: Any, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema).validate(manifest)


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml"])
def test_manifests_satisfy_kuberays_published_schema(data, name):
    (manifest,) = documents(name)
    assert manifest["apiVersion"] == "ray.io/v1"
    check(manifest, published(data, manifest["kind"]))


WORKER = ("rayClusterSpec", "workerGroupSpecs", 0)


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ((), "backOffLimit", 3),
        (WORKER, "replica", 3),
        (WORKER, "replicas", "1"),
        (WORKER, "rayStartParams", {"num-cpus": 0}),
        ((*WORKER, "template", "spec", "containers", 0), "resource", {}),
    ],
)
def test_a_mistake_in_a_manifest_is_found(data, place, key, value):
    job = copy.deepcopy(rayjob())
    part = job["spec"]
    for step in place:
        part = part[step]
    part[key] = value
    with pytest.raises(jsonschema.ValidationError):
        check(job, published(data, "RayJob"))


def test_the_volume_and_the_service_satisfy_the_schemas_that_kuberay_embeds(data):
    head = published(data, "RayCluster")["properties"]["spec"]["properties"]["headGroupSpec"]
    service_schema = head["properties"]["headService"]
    pod = head["properties"]["template"]["properties"]["spec"]["properties"]
    claim_schema = pod["volumes"]["items"]["properties"]["ephemeral"]["properties"]
    claim, service = documents("common.yaml")
    check(service, service_schema)
    check(claim["metadata"], service_schema["properties"]["metadata"])
    check(claim["spec"], claim_schema["volumeClaimTemplate"]["properties"]["spec"])


def test_both_manifests_describe_the_same_cluster():
    (cluster,) = documents("raycluster.yaml")
    assert rayjob()["spec"]["rayClusterSpec"] == cluster["spec"]


def machine(name: str, group: Any) -> list[NodeConfig]:
    """The nodes of a worker group as Ray will count them."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    node = NodeConfig(
        name=name,
        cpus=float(limits["cpu"]),
        gpus=int(limits.get("nvidia.com/gpu", 0)),
        memory_gib=float(limits["memory"].removesuffix("Gi")),
        labels=group["labels"],
    )
    return [node.model_copy(update={"name": f"{name}-{i}"}) for i in range(group["replicas"])]


def nodes_of(workers: dict[str, Any]) -> list[NodeConfig]:
    return [node for name, group in workers.items() for node in machine(name, group)]


def submitted(*overrides: str) -> RunConfig:
    """The configuration that the RayJob's entrypoint trains."""
    python, _, module, command, preset, *own = shlex.split(rayjob()["spec"]["entrypoint"])
    assert (python, module, command) == ("python", "cluster", "train")
    return load(ROOT / Path(preset).relative_to("/selfplay"), [*own, *overrides])


def test_the_submitted_run_fits_the_cluster_and_more_players_need_more_nodes_of_one_group():
    workers = groups(rayjob()["spec"]["rayClusterSpec"])
    assert len(place(demands(submitted()), nodes_of(workers))) == 8
    more = demands(submitted("rollout.replicas=6"))
    with pytest.raises(UserError, match="GPUs"):
        place(more, nodes_of(workers))
    workers["reward"]["replicas"] += 2
    with pytest.raises(UserError, match="labelled selfplay-group=rollout"):
        place(more, nodes_of(workers))
    workers["reward"]["replicas"] -= 2
    workers["rollout"]["replicas"] += 2
    place(more, nodes_of(workers))


def test_every_actor_of_the_submitted_run_is_bound_to_its_group():
    bound = {demand.fleet: demand.labels["selfplay-group"] for demand in demands(submitted())}
    assert bound == {
        "learner": "learner", "rollout": "rollout", "judge": "reward",
        "reward_preference": "reward",
    }  # fmt: skip


def test_nodes_come_for_actors_without_a_place_and_none_leaves_that_a_run_begins_with():
    spec = rayjob()["spec"]["rayClusterSpec"]
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"  # the one that reads labels
    workers = groups(spec)
    for group in workers.values():
        group["replicas"] = group["minReplicas"]
    assert len(place(demands(submitted()), nodes_of(workers))) == 8


def commanded(name: str) -> list[str]:
    """The words of the command that a manifest's comments show, from `ray job submit` on."""
    comments = re.findall(r"^#   (.*)$", (KUBERAY / name).read_text("utf-8"), re.MULTILINE)
    text = " ".join(line.strip().removesuffix("\\") for line in comments)
    return shlex.split(text[text.index("ray job submit") : text.index(" kubectl exec")])


def test_the_command_by_hand_is_that_of_the_rayjob_with_time_to_stop():
    words = commanded("raycluster.yaml")
    environment = json.loads(words[words.index("--runtime-env-json") + 1])["env_vars"]
    assert environment == JOB_ENVIRONMENT
    assert yaml.safe_load(rayjob()["spec"]["runtimeEnvYAML"]) == {"env_vars": JOB_ENVIRONMENT}
    _, _, _, _, _, *by_hand = words[words.index("--") + 1 :]
    _, _, _, _, _, *own = shlex.split(rayjob()["spec"]["entrypoint"])
    assert by_hand == own


def test_the_walk_names_the_label_of_the_manifests():
    text = (ROOT / "docs" / "cluster.md").read_text("utf-8")
    assert set(re.findall(r"[\w-]+(?==rollout\b)", text)) == {"selfplay-group"}


@pytest.mark.parametrize("preset", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_no_preset_listens_beyond_this_machine_unless_told_to(preset):
    assert load(preset).metrics.host == "127.0.0.1"


def test_groups_have_sizes_and_a_label_of_their_own():
    workers = groups(rayjob()["spec"]["rayClusterSpec"])
    assert list(workers) == ["learner", "rollout", "reward"]
    for name, group in workers.items():
        assert group["labels"] == {"selfplay-group": name}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_a_job_that_failed_goes_on_where_every_pod_sees_its_checkpoints():
    spec = rayjob()["spec"]
    assert spec["backoffLimit"] > 0
    claim, _ = documents("common.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in [
        spec["rayClusterSpec"]["headGroupSpec"],
        *spec["rayClusterSpec"]["workerGroupSpecs"],
    ]:
        pod = group["template"]["spec"]
        (volume,) = pod["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (mount,) = pod["containers"][0]["volumeMounts"]
        assert mount["name"] == volume["name"]
        assert submitted().run_dir.is_relative_to(mount["mountPath"])


def test_prometheus_finds_the_driver():
    config, spec = submitted(), rayjob()["spec"]["rayClusterSpec"]
    assert config.metrics.host == "0.0.0.0"
    _, service = documents("common.yaml")
    head = spec["headGroupSpec"]["template"]
    assert (
        service["spec"]["selector"].items()
        <= (head["metadata"]["labels"] | {"ray.io/node-type": "head"}).items()
    )
    port = {one["name"]: one for one in service["spec"]["ports"]}["discovery"]
    assert port["targetPort"] == config.metrics.discovery_port
    open_ports = [one["containerPort"] for one in head["spec"]["containers"][0]["ports"]]
    assert config.metrics.discovery_port in open_ports
    (job,) = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    assert job["honor_labels"]  # selfplay_fleet_members has a label `fleet` of its own
    (discovery,) = job["http_sd_configs"]
    assert discovery["url"] == f"http://{service['metadata']['name']}:{port['port']}/"


def test_tokens_are_asked_for_and_come_out_of_secrets():
    spec = rayjob()["spec"]["rayClusterSpec"]
    assert spec["authOptions"]["mode"] == "token"
    made = re.findall(
        r"create secret generic (\S+) --from-literal=(\w+)", (KUBERAY / "common.yaml").read_text()
    )
    asked = {(spec["authOptions"]["secretName"], "auth_token")}
    for container in containers(spec):
        for variable in container["env"]:
            if re.search("TOKEN|KEY|SECRET|PASSWORD", variable["name"]):
                reference = variable["valueFrom"]["secretKeyRef"]
                asked.add((reference["name"], reference["key"]))
    assert asked == set(made)


# --- container files ---


def instructions(path: Path, name: str) -> list[str]:
    """The arguments of a container file's instructions of one name."""
    text = re.sub(r"\\\n", " ", path.read_text("utf-8"))
    return re.findall(rf"^{name} (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_container_files_copy_what_setup_needs_and_what_is_there(variant):
    path = DEPLOY / f"Dockerfile.{variant}"
    copied = {source for one in instructions(path, "COPY") for source in one.split()[:-1]}
    assert not [source for source in copied if not (ROOT / source).exists()]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.partition(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    licences = set(project["project"]["license-files"])
    assert copied == packages | licences | {
        "Makefile", "pyproject.toml", "requirements", project["project"]["readme"],
    }  # fmt: skip
    assert f"make setup VARIANT={variant}" in instructions(path, "RUN")
    assert (ROOT / "requirements" / f"{variant}.txt").is_file()
    assert instructions(path, "WORKDIR") == ["/selfplay"]


def test_manifests_run_the_gpu_image_with_the_ray_that_is_pinned():
    spec = rayjob()["spec"]["rayClusterSpec"]
    assert f"ray=={spec['rayVersion']}" in (ROOT / "requirements" / "gpu.txt").read_text().split()
    (tag,) = re.findall(r"docker build .* -t (\S+)", (DEPLOY / "Dockerfile.gpu").read_text())
    assert {container["image"] for container in containers(spec)} == {tag}
