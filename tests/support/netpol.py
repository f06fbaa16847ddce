"""Who may talk to whom under a set of NetworkPolicies, as Kubernetes defines it.

A pod that no policy selects for a direction is open in it; a selected one is closed but for what some rule allows. A
connection needs both ends: egress of the one that opens it, ingress of the other.
"""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Policy = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod, or with ``address`` alone something outside the cluster."""

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""


def may_connect(policies: Sequence[Policy], source: Pod, destination: Pod, port: int, protocol: str = "TCP") -> bool:
    """Tells whether ``source`` may open a connection to the port of ``destination``."""
    out = _allows(policies, "Egress", source, destination, port, protocol)
    return out and _allows(policies, "Ingress", destination, source, port, protocol)


def _allows(policies: Iterable[Policy], direction: str, own: Pod, peer: Pod, port: int, protocol: str) -> bool:
    if own.address:
        return True  # not a pod: no policy is about it
    applying = [policy for policy in policies if _applies(policy, direction, own)]
    rules = [(policy, rule) for policy in applying for rule in policy["spec"].get(direction.lower()) or []]
    peers = "to" if direction == "Egress" else "from"
    return not applying or any(
        _peer_matches(policy, rule.get(peers), peer) and _port_matches(rule.get("ports"), port, protocol)
        for policy, rule in rules
    )


def _applies(policy: Policy, direction: str, pod: Pod) -> bool:
    spec = policy["spec"]
    own_namespace = policy["metadata"]["namespace"] == pod.namespace
    return own_namespace and direction in spec["policyTypes"] and _selects(spec["podSelector"], pod.labels)


def _peer_matches(policy: Policy, peers: Sequence[Any] | None, pod: Pod) -> bool:
    return not peers or any(_one_peer_matches(policy, peer, pod) for peer in peers)


def _one_peer_matches(policy: Policy, peer: Any, pod: Pod) -> bool:
    if "ipBlock" in peer:
        # Of addresses outside the cluster only: network plugins differ on whether a pod's own address counts.
        block = peer["ipBlock"]
        inside = bool(pod.address) and ipaddress.ip_address(pod.address) in ipaddress.ip_network(block["cidr"])
        return inside and not any(
            ipaddress.ip_address(pod.address) in ipaddress.ip_network(part) for part in block.get("except", [])
        )
    if pod.address:
        return False
    if "namespaceSelector" in peer:
        namespace_labels = {"kubernetes.io/metadata.name": pod.namespace}
        if not _selects(peer["namespaceSelector"], namespace_labels):
            return False
    elif pod.namespace != policy["metadata"]["namespace"]:
        return False
    return _selects(peer.get("podSelector", {}), pod.labels)


def _port_matches(ports: Sequence[Any] | None, port: int, protocol: str) -> bool:
    return not ports or any(
        entry.get("protocol", "TCP") == protocol and entry["port"] <= port <= entry.get("endPort", entry["port"])
        for entry in ports
    )


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    wanted = selector.get("matchLabels") or {}
    return wanted.items() <= labels.items() and all(
        _expression_holds(expression, labels) for expression in selector.get("matchExpressions") or []
    )


def _expression_holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            return value in expression["values"]
        case "NotIn":
            return value not in expression["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    raise AssertionError(f"unknown operator {expression['operator']}")
