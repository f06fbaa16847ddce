#!/usr/bin/env bash
# Takes away what `make kind` made: the cluster with all in it, the images, the build's cache. Nothing happens if it is gone already.
set -euo pipefail

readonly CLUSTER=historay IMAGE=historay:kind BUILDER=historay

main() {
    local node builder
    node=$(image_of "$CLUSTER-control-plane")
    builder=$(image_of "buildx_buildkit_${BUILDER}0")
    if kind get clusters 2>/dev/null | grep -qx "$CLUSTER"; then
        kind delete cluster --name "$CLUSTER"
    fi
    if docker buildx inspect "$BUILDER" >/dev/null 2>&1; then
        docker buildx rm "$BUILDER" # with its cache and the base image in it
    fi
    for image in "$IMAGE" "$node" "$builder"; do
        if docker image inspect "$image" >/dev/null 2>&1; then
            docker image rm "$image" || printf '%s stays: something else uses it\n' "$image" >&2
        fi
    done
    docker network rm kind >/dev/null 2>&1 || true # kind's own, which other clusters share
}

# The image that a container was started from; nothing if there is no such container.
image_of() {
    docker container inspect --format '{{.Config.Image}}' "$1" 2>/dev/null || true
}

main
