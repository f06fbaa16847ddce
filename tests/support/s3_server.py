"""versitygw, a real S3 server over a folder, on loopback; it can be stopped and started again on the same port."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gotools import go_program
from processes import wait_for_port

S3_KEYS = {"AWS_ACCESS_KEY_ID": "historay-test", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_REGION": "us-east-1"}
TOOLS = Path(__file__).parents[1] / "tools"


@contextmanager
def s3_server_over(folder: Path, port: int) -> Iterator[None]:
    """Serves the folder's ``buckets/`` for as long as the block lasts; the one bucket is called tiles."""
    (folder / "buckets" / "tiles").mkdir(parents=True, exist_ok=True)
    (folder / "sidecar").mkdir(exist_ok=True)
    command = [str(go_program(TOOLS, "github.com/versity/versitygw/cmd/versitygw")), "--port", f"127.0.0.1:{port}"]
    command += ["--access", S3_KEYS["AWS_ACCESS_KEY_ID"], "--secret", S3_KEYS["AWS_SECRET_ACCESS_KEY"], "--quiet", "posix"]
    command += ["--sidecar", str(folder / "sidecar"), str(folder / "buckets")]
    with (folder / "log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for_port(port, server)
            yield
        finally:
            server.terminate()
            server.wait(timeout=10)
