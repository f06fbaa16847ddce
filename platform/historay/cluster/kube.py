"""Jobs on Kubernetes: RayJobs through the API server. The only module that speaks to it."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client as kubernetes
from kubernetes import config as kube_config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from historay.cluster.jobs import JobView
from historay.cluster.obstacles import find_obstacles, refused, untouched
from historay.cluster.rayjob import (
    API_VERSION,
    GROUP,
    OUTPUT_LABEL,
    PLURAL,
    Object,
    build_config_map,
    build_rayjob,
    owner_reference,
)
from historay.cluster.settings import SubmitConfig
from historay.cluster.stages import Stage, output_id
from historay.cluster.status import read_rayjob
from historay.errors import ClusterError, ConfigError, Unreachable
from historay.log import log_event

_SUBMITTER = "ray-job-submitter"
_POLL_S = 1.0
_TIMEOUT_S = 30.0
_SELECTOR = "app.kubernetes.io/name=historay"  # jobs by hand, such as those of k8s/jobs, are shown too
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_STRICT = {"field_validation": "Strict", "field_manager": "historay-submit"}
# Not yet to be had, rather than wrong: the container has not started, or its node's kubelet does not answer.
_NO_LOG_YET = {400, 404, 500, 502, 503}


class KubernetesJobs:
    """Jobs in one namespace, with the rights of the kubeconfig's user or, inside a pod, of its service account."""

    def __init__(self, namespace: str | None, context: str | None) -> None:
        api, own, self._context = _connect(context)
        self.namespace = namespace or own
        self.where = f"namespace {self.namespace} of {self._context}"
        self.flags = (f" --namespace {namespace}" if namespace else "") + (f" --context {context}" if context else "")
        self._core, self._custom = kubernetes.CoreV1Api(api), kubernetes.CustomObjectsApi(api)

    def check(self, stage: Stage, cluster: SubmitConfig, name: str) -> Object:
        """Has the API server check both objects without keeping them; returns the RayJob as it would be."""
        self._create_config_map(build_config_map(stage, name), dry_run="All")
        return self._create_rayjob(build_rayjob(stage, cluster, name), dry_run="All")

    def submit(self, stage: Stage, cluster: SubmitConfig, name: str) -> None:
        self._refuse_twin(stage, name)
        # First the settings, then the job that mounts them; if the second is refused, the first goes again.
        self._create_config_map(build_config_map(stage, name))
        try:
            rayjob = self._create_rayjob(build_rayjob(stage, cluster, name))
        except Unreachable as error:  # its pods would wait for the settings for ever
            raise Unreachable(f"{error}; it may have taken {name}: historay jobs wait {name}{self.flags}") from None
        except ClusterError:
            self._call(self._core.delete_namespaced_config_map, name, self.namespace)
            raise
        self._hand_over_settings(name, rayjob)
        try:
            self._refuse_twin(stage, name)  # of two that were submitted at the same moment, both see the other here
        except ClusterError:
            self.cancel(name)
            raise

    def view(self, name: str) -> JobView:
        return read_rayjob(self._get(name))

    def views(self) -> list[JobView]:
        return sorted((read_rayjob(item) for item in self._list(_SELECTOR)), key=lambda view: str(view.created))

    def obstacles(self, name: str) -> list[str]:
        rayjob = self._get(name)
        pods = self._pods(rayjob)
        names = {pod["metadata"]["name"] for pod in pods}
        events = self._call(self._core.list_namespaced_event, self.namespace)["items"]
        mine = [event for event in events if _concerns(event["involvedObject"], name, names)]
        return untouched(rayjob, datetime.now(UTC), self.namespace) + find_obstacles(pods, mine)

    def lines(self, name: str, ended: Callable[[], bool]) -> Iterator[str]:
        num_read: Counter[str] = Counter()  # by pod; a broken stream is opened again and what was read is skipped
        while True:
            last = ended()
            try:
                yield from self._new_lines(name, num_read, follow=not last)
            except Unreachable:
                if last:
                    raise
            if last:
                return
            time.sleep(_POLL_S)

    def _new_lines(self, name: str, num_read: Counter[str], *, follow: bool) -> Iterator[str]:
        for pod in sorted(self._submitters(name), key=lambda pod: str(pod["metadata"]["creationTimestamp"])):
            uid = pod["metadata"]["uid"]
            for line in self._log(pod["metadata"]["name"], num_read[uid], follow=follow):
                num_read[uid] += 1
                yield line

    def cancel(self, name: str) -> str:
        arguments = (GROUP, API_VERSION, self.namespace, PLURAL, name)
        self._call(self._custom.delete_namespaced_custom_object, *arguments, propagation_policy="Background")
        return "cancelled"

    def remove(self, name: str) -> None:
        self.cancel(name)

    def _refuse_twin(self, stage: Stage, name: str) -> None:
        """Refuses where another unfinished job writes the same run, search or data set."""
        if (output := output_id(stage)) is None:
            return
        for view in (read_rayjob(item) for item in self._list(f"{OUTPUT_LABEL}={output}")):
            if view.name != name and not view.ended:
                raise ClusterError(
                    f"{stage.name} {stage.subject}: the job {view.name} is at it already ({view.words}); wait for it "
                    f"(historay jobs wait {view.name}{self.flags}) or cancel it"
                )

    def _hand_over_settings(self, name: str, rayjob: Object) -> None:
        """Has the ConfigMap go with the job; where that is refused the job runs all the same."""
        try:
            self._call(self._core.patch_namespaced_config_map, name, self.namespace, owner_reference(rayjob))
        except ClusterError as error:
            log_event("WARNING settings will outlive the job", config_map=name, reason=error)

    def _create_config_map(self, body: Object, **options: str) -> None:
        self._call(self._core.create_namespaced_config_map, self.namespace, body, **_STRICT, **options)

    def _create_rayjob(self, body: Object, **options: str) -> Object:
        arguments = (GROUP, API_VERSION, self.namespace, PLURAL, body)
        return self._call(self._custom.create_namespaced_custom_object, *arguments, **_STRICT, **options)

    def _get(self, name: str) -> Object:
        return self._call(self._custom.get_namespaced_custom_object, GROUP, API_VERSION, self.namespace, PLURAL, name)

    def _list(self, selector: str) -> list[Object]:
        arguments = (GROUP, API_VERSION, self.namespace, PLURAL)
        found = self._call(self._custom.list_namespaced_custom_object, *arguments, label_selector=selector)
        return list(found["items"])

    def _pods(self, rayjob: Object) -> list[Object]:
        ray_cluster = rayjob.get("status", {}).get("rayClusterName")
        found = self._submitters(rayjob["metadata"]["name"])
        if ray_cluster:
            selector = f"ray.io/cluster={ray_cluster}"
            found += self._call(self._core.list_namespaced_pod, self.namespace, label_selector=selector)["items"]
        return found

    def _submitters(self, name: str) -> list[Object]:
        found = self._call(self._core.list_namespaced_pod, self.namespace, label_selector=f"job-name={name}")
        return list(found["items"])

    def _log(self, pod: str, skip: int, *, follow: bool) -> Iterator[str]:
        """Yields a submitter's lines after the first ``skip``; nothing if there is no log yet."""
        try:
            stream: Any = self._core.read_namespaced_pod_log(
                pod, self.namespace, container=_SUBMITTER, follow=follow, _preload_content=False
            )
            for number, line in enumerate(stream):
                if number >= skip:
                    yield line.decode(errors="replace").rstrip("\n")
        except ApiException as error:
            if error.status not in _NO_LOG_YET:
                raise self._explained(error) from None
        except urllib3.exceptions.HTTPError:
            return  # the stream broke; the next round goes on behind what was read

    def _call(self, method: Callable[..., Any], *arguments: object, **options: object) -> Object:
        """Calls the API server and returns its answer as a plain mapping; errors come in words."""
        try:
            answer = method(*arguments, **options, _preload_content=False, _request_timeout=_TIMEOUT_S)
        except ApiException as error:
            raise self._explained(error) from None
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise Unreachable(
                f"the API server of {self._context} does not answer ({reason}); check that the cluster runs and is reached"
            ) from None
        answered: Object = json.loads(answer.data)
        return answered

    def _explained(self, error: ApiException) -> ClusterError:
        message = _message(error)
        match error.status:
            case 401:
                text = "does not know you; the login has run out, or the kubeconfig's user is not one of this cluster"
            case 403 if "forbidden: User" in message or "cannot " in message:
                text = f"refuses: {message}. Ask for the role that allows it"
            case 403:
                text = f"refuses: {'; '.join(refused(message)) or message}"
            case 404 if f"{PLURAL}.{GROUP}" in message or "page not found" in message:
                name = message.partition('"')[2].partition('"')[0]
                text = f"has no job {name}; historay jobs list{self.flags} shows those there are" if name else _NO_KUBERAY
            case 404 if message.startswith("namespaces "):
                text = "has no such namespace; create it or correct --namespace"
            case 429 | 500 | 502 | 503 | 504:
                return Unreachable(f"{self.where}: the API server is in trouble (HTTP {error.status}): {message}")
            case _:
                text = f"refuses (HTTP {error.status}): {message}"
        return ClusterError(f"{self.where} {text}")


_NO_KUBERAY = "knows no RayJob; install the KubeRay operator, whose chart brings the definitions"


def _connect(context: str | None) -> tuple[kubernetes.ApiClient, str, str]:
    """Returns a client, its own namespace, and what to call the cluster: by kubeconfig, else from inside a pod."""
    configuration = kubernetes.Configuration()
    configuration.retries = False
    kubeconfig = os.environ.get("KUBECONFIG")  # the client itself reads it once, when it is imported
    try:
        kube_config.load_kube_config(kubeconfig, context=context, client_configuration=configuration)  # type: ignore[no-untyped-call]
        known, current = kube_config.list_kube_config_contexts(kubeconfig)  # type: ignore[no-untyped-call]
        chosen = next((entry for entry in known if entry["name"] == context), current)
        return kubernetes.ApiClient(configuration), chosen["context"].get("namespace", "default"), f"context {chosen['name']}"
    except ConfigException as outside:
        if context or kubeconfig:
            raise ConfigError(
                f"kubeconfig {kubeconfig or '~/.kube/config'}, context {context or 'current'}: {outside}"
            ) from None
    try:
        kube_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        return kubernetes.ApiClient(configuration), _OWN_NAMESPACE.read_text().strip(), "this pod's cluster"
    except (ConfigException, OSError):
        raise ConfigError(
            "no Kubernetes: there is no kubeconfig (KUBECONFIG or ~/.kube/config), and this is no pod with a service account; "
            "for a plain Ray cluster give --address http://HOST:8265"
        ) from None


def _message(error: ApiException) -> str:
    try:
        return str(json.loads(error.body or "")["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.body or error.reason).strip()


def _concerns(thing: Object, name: str, pods: set[str]) -> bool:
    """Whether an event's object belongs to a job: its pods, the job itself, or what KubeRay and Kueue named after it."""
    there = thing.get("name", "")
    return there in pods or there == name or there.startswith((f"{name}-", f"rayjob-{name}-"))
