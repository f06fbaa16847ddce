"""Does to a RayJob what KubeRay's operator, the scheduler and a kubelet would do, one step at a time, as a test says."""

import itertools
from typing import Any

from kubernetes import client, config

Object = dict[str, Any]
_numbers = itertools.count()


class Operator:
    """Acts in one namespace of a real API server. What it does follows ray-operator/controllers/ray at 1.7."""

    def __init__(self, kubeconfig: str, namespace: str) -> None:
        api = config.new_client_from_config(kubeconfig)
        self.namespace = namespace
        self.core, self.batch, self.custom = client.CoreV1Api(api), client.BatchV1Api(api), client.CustomObjectsApi(api)

    def rayjobs(self) -> list[Object]:
        return list(self.custom.list_namespaced_custom_object("ray.io", "v1", self.namespace, "rayjobs")["items"])

    def rayjob(self, name: str) -> Object:
        found: Object = self.custom.get_namespaced_custom_object("ray.io", "v1", self.namespace, "rayjobs", name)
        return found

    def status(self, name: str, **fields: object) -> None:
        """Writes fields of the status, as the operator does through the subresource."""
        arguments = ("ray.io", "v1", self.namespace, "rayjobs", name, {"status": fields})
        self.custom.patch_namespaced_custom_object_status(*arguments)

    def take_up(self, name: str) -> None:
        self.status(
            name, jobDeploymentStatus="Initializing", jobStatus="", rayClusterName=f"{name}-abcde", jobId=f"{name}-12345"
        )

    def create_pod(self, name: str, role: str, **spec: object) -> Object:
        """Creates the head's or a worker's pod from the RayJob's template; the server's refusal is raised as it is."""
        cluster = self.rayjob(name)["spec"]["rayClusterSpec"]
        group = cluster["headGroupSpec"] if role == "head" else cluster["workerGroupSpecs"][0]
        labels = {"ray.io/cluster": f"{name}-abcde", "ray.io/node-type": role}
        pod = {
            "metadata": {
                "name": f"{name}-abcde-{role}-{next(_numbers)}",
                "labels": {**group["template"]["metadata"]["labels"], **labels},
            },
            "spec": {**group["template"]["spec"], **spec},
        }
        made: Object = self.core.create_namespaced_pod(self.namespace, pod).to_dict()
        return made

    def create_submitter(self, name: str, **spec: object) -> None:
        """Creates the Job of the submitter; its pod is then made by Kubernetes' own job controller."""
        template = self.rayjob(name)["spec"]["submitterPodTemplate"]
        template = {**template, "spec": {**template["spec"], **spec}}
        body = {"metadata": {"name": name}, "spec": {"backoffLimit": 2, "template": template}}
        self.batch.create_namespaced_job(self.namespace, body)

    def pod_status(self, pod: str, **status: object) -> None:
        self.core.patch_namespaced_pod_status(pod, self.namespace, {"status": status})

    def unschedulable(self, pod: str, message: str) -> None:
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        self.pod_status(pod, phase="Pending", conditions=[condition])

    def waiting(self, pod: str, container: str, reason: str, message: str, image: str = "historay:cpu") -> None:
        """A container that the kubelet cannot start yet."""
        state = {"waiting": {"reason": reason, "message": message}}
        shown = {"name": container, "image": image, "imageID": "", "ready": False, "restartCount": 0, "state": state}
        scheduled = {"type": "PodScheduled", "status": "True"}
        self.pod_status(pod, phase="Pending", conditions=[scheduled], containerStatuses=[shown])

    def event(self, kind: str, thing: str, reason: str, message: str, uid: str | None = None) -> None:
        version = "ray.io/v1" if kind.startswith("Ray") else "v1"
        involved = {"kind": kind, "name": thing, "namespace": self.namespace, "apiVersion": version, "uid": uid}
        body = {
            "metadata": {"name": f"{thing}.{next(_numbers)}"},
            "involvedObject": involved,
            "reason": reason,
            "message": message,
            "type": "Warning",
        }
        self.core.create_namespaced_event(self.namespace, body)
