"""Where a submitted stage runs, and with what."""

import re
from importlib.metadata import version
from typing import Annotated

from pydantic import Field, model_validator

from historay.config import Config

# What Kubernetes takes as the name of a Secret, a claim, a queue, a priority class.
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
Memory = Annotated[str, Field(pattern=r"^[1-9][0-9]*(Mi|Gi|Ti)$")]

DATA_MOUNT = "/data"  # where --claim stands in every pod
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_ENV = re.compile(rf"^{_VARIABLE}=.*$", re.DOTALL)
_SECRET = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"  # noqa: S105 - a pattern of names, no password
_ENV_FROM_SECRET = re.compile(rf"^({_SECRET}|{_VARIABLE}={_SECRET}/[-._a-zA-Z0-9]+)$")


class SubmitConfig(Config):
    """Runs a stage on a cluster: as a RayJob on Kubernetes, or on a plain Ray cluster by --address."""

    image: str | None = None
    """The image of every pod; its Ray must be the one installed here. historay:VERSION if not given, with gpus VERSION-gpu."""
    workers: int = Field(default=2, ge=1)
    """Worker pods."""
    cpus: int = Field(default=4, ge=1)
    """CPUs of each worker pod."""
    memory: Memory = "8Gi"
    """Memory of each worker pod."""
    gpus: int = Field(default=0, ge=0)
    """NVIDIA GPUs of each worker pod."""
    head_cpus: int = Field(default=2, ge=1)
    """CPUs of the head pod, which runs Ray's own services and the driver of ingest and train."""
    head_memory: Memory = "8Gi"
    """Memory of the head pod; ingest holds the columns of the whole data set there, without its images."""
    namespace: ObjectName | None = None
    """Namespace; the one of the kubeconfig's context, or the pod's own, if not given."""
    context: str | None = None
    """Context of the kubeconfig; the current one if not given."""
    queue: ObjectName | None = None
    """Kueue LocalQueue that admits the job."""
    priority: ObjectName | None = None
    """PriorityClass of the pods."""
    service_account: ObjectName | None = None
    """Service account of the pods, for S3 by IRSA or workload identity and for pulling the image."""
    env: tuple[str, ...] = ()
    """Environment of the pods, NAME=value, such as AWS_ENDPOINT_URL=http://s3:9000; no secrets here."""
    env_from_secret: tuple[str, ...] = ()
    """SECRET for all of a Secret's keys as environment, or NAME=SECRET/KEY for one of them."""
    claim: ObjectName | None = None
    """PersistentVolumeClaim (ReadWriteMany) that every pod sees as /data."""
    deadline_h: float = Field(default=24.0, gt=0)
    """Hours after which KubeRay ends the job, over all its attempts."""
    start_deadline_min: int = Field(default=60, ge=1)
    """Minutes in which the pods must have started; a GPU that never comes then fails the job instead of holding the rest."""
    retries: int = Field(default=1, ge=0)
    """New clusters that KubeRay tries after a failure; training goes on from its last checkpoint."""
    address: str | None = None
    """http://HOST:8265 of a plain Ray cluster, which then takes the place of Kubernetes."""
    detach: bool = False
    """Return once the job is accepted."""
    dry_run: bool = False
    """Let the API server check everything and create nothing; prints the RayJob."""

    @property
    def pod_image(self) -> str:
        """The image of every pod: if none is given the Dockerfile's, whose cpu target cannot use a GPU."""
        return self.image or f"historay:{version('historay')}{'-gpu' if self.gpus else ''}"

    @model_validator(mode="after")
    def _check_environment(self) -> "SubmitConfig":
        for entry in self.env:
            if not _ENV.match(entry):
                raise ValueError(f"env={entry!r}: expected NAME=value")
        for entry in self.env_from_secret:
            if not _ENV_FROM_SECRET.match(entry):
                raise ValueError(f"env_from_secret={entry!r}: expected SECRET or NAME=SECRET/KEY")
        return self

    @model_validator(mode="after")
    def _check_address(self) -> "SubmitConfig":
        if self.address is None:
            return self
        if not self.address.startswith(("http://", "https://")):
            raise ValueError(f"address={self.address!r}: expected the dashboard's http://HOST:8265")
        for name in ("queue", "priority", "service_account", "claim", "env_from_secret", "namespace", "context", "dry_run"):
            if value := getattr(self, name):
                raise ValueError(
                    f"address={self.address!r} and {name}={value!r}: only Kubernetes knows {name}; drop one of the two"
                )
        return self


class JobsConfig(Config):
    """Where the jobs are: a namespace of Kubernetes, or a plain Ray cluster by --address."""

    namespace: ObjectName | None = None
    """Namespace; the one of the kubeconfig's context, or the pod's own, if not given."""
    context: str | None = None
    """Context of the kubeconfig; the current one if not given."""
    address: str | None = None
    """http://HOST:8265 of a plain Ray cluster, which then takes the place of Kubernetes."""
