"""Why pods do not run, in words with the fix: from their conditions, their containers' states and the events about them.

Pure: objects in as plain mappings of the Kubernetes API, sentences out. Every text that is matched is one that Kubernetes'
scheduler, kubelet, quota or Kueue writes; what none of the rules knows is quoted as it stands.
"""

import re
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

Object = dict[str, Any]


class Rule(NamedTuple):
    """A pattern in a message of Kubernetes, and what it means; ``{0}`` is the pattern's first group."""

    pattern: str
    words: str


_SCHEDULER = (
    Rule(
        r"Insufficient nvidia\.com/gpu",
        "no node has that many GPUs free; add a GPU node or lower --gpus; on GPU nodes, the NVIDIA device plugin must run",
    ),
    Rule(r"Insufficient cpu", "no node has that many CPUs free; lower --cpus or --head-cpus, or add a node"),
    Rule(r"Insufficient memory", "no node has that much memory free; lower --memory or --head-memory, or add a node"),
    Rule(r"Insufficient ephemeral-storage", "no node has disk enough for the pod; free its disk or add a node"),
    Rule(
        r'persistentvolumeclaim "([^"]+)" (?:not found|is being deleted)',
        "there is no PersistentVolumeClaim {0} in this namespace; create it or correct --claim",
    ),
    Rule(
        r"unbound immediate PersistentVolumeClaims",
        "the PersistentVolumeClaim has no volume yet; kubectl describe pvc says why, mostly a missing storage class",
    ),
    Rule(
        r"volume node affinity conflict",
        "the volume of --claim is in another zone than the free nodes; use ReadWriteMany storage that every node reaches",
    ),
    Rule(r"untolerated taint\(?s?\)? ?(\{[^}]*\})?", "some nodes are kept for other pods by a taint {0}"),
    Rule(r"didn't match Pod's node affinity/selector", "no node has the labels that the pods ask for"),
    Rule(r"Too many pods", "the nodes run as many pods as they may; add a node"),
    Rule(r"no nodes available", "the cluster has no node that takes pods; add one"),
)
_CONTAINER = (
    Rule(r"secret \"([^\"]+)\" not found", "there is no Secret {0} in this namespace; create it or correct --env-from-secret"),
    Rule(
        r"couldn't find key (\S+) in Secret [^/]+/(\S+)", "the Secret {1} has no key {0}; add it or correct --env-from-secret"
    ),
    Rule(r"configmap \"([^\"]+)\" not found", "the ConfigMap {0} with the stage's settings is gone; submit the job again"),
    Rule(r"runAsNonRoot and image (?:will run as root|has non-numeric user)", "its image runs as root, which pods may not"),
    Rule(r"references non-existent secret key: (\S+)", "a Secret has no key {0}; add it or correct --env-from-secret"),
)
_ADMISSION = (
    Rule(
        r"exceeded quota: (\S+), requested: count/rayjobs\.ray\.io=",
        "the namespace's quota {0} is full of jobs; historay jobs clean removes those that have ended",
    ),
    Rule(
        r"exceeded quota: (\S+), requested: (.+), used: (.+), limited: ([^\n]+)",
        "the namespace's quota {0} is used up (asks for {1}, used {2}, of {3}); wait for other jobs, ask for less, or raise it",
    ),
    Rule(r"failed quota: (\S+): ([^\n]+)", "the namespace's quota {0} refuses it: {1}"),
    Rule(r"no PriorityClass with name (\S+) was found", "there is no PriorityClass {0}; kubectl get priorityclass lists them"),
    Rule(
        r"serviceaccount \"([^\"]+)\" not found", "there is no service account {0} in this namespace; correct --service-account"
    ),
    Rule(r"violates PodSecurity \"([^\"]+)\": ([^\n]+)", "the namespace's Pod Security level {0} refuses it: {1}"),
    Rule(r"((?:maximum|minimum) \w+ usage per \w+ is [^\n]+)", "the namespace's LimitRange refuses it: {0}"),
)
_KUEUE = (
    Rule(r"(LocalQueue \S+ (?:doesn't exist|is inactive))", "{0}; kubectl get localqueue lists those of this namespace"),
    Rule(r"(couldn't assign flavors[^\n]+|insufficient [^\n]*quota[^\n]+)", "queued; Kueue has no room for it now: {0}"),
)
_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "RegistryUnavailable"}
_REFUSED = {"FailedCreate", "FailedToCreateHeadPod", "FailedToCreateWorkerPod", "FailedToCreateRayJobSubmitter"}
_UNTOUCHED = timedelta(seconds=30)  # a running operator takes a job up within a second or two


def find_obstacles(pods: Iterable[Object], events: Iterable[Object]) -> list[str]:
    """Returns a sentence for each thing that keeps the pods from running, most common first; empty if nothing does."""
    events, pods = list(events), list(pods)
    found = Counter(f"{_role(pod)}: {words}" for pod in pods for words in _of_pod(pod, events))
    found.update(dict.fromkeys(_of_events(events), 1))
    return [f"{count} pods, {words}" if count > 1 else words for words, count in found.most_common()]


def untouched(rayjob: Object, now: datetime, namespace: str) -> list[str]:
    """Says that no operator looks at a job, where none has for half a minute."""
    created = datetime.fromisoformat(rayjob["metadata"]["creationTimestamp"])
    if rayjob.get("status", {}).get("jobDeploymentStatus") or now - created < _UNTOUCHED or rayjob["spec"].get("suspend"):
        return []
    return [f"no KubeRay operator has taken the job up for 30 s; is it running, and does it watch the namespace {namespace}?"]


def refused(message: str) -> list[str]:
    """Returns the words for the first rule by which the server refuses an object, and the fix; none if it is not known."""
    return explain(_ADMISSION, message)[:1]


def explain(rules: tuple[Rule, ...], message: str) -> list[str]:
    """Returns the words of every rule that the message matches."""
    matches = ((rule, re.search(rule.pattern, message)) for rule in rules)
    return [rule.words.format(*(group or "" for group in match.groups())).strip() for rule, match in matches if match]


def _of_pod(pod: Object, events: list[Object]) -> list[str]:
    status = pod.get("status", {})
    if status.get("reason") == "Evicted":
        return [f"evicted from its node: {status.get('message', 'no reason given').strip()}"]
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return _unscheduled(condition.get("message", ""), _about(pod, events))
    states = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    found = [words for state in states for words in _of_container(state)]
    if not found and status.get("phase", "Pending") == "Pending":
        found = [words for event in _about(pod, events) for words in _of_mount(event)]
    return list(dict.fromkeys(found))


def _unscheduled(message: str, events: list[Object]) -> list[str]:
    words = explain(_SCHEDULER, message) or [f"cannot be placed: {message}"]
    reasons = {event.get("reason"): event.get("message", "") for event in events}
    if "TriggeredScaleUp" in reasons:
        words.append("the cluster autoscaler is adding a node")
    elif "NotTriggerScaleUp" in reasons:
        words.append(f"the cluster autoscaler adds no node ({reasons['NotTriggerScaleUp']})")
    return ["; ".join(words)]


def _of_container(container: Object) -> list[str]:
    waiting = container.get("state", {}).get("waiting", {})
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _PULL:
        return [_unpulled(container["image"], message)]
    if reason == "ErrImageNeverPull":
        return [f"the image {container['image']} is not on its node and may not be pulled; load it (kind load docker-image)"]
    if reason in {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}:
        return explain(_CONTAINER, message) or [f"its container cannot start: {message}"]
    ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated") or {}
    if ended.get("reason") == "OOMKilled":
        return ["killed for using more memory than it asked for; raise --memory or --head-memory"]
    if reason == "CrashLoopBackOff":
        return [f"its container keeps ending with exit code {ended.get('exitCode', '?')}; kubectl logs --previous says why"]
    return []


def _unpulled(image: str, message: str) -> str:
    low = message.lower()
    if "unauthorized" in low or "401" in low or "403" in low or "denied" in low:
        why = "the registry refuses access; give the service account an image pull secret"
    elif "not found" in low or "manifest unknown" in low:
        why = "the registry does not have it; push it or correct --image"
    else:
        why = f"push it or correct --image ({message or 'no reason given yet'})"
    return f"the image {image} cannot be pulled; {why}"


def _of_mount(event: Object) -> list[str]:
    if event.get("reason") not in {"FailedMount", "FailedAttachVolume"}:
        return []
    message = event.get("message", "")
    return explain(_CONTAINER, message) or [f"a volume cannot be mounted: {message}"]


def _of_events(events: list[Object]) -> list[str]:
    """What events say of pods that could not even be made, and of Kueue's queue."""
    found = []
    for event in events:
        message = event.get("message", "")
        if event.get("reason") in _REFUSED:
            found += explain(_ADMISSION, message) or [f"a pod cannot be created: {message}"]
        elif event.get("involvedObject", {}).get("kind") in {"Workload", "RayJob"}:
            found += explain(_KUEUE, message)
    return list(dict.fromkeys(found))


def _about(pod: Object, events: list[Object]) -> list[Object]:
    return [event for event in events if event.get("involvedObject", {}).get("uid") == pod["metadata"].get("uid")]


def _role(pod: Object) -> str:
    labels = pod["metadata"].get("labels", {})
    return labels.get("ray.io/node-type") or "submitter"
