"""ray_cluster.yaml and the Kubernetes manifests, by the schemas of Ray, Kubernetes and KubeRay, and by `ray up` on moto."""

import copy
import os
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
from ray.scripts.scripts import drain_node

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


def manifests() -> list[dict[str, Any]]:
    """All objects in the Kubernetes manifests, and the cluster with the lines for Redis that stand there as comments."""
    texts = [path.read_text() for path in sorted(MANIFESTS.glob("*.yaml"))]
    return [document for text in [*texts, with_redis()] for document in yaml.safe_load_all(text)]


def with_redis() -> str:
    """cluster.yaml as its user uncomments it."""
    text = (MANIFESTS / "cluster.yaml").read_text()
    return re.sub(r"^  # (?=gcsFaultToleranceOptions|  redis)", "  ", text, flags=re.MULTILINE)


def manifest(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((MANIFESTS / name).read_text())
    return loaded


CLUSTER, JOB, CRON_JOB = manifest("cluster.yaml"), manifest("job.yaml"), manifest("cron_job.yaml")
SPECS = {
    "cluster": CLUSTER["spec"],
    "job": JOB["spec"]["rayClusterSpec"],
    "cron": CRON_JOB["spec"]["jobTemplate"]["rayClusterSpec"],
}


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    """The operator's schemas of its kinds, made such that they refuse fields that they do not name.

    Kubernetes removes such fields silently. The pods within are checked here by these schemas, too.
    """
    folder = Path(os.environ.get("HARDSHARD_KUBERAY_CRDS", ROOT.parent / "shared" / "kuberay"))
    paths = list(folder.glob("ray.io_*.yaml"))
    if not paths:
        pytest.skip(
            f"HARDSHARD_KUBERAY_CRDS names no folder with the KubeRay operator's CRDs (crds/ of its chart), nor is {folder} one"
        )
    found = {}
    for path in paths:
        crd = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["spec"]  # the safe one, in C: these are megabytes
        for version in crd["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            refuse_unknown(schema)
            schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
            found[f"{crd['group']}/{version['name']} {crd['names']['kind']}"] = jsonschema.Draft202012Validator(schema)
    return found


def refuse_unknown(schema: dict[str, Any]) -> None:
    """Change a CRD's schema into JSON Schema's words: no fields but those that it names, unless it says that it keeps others."""
    if schema.pop("x-kubernetes-int-or-string", False):
        schema["type"] = ["integer", "string"]
    if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    inner: list[Any] = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    for below in inner:
        if isinstance(below, dict):
            refuse_unknown(below)


def test_rays_kinds_are_valid_by_the_operators_schemas(schemas: dict[str, Any]) -> None:
    checked = [document for document in manifests() if document["apiVersion"].startswith("ray.io/")]
    assert {document["kind"] for document in checked} == {"RayCluster", "RayJob", "RayCronJob"}
    for document in checked:
        schemas[f"{document['apiVersion']} {document['kind']}"].validate(document)


@pytest.mark.parametrize(
    ("document", "path", "value", "error"),
    [
        (CLUSTER, "spec.autoscalerOptions.idleTimeoutSecond", 1, "'idleTimeoutSecond' was unexpected"),
        (CLUSTER, "spec.autoscalerOptions.version", "v3", "'v3' is not one of"),
        (CLUSTER, "spec.workerGroupSpecs.0.maxReplicas", "16", "'16' is not of type 'integer'"),
        (CLUSTER, "spec.headGroupSpec.template", None, "'template' is a required property"),
        (CLUSTER, "spec.workerGroupSpecs.0.template.spec.terminationGracePeriod", 1, "'terminationGracePeriod' was unexpected"),
        (JOB, "spec.backofLimit", 2, "'backofLimit' was unexpected"),
        (JOB, "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.resources.limits.memory", [], "not valid under any"),
        (CRON_JOB, "spec.timezone", "Etc/UTC", "'timezone' was unexpected"),
        (CRON_JOB, "spec.jobTemplate.rayClusterSpec.rayversion", "2.60.0", "'rayversion' was unexpected"),
    ],
)
def test_the_operators_schemas_find_a_wrong_field(
    schemas: dict[str, Any], document: dict[str, Any], path: str, value: Any, error: str
) -> None:
    broken = copy.deepcopy(document)
    *outer, last = path.split(".")
    at = broken
    for name in outer:
        at = at[int(name)] if isinstance(at, list) else at[name]
    if value is None:
        del at[last]
    else:
        at[last] = value
    with pytest.raises(jsonschema.ValidationError, match=error):
        schemas[f"{document['apiVersion']} {document['kind']}"].validate(broken)


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"] for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]]


def test_kubernetes_own_kinds_and_all_pods_are_valid_by_its_schemas() -> None:
    own = [document for document in manifests() if not document["apiVersion"].startswith(("ray.io/", "monitoring.coreos.com/"))]
    assert {document["kind"] for document in own} == {"CronJob", "NetworkPolicy", "StatefulSet", "Service"}
    templates = [pod for spec in SPECS.values() for pod in pods(spec)]
    named = [{"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "t"}, "template": pod} for pod in templates]
    for document in [*own, *named]:
        kubernetes_validate.validate(document, "1.34", strict=True)
    broken = copy.deepcopy(manifest("schedule.yaml"))
    broken["spec"]["concurrency"] = "Forbid"
    with pytest.raises(kubernetes_validate.ValidationError, match="concurrency"):
        kubernetes_validate.validate(broken, "1.34", strict=True)


def test_the_clusters_are_as_the_operator_asks() -> None:
    """What its schemas do not hold: `controllers/ray/utils/validation.go` of the operator, 1.6 to 1.7."""
    for spec in SPECS.values():
        assert spec["rayVersion"] == ray.__version__
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
        for group in spec["workerGroupSpecs"]:
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        for pod in pods(spec):
            assert "restartPolicy" not in pod["spec"]  # version 2 of the autoscaler lets only Never pass
            names = {entry["name"] for entry in pod["spec"]["containers"][0]["env"]}
            assert not {"RAY_REDIS_ADDRESS", "RAY_enable_autoscaler_v2"} & names  # options of the cluster say it
    assert CLUSTER["spec"]["enableInTreeAutoscaling"]
    assert CLUSTER["spec"]["autoscalerOptions"]["version"] == "v2"
    for job in (JOB["spec"], CRON_JOB["spec"]["jobTemplate"]):
        assert "clusterSelector" not in job  # it excludes backoffLimit, and is not stopped at the deadline
        assert job["shutdownAfterJobFinishes"]  # else no ttlSecondsAfterFinished
        assert job["activeDeadlineSeconds"] > 0
        assert job["backoffLimit"] == 2


def test_all_clusters_have_the_same_pods() -> None:
    assert pods(SPECS["job"]) == pods(SPECS["cluster"])
    assert pods(SPECS["cron"]) == pods(SPECS["cluster"])
    assert JOB["spec"] == CRON_JOB["spec"]["jobTemplate"]


def test_pods_have_time_for_a_checkpoint() -> None:
    """Workers are drained, the driver gets its signal, and a job that is stopped is waited for, within the pod's grace."""
    submit = manifest("schedule.yaml")["spec"]["jobTemplate"]["spec"]["template"]
    head, worker = pods(CLUSTER["spec"])
    assert {pod["spec"]["terminationGracePeriodSeconds"] for pod in (head, worker, submit)} == {120}
    env = {entry["name"]: entry.get("value") for entry in head["spec"]["containers"][0]["env"]}
    assert int(env["RAY_JOB_STOP_WAIT_TIME_S"]) < 120
    *_, hook = worker["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert re.findall(r"(?:seconds|timeout) (\d+)", hook) == ["90", "100"]  # runs leave before the pod does
    options = re.findall(r"--[\w-]+", hook)
    assert set(options) <= {option.opts[0] for option in drain_node.params}
    for command in (hook, submit["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]):
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_a_jobs_run_has_the_name_of_the_ray_job_in_all_attempts() -> None:
    """The operator names the cluster of each attempt after the RayJob, and adds five characters."""
    words = JOB["spec"]["entrypoint"].split()
    name = words[words.index("--name") + 1]
    for shell in ("sh", "bash"):
        environment = {"RAY_CLUSTER_NAME": "reid-x7k2p-b5vq9"}
        assert subprocess.check_output([shell, "-c", f"echo {name}"], env=environment, text=True) == "reid-x7k2p\n"
    assert words[-2:] == ["--resume", "auto"]


def test_the_scheduled_job_submits_to_that_cluster() -> None:
    spec = manifest("schedule.yaml")["spec"]["jobTemplate"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert container["command"][-4:] == ["--name", "$(JOB)", "--resume", "auto"]
    assert spec["backoffLimit"] == 2
    assert values["RAY_ADDRESS"] == f"http://{CLUSTER['metadata']['name']}-head-svc:8265"


def test_selectors_match_labels_that_the_pods_have() -> None:
    """KubeRay gives its pods ray.io/cluster, node-type, group and is-ray-node; all other labels stand in the manifests."""
    redis, service, redis_policy = yaml.safe_load_all((MANIFESTS / "redis.yaml").read_text())
    policy, monitor = manifest("network_policy.yaml"), manifest("pod_monitor.yaml")
    node = {"ray.io/cluster": CLUSTER["metadata"]["name"]}
    submit = manifest("schedule.yaml")["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"] == node
    inside, outside, metrics = policy["spec"]["ingress"]
    assert [peer["podSelector"]["matchLabels"] for peer in inside["from"]] == [node]
    assert "ports" not in inside
    operator = {"app.kubernetes.io/component": "kuberay-operator"}  # by its chart and by its kustomization
    assert [peer["podSelector"]["matchLabels"] for peer in outside["from"]] == [operator, submit]
    assert [peer["podSelector"]["matchLabels"] for peer in metrics["from"]] == [{"app.kubernetes.io/name": "prometheus"}]
    head, worker = (pod["spec"]["containers"][0]["ports"] for pod in pods(CLUSTER["spec"]))
    ports = {port["name"]: port["containerPort"] for port in head}
    assert [port["port"] for port in outside["ports"]] == [ports["dashboard"]]
    assert [port["port"] for port in metrics["ports"]] == [ports["metrics"]]

    assert monitor["spec"]["selector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert {"name": endpoint["port"], "containerPort": ports["metrics"]} in head
    assert {"name": endpoint["port"], "containerPort": ports["metrics"]} in worker
    rules = (ROOT / "cluster" / "monitoring" / "alerts.yml").read_text()
    job = next(entry["replacement"] for entry in endpoint["relabelings"] if entry["targetLabel"] == "job")
    assert f'up{{job="{job}"}}' in rules

    labels = redis["spec"]["template"]["metadata"]["labels"]
    assert labels == redis["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert redis_policy["spec"]["podSelector"]["matchLabels"] == labels
    assert [peer["podSelector"]["matchLabels"] for peer in redis_policy["spec"]["ingress"][0]["from"]] == [node]
    options = yaml.safe_load(with_redis())["spec"]["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    secret = redis["spec"]["template"]["spec"]["containers"][0]["env"][0]["valueFrom"]
    assert options["redisPassword"]["valueFrom"] == secret
