#!/usr/bin/env bash
# The whole path on synthetic tiles, by the commands that a user would type. Everything lands in demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
port=${PORT:-8000}
if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
  echo "port $port is taken; choose another: PORT=8001 make demo" >&2
  exit 1
fi

step() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

step historay synth jobs/configs/demo-synthetic.yaml
step historay ingest jobs/configs/demo-ingest.yaml
step historay train jobs/configs/demo-train.yaml
step historay evaluate jobs/configs/demo-evaluate.yaml
step historay models promote demo@candidate --store demo/store --reason "the demo's first model"

printf '\n\033[1m$ historay serve jobs/configs/demo-serve.yaml --port %s &\033[0m\n' "$port"
historay serve jobs/configs/demo-serve.yaml --port "$port" &
server=$!
trap 'kill -INT $server 2>/dev/null; wait $server 2>/dev/null || true' EXIT
for _ in $(seq 120); do
  curl -fs "http://127.0.0.1:$port/readyz" >/dev/null && break
  kill -0 $server || { echo "the endpoint ended before it was ready" >&2; exit 1; }
  sleep 1
done

step historay predict demo/tiles/images --limit 4 --url "http://127.0.0.1:$port"
step python jobs/check_served.py demo/store "http://127.0.0.1:$port"

cat <<DONE

Where to look:
  data set card   $(ls -d demo/store/datasets/demo/*/card.html)
  report          demo/store/runs/demo/report.html
  the model       historay models show demo --store demo/store
  endpoint again  historay serve jobs/configs/demo-serve.yaml
DONE
