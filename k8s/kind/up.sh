#!/usr/bin/env bash
# From nothing to a served prediction on a laptop with Docker, 6 CPUs and 12 GiB for it: `make kind`. Every step can be run again;
# `make kind-down` takes it all away.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly CLUSTER=historay IMAGE=historay:kind BUILDER=historay NAMESPACE=historay
readonly KUBERAY=1.7.0 # the version whose definitions the tests load

main() {
    for tool in docker kind kubectl helm curl; do
        command -v "$tool" >/dev/null || fail "$tool is missing; install it and run 'make kind' again"
    done
    docker info >/dev/null 2>&1 || fail "Docker does not answer; start it and run 'make kind' again"
    step "cluster" start_cluster
    step "image" load_image
    step "KubeRay" install_operator
    step "namespace and store" apply_base
    step "demo data" draw_demo_data
    local stage
    for stage in ingest train evaluate; do
        step "$stage" run_stage "$stage"
    done
    step "endpoint" install_endpoint
    step "one prediction" predict
}

start_cluster() {
    kind get clusters 2>/dev/null | grep -qx "$CLUSTER" || kind create cluster --config k8s/kind/cluster.yaml --wait 2m
    kind export kubeconfig --name "$CLUSTER" >/dev/null 2>&1
}

load_image() {
    # A builder of its own: its cache goes with it.
    docker buildx inspect "$BUILDER" >/dev/null 2>&1 || docker buildx create --name "$BUILDER" --driver docker-container
    docker buildx build --builder "$BUILDER" --load --target cpu --tag "$IMAGE" .
    kind load docker-image "$IMAGE" --name "$CLUSTER"
}

install_operator() {
    helm_ upgrade --install kuberay-operator kuberay-operator --version "$KUBERAY" \
        --repo https://ray-project.github.io/kuberay-helm \
        --namespace kuberay-system --create-namespace --wait --timeout 5m
}

apply_base() {
    # A Job's pod cannot be changed: the last run's goes first.
    kubectl_ delete job demo-data --ignore-not-found
    kubectl_ apply --server-side -k k8s/overlays/kind
    kubectl_ rollout status deployment/s3 --timeout 5m
}

draw_demo_data() {
    kubectl_ wait job/demo-data --for condition=Complete --timeout 15m
}

# Runs one stage as a RayJob and returns once it has ended; on failure prints the end of its log.
run_stage() {
    local stage=$1 status=""
    kubectl_ delete rayjob "$stage" --ignore-not-found
    kubectl_ apply -k k8s/overlays/kind/jobs -l "app.kubernetes.io/component=$stage"
    for _ in $(seq 360); do # half an hour
        status=$(kubectl_ get rayjob "$stage" -o 'jsonpath={.status.jobDeploymentStatus}')
        case $status in
        Complete) return 0 ;;
        Failed)
            kubectl_ logs --tail 50 -l "job-name=$stage" || true
            fail "$stage failed: $(kubectl_ get rayjob "$stage" -o 'jsonpath={.status.message}')"
            ;;
        *) sleep 5 ;;
        esac
    done
    fail "$stage has not ended after half an hour (status '$status'); see: kubectl -n $NAMESPACE describe rayjob $stage"
}

install_endpoint() {
    helm_ upgrade --install historay helm/historay --namespace "$NAMESPACE" -f helm/historay/ci/kind-values.yaml
    kubectl_ wait rayservice/historay --for condition=Ready --timeout 15m
    kubectl_ wait endpointslice -l kubernetes.io/service-name=historay-serve-svc \
        --for 'jsonpath={.endpoints[0].conditions.ready}=true' --timeout 5m
}

predict() {
    local key folder forward
    folder=$(mktemp -d)
    # A tile of another seed than the training's, drawn by the image itself.
    docker run --rm "$IMAGE" sh -c 'historay synth --out /tmp/t --num-tiles 100 --seed 1 >/dev/null 2>&1 && cat /tmp/t/images/000000.jpg' \
        >"$folder/tile.jpg"
    key=$(kubectl_ get secret historay-api-key -o 'jsonpath={.data.api-key}' | base64 -d)
    kubectl --context "kind-$CLUSTER" --namespace "$NAMESPACE" port-forward service/historay-serve-svc 18000:8000 \
        >"$folder/forward.log" 2>&1 &
    forward=$!
    # shellcheck disable=SC2064 # now, while the variables have their values
    trap "kill $forward 2>/dev/null || true; rm -rf '$folder'" EXIT
    curl --silent --show-error --fail-with-body --retry 20 --retry-delay 1 --retry-all-errors \
        -H "Authorization: Bearer $key" -F "images=@$folder/tile.jpg" http://127.0.0.1:18000/v1/predict
    printf '\n'
}

step() {
    printf '\n== %s\n' "$1"
    "${@:2}"
}

fail() {
    printf '%s\n' "$1" >&2
    exit 1
}

# Always the kind cluster, whatever context the user works in.
helm_() {
    helm --kube-context "kind-$CLUSTER" "$@"
}

kubectl_() {
    kubectl --context "kind-$CLUSTER" --namespace "$NAMESPACE" "$@"
}

main
