"""The Kubernetes objects of one job, as plain mappings: a ConfigMap with the stage's settings and a ray.io/v1 RayJob.

Attempts of one RayJob may overlap while KubeRay takes the old cluster down. What they write is fenced in the store: training
and search stop a driver whose attempt is no longer the one in run.json or search.json, data sets and bundles are named by
their content, and predictions by the place of their images in a listing that both attempts must share.
"""

from importlib.metadata import version
from typing import Any

from historay.cluster.settings import DATA_MOUNT, SubmitConfig
from historay.cluster.stages import CONFIG_FILE, Stage, output_id

GROUP, API_VERSION, PLURAL = "ray.io", "v1", "rayjobs"
CONFIG_FOLDER = "/etc/historay"
STAGE_LABEL = "app.kubernetes.io/component"
OUTPUT_LABEL = "historay/output"
OURS = {"app.kubernetes.io/name": "historay", "app.kubernetes.io/managed-by": "historay-submit"}
UID = 1000  # of the Dockerfile's user
# The cluster lives on after the job, so that the end of the logs can be fetched. It costs its pods for as long.
_TTL_S = 300

Object = dict[str, Any]


def build_config_map(stage: Stage, name: str) -> Object:
    """Returns the ConfigMap that carries the stage's settings into the pods; immutable, as the job is."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": _labels(stage)},
        "immutable": True,
        "data": stage.files(CONFIG_FOLDER),
    }


def build_rayjob(stage: Stage, cluster: SubmitConfig, name: str) -> Object:
    """Returns the RayJob that runs the stage once, on a Ray cluster of its own that goes with it."""
    labels = _labels(stage)
    spec: Object = {
        "entrypoint": f"historay {stage.name} {CONFIG_FOLDER}/{CONFIG_FILE}",
        "activeDeadlineSeconds": round(cluster.deadline_h * 3600),
        "preRunningDeadlineSeconds": cluster.start_deadline_min * 60,
        "backoffLimit": cluster.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _TTL_S,
        "submitterPodTemplate": _submitter(cluster, labels),
        "rayClusterSpec": _ray_cluster(cluster, name, labels),
    }
    if stage.computes_in_driver:
        spec["entrypointNumCpus"] = cluster.cpus
        spec["entrypointNumGpus"] = cluster.gpus
    labels = _labels(stage)
    if cluster.queue:
        labels["kueue.x-k8s.io/queue-name"] = cluster.queue
    return {
        "apiVersion": f"{GROUP}/{API_VERSION}",
        "kind": "RayJob",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
    }


def owner_reference(rayjob: Object) -> Object:
    """Returns the patch that makes an object go when its RayJob goes."""
    owner = {key: rayjob[key] for key in ("apiVersion", "kind")} | {key: rayjob["metadata"][key] for key in ("name", "uid")}
    return {"metadata": {"ownerReferences": [owner]}}


def _labels(stage: Stage) -> dict[str, str]:
    output = output_id(stage)
    return {**OURS, STAGE_LABEL: stage.name, **({OUTPUT_LABEL: output} if output else {})}


def _ray_cluster(cluster: SubmitConfig, name: str, labels: dict[str, str]) -> Object:
    head = _container("ray-head", cluster, _resources(cluster.head_cpus, cluster.head_memory))
    worker = _container("ray-worker", cluster, _resources(cluster.cpus, cluster.memory, cluster.gpus))
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        # No task on the head: one that eats its memory would take the whole cluster with it.
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": _pod(head, cluster, name, labels)},
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                # Fixed: all or nothing is what Kueue admits and what DDP needs.
                "replicas": cluster.workers,
                "minReplicas": cluster.workers,
                "maxReplicas": cluster.workers,
                "rayStartParams": {},
                "template": _pod(worker, cluster, name, labels),
            }
        ],
    }


def _pod(container: Object, cluster: SubmitConfig, config_map: str, labels: dict[str, str]) -> Object:
    """The one pod template of head and workers; KubeRay adds command, probes, ports and /dev/shm."""
    container["volumeMounts"] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - of the pod
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
        *([{"name": "data", "mountPath": DATA_MOUNT}] if cluster.claim else []),
    ]
    volumes: list[Object] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "config", "configMap": {"name": config_map}},
    ]
    if cluster.claim:
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": cluster.claim}})
    spec: Object = {**_pod_security(), **_placement(cluster), "containers": [container], "volumes": volumes}
    if "nvidia.com/gpu" in container["resources"]["requests"]:
        # GPU nodes are commonly kept free of other pods, the head's too, by this taint.
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return {"metadata": {"labels": dict(labels)}, "spec": spec}


def _submitter(cluster: SubmitConfig, labels: dict[str, str]) -> Object:
    """The pod that hands the job to Ray and prints its log."""
    container = _container("ray-job-submitter", cluster, _resources("500m", "1Gi"))
    container["volumeMounts"] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - of the pod
    return {
        "metadata": {"labels": dict(labels)},
        "spec": {
            **_pod_security(),
            **_placement(cluster),
            "restartPolicy": "Never",
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }


def _placement(cluster: SubmitConfig) -> Object:
    chosen = {"serviceAccountName": cluster.service_account, "priorityClassName": cluster.priority}
    return {key: value for key, value in chosen.items() if value}


def _container(name: str, cluster: SubmitConfig, resources: dict[str, str]) -> Object:
    container: Object = {
        "name": name,
        "image": cluster.pod_image,
        "env": _environment(cluster),
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    if whole := [entry for entry in cluster.env_from_secret if "=" not in entry]:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in whole]
    return container


def _environment(cluster: SubmitConfig) -> list[Object]:
    """HOME is /tmp, the one folder that can be written; then what the user gave."""
    found: list[Object] = [{"name": "HOME", "value": "/tmp"}]  # noqa: S108 - of the pod
    for entry in cluster.env:
        name, _, value = entry.partition("=")
        found.append({"name": name, "value": value})
    for entry in cluster.env_from_secret:
        name, given, source = entry.partition("=")
        if given:
            secret, _, key = source.partition("/")
            found.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return found


def _resources(cpus: int | str, memory: str, gpus: int = 0) -> dict[str, str]:
    return {"cpu": str(cpus), "memory": memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}


def _pod_security() -> Object:
    """What the Pod Security level ``restricted`` asks of a pod; no job needs to speak to the API server."""
    return {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": UID,
            "fsGroup": UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
