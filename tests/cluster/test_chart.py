"""What the chart's values do, read from what the real helm renders."""

import importlib.metadata
import os
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from chart import (
    LEAST,
    VALUE_SETS,
    Refused,
    kinds,
    only,
    parse,
    pod_templates,
    ray_cluster,
    ray_container,
    render,
    serve_config,
    template,
)
from ray.serve._private import constants
from ray.serve._private.haproxy import HAProxyConfig
from ray.serve.schema import ServeDeploySchema

from historay.serving.app import ServeConfig
from historay.serving.proxy import use_haproxy


@pytest.mark.parametrize("values", VALUE_SETS, ids=lambda path: path.stem)
def test_rays_own_schema_accepts_the_serve_config_of_every_value_set(helm: Path, values: Path) -> None:
    config = serve_config(parse(template(helm, {}, files=[values])))
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert ServeConfig(**application.args).host == config["http_options"]["host"]


def test_the_import_path_names_a_builder_whose_argument_is_the_serve_config(helm: Path) -> None:
    from importlib import import_module
    from inspect import signature

    module, name = serve_config(render(helm))["applications"][0]["import_path"].split(":")
    builder = getattr(import_module(module), name)
    assert [parameter.annotation for parameter in signature(builder).parameters.values()] == [ServeConfig]


def test_the_proxy_waits_longer_than_the_replica_by_default_and_when_told(helm: Path) -> None:
    default = ServeConfig(**LEAST["serve"]).request_timeout_s
    assert serve_config(render(helm))["http_options"]["request_timeout_s"] == default + 5
    slow = render(helm, {"serve": {"request_timeout_s": 90.5}})
    assert serve_config(slow)["http_options"]["request_timeout_s"] == 95.5


def test_large_numbers_arrive_as_integers(helm: Path) -> None:
    config = serve_config(render(helm, {"serve": {"max_body_bytes": 2**40, "max_pixels": 10**15}}))
    args = config["applications"][0]["args"]
    assert (args["max_body_bytes"], args["max_pixels"]) == (2**40, 10**15)


def test_the_head_gives_no_cpu_to_replicas_and_gets_no_traffic(helm: Path) -> None:
    objects = render(helm)
    assert ray_cluster(objects)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert only(objects, "RayService")["spec"]["excludeHeadPodFromServeSvc"] is True


def test_workers_are_scaled_by_the_second_autoscaler_between_the_two_numbers(helm: Path) -> None:
    cluster = ray_cluster(render(helm, {"workers": {"minReplicas": 2, "maxReplicas": 7}}))
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    group = cluster["workerGroupSpecs"][0]
    assert (group["minReplicas"], group["maxReplicas"]) == (2, 7)
    # KubeRay refuses any other with this autoscaler.
    assert all("restartPolicy" not in pod["spec"] for pod in pod_templates(cluster).values())


def test_ray_in_the_chart_is_ray_in_the_requirements(helm: Path) -> None:
    assert ray_cluster(render(helm))["rayVersion"] == importlib.metadata.version("ray")


def test_the_token_is_asked_for_unless_it_is_switched_off(helm: Path) -> None:
    assert ray_cluster(render(helm))["authOptions"] == {"mode": "token"}
    named = ray_cluster(render(helm, {"rayAuth": {"existingSecret": "ours"}}))
    assert named["authOptions"] == {"mode": "token", "secretName": "ours"}
    assert ray_cluster(render(helm, {"rayAuth": {"mode": "disabled"}}))["authOptions"] == {"mode": "disabled"}


def test_pods_keep_the_label_that_kuberays_head_service_selects(helm: Path) -> None:
    for pod in pod_templates(ray_cluster(render(helm))).values():
        assert not {"app.kubernetes.io/name", "app.kubernetes.io/created-by", "ray.io/identifier"} & set(
            pod["metadata"]["labels"]
        )


def test_every_selector_of_ours_finds_the_pods_and_only_those_of_its_group(helm: Path) -> None:
    objects = render(helm, {"workers": {"minReplicas": 3}, "metrics": {"podMonitor": {"enabled": True}}})
    for group, kind, name in (
        ("workers", "PodDisruptionBudget", ""),
        ("workers", "PodMonitor", ""),
        ("workers", "NetworkPolicy", "-workers"),
        ("head", "NetworkPolicy", "-head"),
    ):
        spec = only(objects, kind, name)["spec"]
        labels = (spec.get("selector") or spec["podSelector"])["matchLabels"]
        pod = pod_templates(ray_cluster(objects))[group]
        added = {"ray.io/node-type": "head" if group == "head" else "worker"}  # by KubeRay
        assert labels.items() <= {**pod["metadata"]["labels"], **added}.items()
        assert labels["ray.io/node-type"] == added["ray.io/node-type"]


def test_head_and_workers_come_from_one_template(helm: Path) -> None:
    values = {"extraEnv": [{"name": "A", "value": "b"}], "podLabels": {"team": "x"}, "priorityClassName": "high"}
    head, workers = pod_templates(ray_cluster(render(helm, values))).values()
    assert head["metadata"] == workers["metadata"]
    assert ray_container(head)["env"] == ray_container(workers)["env"]
    assert head["spec"]["securityContext"] == workers["spec"]["securityContext"]
    assert head["spec"]["volumes"] == workers["spec"]["volumes"]


def test_requests_equal_limits_for_every_container(helm: Path) -> None:
    cluster = ray_cluster(render(helm, {"workers": {"gpus": 2}}))
    found = [ray_container(pod)["resources"] for pod in pod_templates(cluster).values()]
    for resources in [*found, cluster["autoscalerOptions"]["resources"]]:
        assert resources["requests"] == resources["limits"]
    assert found[1]["limits"]["nvidia.com/gpu"] == "2"
    assert "nvidia.com/gpu" not in found[0]["limits"]


def test_replicas_get_gpus_only_where_workers_have_them(helm: Path) -> None:
    assert "deployments" not in serve_config(render(helm))["applications"][0]
    shared = render(helm, {"workers": {"cpu": "4", "gpus": 1, "gpusPerReplica": 0.25}, "serve": {"cpus_per_replica": 3}})
    (deployment,) = serve_config(shared)["applications"][0]["deployments"]
    assert deployment == {"name": "endpoint", "ray_actor_options": {"num_cpus": 3, "num_gpus": 0.25}}


def test_no_probe_needs_a_program_in_the_image(helm: Path) -> None:
    for pod in pod_templates(ray_cluster(render(helm))).values():
        for probe in ("livenessProbe", "readinessProbe"):
            assert "httpGet" in ray_container(pod)[probe]


def test_a_worker_is_ready_only_when_its_proxy_answers(helm: Path) -> None:
    pod = pod_templates(ray_cluster(render(helm, {"serve": {"port": 8123}})))["workers"]
    assert ray_container(pod)["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "serve"}
    assert {"name": "serve", "containerPort": 8123} in ray_container(pod)["ports"]


def test_requests_pass_through_haproxy_as_they_do_on_a_laptop_unless_it_is_switched_off(helm: Path) -> None:
    with patch.dict(os.environ):
        use_haproxy()
        laptop = dict(os.environ)
    for pod in pod_templates(ray_cluster(render(helm))).values():
        ours = {entry["name"]: entry["value"] for entry in ray_container(pod)["env"] if entry["name"].startswith("RAY_SERVE_")}
        ports = {name: int(ours.pop(name)) for name in [*ours] if name.endswith("_PORT")}
        assert ours == {name: laptop[name] for name in ours}
        assert ours.keys() >= {"RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_SERVE_HAPROXY_RETRY_ON"}
        # Those that the table of test_network_policies.py opens and closes.
        assert sorted(ports.values()) == [8404, 8500, 9101, 30000, 31000]
        assert all(hasattr(constants, name) for name in [*ours, *ports])  # Ray reads them
    for pod in pod_templates(ray_cluster(render(helm, {"haProxy": False}))).values():
        assert not [entry for entry in ray_container(pod)["env"] if entry["name"].startswith("RAY_SERVE_")]


def test_haproxy_answers_the_path_by_which_a_worker_is_ready(helm: Path) -> None:
    probe = ray_container(pod_templates(ray_cluster(render(helm)))["workers"])["readinessProbe"]["httpGet"]
    assert probe["path"] == HAProxyConfig.health_check_endpoint


def test_only_the_heads_account_has_a_token_and_a_role(helm: Path) -> None:
    objects = render(helm)
    pods = pod_templates(ray_cluster(objects))
    assert [pod["spec"]["automountServiceAccountToken"] for pod in pods.values()] == [True, False]
    (subject,) = only(objects, "RoleBinding")["subjects"]
    assert subject["name"] == pods["head"]["spec"]["serviceAccountName"] != pods["workers"]["spec"]["serviceAccountName"]


def test_a_role_of_the_cloud_is_an_annotation_of_both_accounts_and_no_key_is_passed(helm: Path) -> None:
    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::111122223333:role/x"}
    objects = render(helm, {"serviceAccount": {"annotations": role}})
    accounts = [item for item in objects if item["kind"] == "ServiceAccount"]
    assert [account["metadata"]["annotations"] for account in accounts] == [role, role]
    for pod in pod_templates(ray_cluster(objects)).values():
        assert not [entry for entry in ray_container(pod)["env"] if entry["name"].startswith("AWS_") and "valueFrom" in entry]


def test_secrets_reach_pods_by_reference_alone(helm: Path) -> None:
    values = {"s3": {"accessKeyId": "ID-1", "secretAccessKey": "SECRET-1"}, "apiKey": {"value": "KEY-1"}}
    objects = render(helm, values)
    without = [item for item in objects if item["kind"] != "Secret"]
    assert not [word for word in ("ID-1", "SECRET-1", "KEY-1") if word in str(without)]
    assert only(objects, "Secret", "-s3")["stringData"]["AWS_SECRET_ACCESS_KEY"] == "SECRET-1"


def test_existing_secrets_are_named_and_none_is_made(helm: Path) -> None:
    objects = render(helm, {"s3": {"existingSecret": "bucket"}, "apiKey": {"existingSecret": "key", "key": "token"}})
    assert "Secret" not in kinds(objects)
    environment = {entry["name"]: entry for entry in ray_container(pod_templates(ray_cluster(objects))["workers"])["env"]}
    assert environment["HISTORAY_API_KEY"]["valueFrom"]["secretKeyRef"] == {"name": "key", "key": "token"}
    assert environment["AWS_ACCESS_KEY_ID"]["valueFrom"]["secretKeyRef"]["name"] == "bucket"


def test_a_secret_of_several_keys_is_mounted_whole_where_replicas_and_the_head_look_for_it(helm: Path) -> None:
    objects = render(helm, {"apiKey": {"existingSecret": "key", "keysSecret": "keys"}})
    for pod in pod_templates(ray_cluster(objects)).values():
        assert {"name": "api-keys", "secret": {"secretName": "keys"}} in pod["spec"]["volumes"]
        (mount,) = [each for each in ray_container(pod)["volumeMounts"] if each["name"] == "api-keys"]
        assert mount == {"name": "api-keys", "mountPath": "/etc/historay/keys", "readOnly": True}
    (service,) = [item for item in objects if item["kind"] == "RayService"]
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert application["args"]["keys_file"] == "/etc/historay/keys/keys.yaml"


def test_a_changed_secret_changes_the_pod_template(helm: Path) -> None:
    first, second = (
        pod_templates(ray_cluster(render(helm, {"apiKey": {"value": key}})))["workers"]["metadata"]["annotations"]
        for key in "ab"
    )
    assert first["checksum/config"] != second["checksum/config"]


def test_redis_is_wired_as_kuberay_wants_it(helm: Path) -> None:
    redis = {"enabled": True, "address": "rediss://redis.db:6380", "username": "ray", "existingSecret": "redis"}
    objects = render(helm, {"redis": redis})
    assert ray_cluster(objects)["gcsFaultToleranceOptions"] == {
        "redisAddress": "rediss://redis.db:6380",
        "redisUsername": {"value": "ray"},
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}},
    }
    assert "gcsFaultToleranceOptions" not in ray_cluster(render(helm))


def test_a_load_balancer_is_kuberays_own_service_with_another_type(helm: Path) -> None:
    assert "serveService" not in only(render(helm), "RayService")["spec"]
    service = {"type": "LoadBalancer", "annotations": {"scheme": "internal"}}
    made = only(render(helm, {"service": service, "serve": {"port": 8123}}), "RayService")["spec"]["serveService"]
    assert made["metadata"] == {"annotations": {"scheme": "internal"}}
    assert made["spec"] == {"type": "LoadBalancer", "ports": [{"name": "serve", "port": 8123}]}


def test_a_budget_never_blocks_the_last_worker(helm: Path) -> None:
    assert "PodDisruptionBudget" not in kinds(render(helm, {"workers": {"minReplicas": 1}}))
    assert only(render(helm, {"workers": {"minReplicas": 3}}), "PodDisruptionBudget")["spec"]["minAvailable"] == 2


def test_workers_spread_over_zones_within_one_rollout(helm: Path) -> None:
    pods = pod_templates(ray_cluster(render(helm)))
    (constraint,) = pods["workers"]["spec"]["topologySpreadConstraints"]
    assert constraint["matchLabelKeys"] == ["ray.io/cluster"]
    assert "topologySpreadConstraints" not in pods["head"]["spec"]


def test_shared_memory_is_kuberays_own_unless_a_size_is_given(helm: Path) -> None:
    mounts = ray_container(pod_templates(ray_cluster(render(helm)))["workers"])["volumeMounts"]
    assert [mount["mountPath"] for mount in mounts] == ["/tmp"]
    pod = pod_templates(ray_cluster(render(helm, {"sharedMemorySize": "8Gi"})))["workers"]
    assert {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in pod["spec"]["volumes"]


def test_kueues_queue_is_a_label_of_the_rayservice(helm: Path) -> None:
    labels = only(render(helm, {"kueue": {"queueName": "histology"}}), "RayService")["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "histology"


def test_what_kueue_admits_has_a_fixed_size_since_it_refuses_an_autoscaled_cluster(helm: Path) -> None:
    sizes = {"minReplicas": 2, "maxReplicas": 7}
    cluster = ray_cluster(render(helm, {"kueue": {"queueName": "histology"}, "workers": sizes}))
    assert cluster["enableInTreeAutoscaling"] is False
    assert cluster["workerGroupSpecs"][0]["replicas"] == 2
    assert not pod_templates(cluster)["head"]["spec"]["automountServiceAccountToken"]  # nobody there asks Kubernetes
    assert "replicas" not in ray_cluster(render(helm, {"workers": sizes}))["workerGroupSpecs"][0]


def test_jobs_by_the_clock_stand_in_the_queue_themselves(helm: Path) -> None:
    job = {"name": "nightly", "schedule": "0 3 * * *", "args": ["predict"]}
    made = only(render(helm, {"kueue": {"queueName": "histology"}, "cronJobs": [job]}), "CronJob")
    assert made["spec"]["jobTemplate"]["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "histology"}
    assert "kueue.x-k8s.io/queue-name" not in made["metadata"]["labels"]  # Kueue reads it from the Jobs alone


def test_a_name_too_long_for_kuberay_is_cut_and_one_that_it_refuses_is_refused(helm: Path) -> None:
    assert len(only(render(helm, release="r" * 50), "RayService")["metadata"]["name"]) == 47
    with pytest.raises(Refused, match="set fullnameOverride"):
        render(helm, release="1st")


def test_by_the_clock_runs_the_command_with_the_endpoints_key_and_store(helm: Path) -> None:
    job = {"name": "nightly", "schedule": "0 3 * * *", "args": ["predict", "s3://bucket/new", "--model", "demo"]}
    objects = render(helm, {"cronJobs": [job, {**job, "name": "weekly"}]})
    pod = only(objects, "CronJob", "-nightly")["spec"]["jobTemplate"]["spec"]["template"]
    assert ray_container(pod)["command"] + ray_container(pod)["args"] == ["historay", *job["args"]]
    endpoint = ray_container(pod_templates(ray_cluster(objects))["workers"])
    assert [entry for entry in endpoint["env"] if not entry["name"].startswith("RAY_")] == ray_container(pod)["env"]
    # No Service, budget or monitor may take it for a worker.
    assert "app.kubernetes.io/part-of" not in pod["metadata"]["labels"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"workers": {"minReplicas": 4, "maxReplicas": 2}}, "workers.minReplicas=4 is more than workers.maxReplicas=2"),
        ({"serve": {"store": "demo/store"}}, "pods share no folder; use s3://"),
        ({"serve": {"host": "127.0.0.1"}}, "cannot be reached from another pod"),
        ({"serve": {"min_replicas": 0}}, "no request could wake one"),
        ({"serve": {"cpus_per_replica": 3}}, "workers.cpu=2 holds no replica of serve.cpus_per_replica=3; raise workers.cpu"),
        ({"serve": {"cpus_per_replica": 2}, "workers": {"cpu": "900m"}}, "workers.cpu=900m holds no replica"),
        ({"workers": {"gpus": 1, "gpusPerReplica": 2}}, "workers.gpus=1 holds no replica of workers.gpusPerReplica=2"),
        ({"serve": {"min_replicas": 7}}, "serve.min_replicas=7 is more than the 6 that fit 3 workers"),
        (
            {"serve": {"min_replicas": 5}, "workers": {"cpu": "8", "gpus": 1, "gpusPerReplica": 0.5, "maxReplicas": 2}},
            "serve.min_replicas=5 is more than the 4 that fit 2 workers",
        ),
        (
            {"serve": {"min_replicas": 3}, "kueue": {"queueName": "team"}},
            "serve.min_replicas=3 is more than the 2 that fit 1 workers",
        ),
        ({"s3": {"existingSecret": "a", "accessKeyId": "b"}}, "are both set; use one"),
        ({"apiKey": {"keysSecret": "keys"}}, "set apiKey.existingSecret too"),
        ({"redis": {"enabled": True}}, "redis"),
        ({"httpRoute": {"enabled": True}}, "httpRoute"),
        ({"serve": {"modle": "demo"}}, "additional properties 'modle' not allowed"),
        ({"workers": {"tolerations": [{"efect": "NoSchedule"}]}}, "additional properties 'efect' not allowed"),
        (
            {
                "upgrade": {"strategy": "NewClusterWithIncrementalUpgrade", "gatewayClassName": "x"},
                "ingress": {"enabled": True, "hosts": ["a.b"]},
            },
            "leave ingress and httpRoute off",
        ),
    ],
)
def test_values_that_disagree_are_refused_by_name(helm: Path, values: dict[str, object], said: str) -> None:
    with pytest.raises(Refused, match=said):
        render(helm, values)


@pytest.mark.parametrize("cpu", ["1500m", "2", "1.2", "2000m", "0.002k"])
def test_a_replica_fits_the_cpus_that_kuberay_tells_ray_of(helm: Path, cpu: str) -> None:
    render(helm, {"workers": {"cpu": cpu}, "serve": {"cpus_per_replica": 2}})  # a part of a CPU counts as one
