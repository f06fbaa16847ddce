#!/usr/bin/env bash
# Takes away what `make kind` made: the cluster with all in it, and the image. Nothing happens if it is gone already.
set -euo pipefail

readonly CLUSTER=historay IMAGE=historay:kind

if kind get clusters 2>/dev/null | grep -qx "$CLUSTER"; then
    kind delete cluster --name "$CLUSTER"
fi
if docker image inspect "$IMAGE" >/dev/null 2>&1; then
    docker image rm "$IMAGE"
fi
