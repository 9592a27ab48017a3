"""ray_cluster.yaml and the Kubernetes manifests: checked by Ray's and Kubernetes' schemas, and by `ray up` on moto."""

import copy
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from moto import mock_aws
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "cluster" / "kubernetes"
PROFILES = ("hardshard-head", "hardshard-node")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a token, where Ray may write keys; the working directory is the root, as the config needs."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("planted-token")
    return tmp_path


def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    return loaded


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """ray_cluster.yaml filled in with the network of an account of moto."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        ec2, iam = boto3.client("ec2", region_name="us-east-1"), boto3.client("iam", region_name="us-east-1")
        network = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=network, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
        group = ec2.create_security_group(GroupName="hardshard", Description="nodes", VpcId=network)["GroupId"]
        for name in PROFILES:
            iam.create_instance_profile(InstanceProfileName=name)
        filled = config()
        for kind in filled["available_node_types"].values():
            kind["node_config"] |= {"SubnetIds": [subnet], "SecurityGroupIds": [group]}
            kind["node_config"]["ImageId"] = ec2.describe_images()["Images"][0]["ImageId"]
        yield filled


def test_the_config_is_valid_by_rays_schema(home: Path) -> None:
    prepared = prepare_config(config())
    validate_config(prepared)
    broken = copy.deepcopy(prepared)
    broken["available_node_types"]["gpu"]["min_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        validate_config(broken)


def test_ray_up_starts_every_kind_of_node_in_the_private_network(home: Path, account: dict[str, Any]) -> None:
    ready = _bootstrap_config(account, no_config_cache=True)
    provider = _get_node_provider(ready["provider"], ready["cluster_name"], use_cache=False)
    for name, kind in ready["available_node_types"].items():
        tags = {TAG_RAY_NODE_KIND: "head" if name == "head" else "worker", TAG_RAY_USER_NODE_TYPE: name}
        provider.create_node(kind["node_config"], tags, 1)
    started = boto3.client("ec2", region_name="us-east-1").describe_instances()["Reservations"]
    nodes = {
        tag["Value"]: node
        for reservation in started
        for node in reservation["Instances"]
        for tag in node["Tags"]
        if tag["Key"] == TAG_RAY_USER_NODE_TYPE
    }
    assert set(nodes) == {"head", "gpu", "gpu_spot"}
    assert nodes["gpu_spot"]["InstanceLifecycle"] == "spot"
    assert nodes["head"]["InstanceType"].startswith("m7i")
    groups = {group["GroupId"] for node in nodes.values() for group in node["SecurityGroups"]}
    subnets = {node["SubnetId"] for node in nodes.values()}
    assert subnets == set(account["available_node_types"]["head"]["node_config"]["SubnetIds"])
    assert ready["provider"]["use_internal_ips"]
    assert groups == set(account["available_node_types"]["head"]["node_config"]["SecurityGroupIds"])  # Ray made none of its own
    profiles = {name: node["IamInstanceProfile"]["Arn"].rpartition("/")[2] for name, node in nodes.items()}
    assert profiles == {"head": "hardshard-head", "gpu": "hardshard-node", "gpu_spot": "hardshard-node"}
    assert "planted-token" not in yaml.safe_dump(ready)


def test_versions_and_commands_of_the_config() -> None:
    loaded = config()
    for image in (loaded["docker"]["head_image"], loaded["docker"]["worker_image"]):
        assert re.fullmatch(rf"rayproject/ray:{re.escape(ray.__version__)}-py311-(cpu|gpu)", image)
    assert sum(kind.get("max_workers", 0) for kind in loaded["available_node_types"].values()) == loaded["max_workers"]
    commands = [command for name, value in loaded.items() if name.endswith("commands") for command in value]
    commands += [c for kind in loaded["available_node_types"].values() for c in kind.get("initialization_commands", [])]
    assert commands
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)
    assert "AKIA" not in (text := (ROOT / "ray_cluster.yaml").read_text())
    assert "secret" not in text.lower()
    assert "0.0.0.0" not in text  # noqa: S104


# KubeRay's own fields (github.com/ray-project/kuberay, apis/ray/v1, operator 1.6): required ones first.
CLUSTER = {
    "required": {"headGroupSpec", "workerGroupSpecs", "rayVersion"},
    "allowed": {"enableInTreeAutoscaling", "autoscalerOptions", "authOptions", "headServiceAnnotations", "suspend"},
}
HEAD = {"required": {"rayStartParams", "template"}, "allowed": {"serviceType", "headService", "enableIngress"}}
WORKERS = {
    "required": {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"},
    "allowed": {"replicas", "numOfHosts", "scaleStrategy", "idleTimeoutSeconds"},
}
JOB = {
    "required": {"entrypoint"},
    "allowed": {
        "clusterSelector",
        "submissionMode",
        "rayClusterSpec",
        "shutdownAfterJobFinishes",
        "backoffLimit",
        "runtimeEnvYAML",
    },
}


def manifest(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((MANIFESTS / name).read_text())
    return loaded


def has_fields(spec: dict[str, Any], fields: dict[str, set[str]]) -> None:
    assert fields["required"] <= spec.keys() <= fields["required"] | fields["allowed"]


def is_pod(template: dict[str, Any]) -> None:
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "t"}, "template": template}, "1.34", strict=True
    )


def test_the_kubernetes_cluster_has_valid_fields_and_pods() -> None:
    cluster = manifest("cluster.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    spec = cluster["spec"]
    has_fields(spec, CLUSTER)
    has_fields(spec["headGroupSpec"], HEAD)
    is_pod(spec["headGroupSpec"]["template"])
    for group in spec["workerGroupSpecs"]:
        has_fields(group, WORKERS)
        is_pod(group["template"])
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["autoscalerOptions"]["upscalingMode"] in ("Default", "Aggressive", "Conservative")


def test_the_job_names_that_cluster() -> None:
    job = manifest("job.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    has_fields(job["spec"], JOB)
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": manifest("cluster.yaml")["metadata"]["name"]}


def test_the_scheduled_job_is_a_valid_cron_job() -> None:
    schedule = manifest("schedule.yaml")
    kubernetes_validate.validate(schedule, "1.34", strict=True)
    (container,) = schedule["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert container["command"][-4:] == ["--name", "$(JOB)", "--resume", "auto"]
    assert schedule["spec"]["jobTemplate"]["spec"]["backoffLimit"] == 2
    assert values["RAY_ADDRESS"] == f"http://{manifest('cluster.yaml')['metadata']['name']}-head-svc:8265"
    broken = copy.deepcopy(schedule)
    broken["spec"]["concurrency"] = "Forbid"
    with pytest.raises(kubernetes_validate.ValidationError, match="concurrency"):
        kubernetes_validate.validate(broken, "1.34", strict=True)
