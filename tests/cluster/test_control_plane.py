"""The server that the other tests of this folder rely on is the real one, and strict."""

from apiserver import Cluster

RAY_JOB = """
apiVersion: ray.io/v1
kind: RayJob
metadata: {name: strict}
spec: {entrypoint: "true", backofLimit: 1}
"""


def test_a_misspelt_field_of_a_ray_job_is_refused_by_name(cluster: Cluster, namespace: str) -> None:
    said = cluster.kubectl(
        "apply", "-n", namespace, "--server-side", "--validate=strict", "-f", "-", stdin=RAY_JOB, check=False
    )
    assert "backofLimit" in said
    assert cluster.get("rayjobs.ray.io", "-n", namespace)["items"] == []


def test_access_is_decided_by_roles(cluster: Cluster, namespace: str) -> None:
    nobody = f"--as=system:serviceaccount:{namespace}:default"
    assert "no" in cluster.kubectl("auth", "can-i", "list", "pods", "-n", namespace, nobody, check=False)
    assert "yes" in cluster.kubectl("auth", "can-i", "list", "pods", "-n", namespace)


def test_a_new_namespace_gets_its_service_account_from_the_controllers(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("wait", "-n", namespace, "--for=create", "serviceaccount/default", "--timeout=180s")
