# Historay's image: Ray's head and workers, KubeRay's submitter, and the command line.
#
#   docker build --target cpu -t historay:0.1.0 .
#   docker build --target gpu -t historay:0.1.0-gpu .
#
# BASE is any Debian 12 with Python 3.11 and its venv module. bench/image.py builds these stages without Docker, in a chroot.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY requirements/uv.txt requirements/runtime.txt requirements/
RUN python3 -m venv /opt/uv \
    && /opt/uv/bin/python -m pip install --no-cache-dir --require-hashes --no-deps -r requirements/uv.txt
# Everything that runs, by hash. Compiled here, since nothing can be written where it runs.
RUN --mount=type=cache,target=/root/.cache/uv \
    python3 -m venv --without-pip /opt/historay \
    && /opt/uv/bin/uv pip install --python /opt/historay/bin/python --require-hashes --no-deps --link-mode copy \
    --compile-bytecode -r requirements/runtime.txt
COPY pyproject.toml README.md ./
COPY platform platform
RUN /opt/uv/bin/uv build --wheel --no-build-isolation --python /opt/uv/bin/python --out-dir /dist \
    && /opt/uv/bin/uv pip install --python /opt/historay/bin/python --no-deps --offline --compile-bytecode /dist/*.whl

# torch's wheel links to the CUDA libraries even on a CPU. What it never opens there goes: Triton and cuDNN's kernels, 1.9 GB.
FROM build AS build-cpu
RUN packages=/opt/historay/lib/python3.11/site-packages \
    && rm -r "$packages"/triton "$packages"/triton-*.dist-info \
    && find "$packages"/nvidia/cudnn/lib -name 'libcudnn_*' -delete \
    && /opt/historay/bin/python -c "import torch, torchvision; torchvision.models.resnet18()(torch.zeros(1, 3, 64, 64)).sum().backward()"

# Neither compiler nor pip nor uv from here on.
FROM ${BASE} AS runtime
# tini reaps what Ray leaves behind under `docker run`. In a pod KubeRay sets its own command, and bash is the first process.
RUN apt-get update \
    && apt-get install -y --no-install-recommends "tini=0.19.0-1*" \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --no-create-home --home-dir /tmp historay
# The root file system may be read-only: /tmp is all that is written to, by Ray, by libraries (HOME) and by our stores.
ENV PATH=/opt/historay/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["historay", "--help"]
LABEL org.opencontainers.image.title="historay" \
      org.opencontainers.image.description="Trains, judges and serves classifiers of histology tiles on Ray. Not a medical device." \
      org.opencontainers.image.licenses="Apache-2.0"

FROM runtime AS cpu
COPY --from=build-cpu /opt/historay /opt/historay

FROM runtime AS gpu
COPY --from=build /opt/historay /opt/historay
# What NVIDIA's container runtime mounts: the driver's CUDA libraries and nvidia-smi.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
