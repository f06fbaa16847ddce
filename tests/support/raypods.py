"""The pods that KubeRay 1.7 makes of a Ray cluster's templates, as far as admission and quota look at them.

Follows ray-operator/controllers/ray/common/pod.go: labels, the autoscaler beside the head, the init container of workers.
"""

import copy
from typing import Any

Object = dict[str, Any]
# What KubeRay gives a container whose resources it does not take from the template.
_AUTOSCALER = {"cpu": "500m", "memory": "512Mi"}
_WAITS = {"cpu": "200m", "memory": "256Mi"}


def pods(cluster: Object, name: str = "cluster") -> dict[str, Object]:
    """Returns the head's pod and one worker's."""
    head = _pod(cluster["headGroupSpec"]["template"], f"{name}-head", "head", "headgroup", name)
    if cluster.get("enableInTreeAutoscaling"):
        head["spec"]["containers"].append(_autoscaler(head, cluster.get("autoscalerOptions", {})))
    group = cluster["workerGroupSpecs"][0]
    worker = _pod(group["template"], f"{name}-worker", "worker", group["groupName"], name)
    ray = worker["spec"]["containers"][0]
    waits = {key: ray[key] for key in ("image", "env", "securityContext", "volumeMounts") if key in ray}
    worker["spec"]["initContainers"] = [
        {"name": "wait-gcs-ready", **copy.deepcopy(waits), "resources": {"requests": _WAITS, "limits": _WAITS}}
    ]
    return {"head": head, "workers": worker}


def _pod(template: Object, name: str, node_type: str, group: str, cluster: str) -> Object:
    pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(template)}
    labels = {
        "ray.io/is-ray-node": "yes",
        "ray.io/identifier": name,
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
        **pod.get("metadata", {}).get("labels", {}),
        "ray.io/cluster": cluster,
        "ray.io/node-type": node_type,
        "ray.io/group": group,
    }
    pod["metadata"] = {**pod.get("metadata", {}), "name": name, "labels": labels}
    pod["spec"]["containers"][0]["command"] = ["/bin/bash", "-c", "--"]
    return pod


def _autoscaler(head: Object, options: Object) -> Object:
    container: Object = {
        "name": "autoscaler",
        "image": head["spec"]["containers"][0]["image"],
        "resources": {"requests": _AUTOSCALER, "limits": _AUTOSCALER},
    }
    taken = ("resources", "securityContext", "env", "envFrom", "volumeMounts", "imagePullPolicy")
    return container | {key: options[key] for key in taken if key in options}
