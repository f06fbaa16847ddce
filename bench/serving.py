"""One ResNet-18 at 96 px behind Historay and behind its peers: python bench/serving.py [NAME...]; about 8 minutes for all.

Requests are sent by bombardier (Go) from the same machine. Needs Go, and ../shared/data/pcam for the tiles.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from gotools import go_program

from historay.data.decode import decode_tile
from historay.data.transforms import Preprocessing, to_input
from historay.evaluation.operating_point import OperatingPoint
from historay.models.bundle import BundleSpec, load_bundle, make_probes, save_bundle
from historay.models.registry import CANDIDATE, set_alias
from historay.models.runtime import make_runtime
from historay.models.zoo import build_model
from historay.storage import Store, open_store

HERE = Path(__file__).parent
ROOT = HERE.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "/var/tmp")) / "historay-tools"
PORT, SECONDS, CONCURRENCY, NUM_TILES, MANY = 8700, int(os.environ.get("S", "10")), 32, 512, 64
BOUNDARY = "historay-bench"


class Load(NamedTuple):
    """What bombardier saw."""

    per_second: float
    p50_ms: float
    p99_ms: float
    by_status: dict[str, int]  # 2xx, 4xx, 5xx, and others: no answer at all

    @property
    def num_failed(self) -> int:
        return sum(self.by_status.values()) - self.by_status["2xx"]


class Peer(NamedTuple):
    """A server: how it is started, and how it is asked."""

    command: list[str | Path]
    path: str
    field: str | None  # of the multipart form; None: the image is the body
    settings: tuple[tuple[str, str], ...] = ()  # environment


def peers(store: Store) -> dict[str, Peer]:
    """Every server that is compared, by what the table calls it."""
    python, own = peer_python(), Path(sys.executable)
    serve = [own.with_name("historay"), "serve", "--store", store.uri, "--model", "bench", "--port", str(PORT)]
    bentoml = ["serve", "bentoml_app:Tiles", "--host", "127.0.0.1", "--port", str(PORT), "--working-dir", HERE / "peers"]
    historay = Peer([*serve, "--cpus-per-replica", "2"], "/v1/predict", None)
    plain = (("RAY_SERVE_THROUGHPUT_OPTIMIZED", "0"),)
    return {
        "historay": historay,
        "historay without Ray's throughput settings": historay._replace(settings=plain),
        "historay behind Ray's Python proxy": historay._replace(settings=(*plain, ("RAY_SERVE_ENABLE_HA_PROXY", "0"))),
        "historay in eager torch": historay._replace(command=[*historay.command, "--runtime", "torch"]),
        "ray-serve": Peer([own, HERE / "peers" / "ray_app.py", str(PORT)], "/", None),
        "litserve": Peer([python, HERE / "peers" / "litserve_app.py", str(PORT)], "/predict", "image"),
        "bentoml": Peer([python.with_name("bentoml"), *bentoml], "/predict", "images"),
    }


def peer_python() -> Path:
    """Installs the pinned peers once, outside the checkout: they cannot share Historay's environment."""
    folder, lock = CACHE / "serving-peers", HERE / "peers" / "requirements.txt"
    python = folder / "bin" / "python"
    kept = folder / "requirements.txt"
    if not kept.exists() or kept.read_bytes() != lock.read_bytes():
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, folder], check=True)
        subprocess.run(
            [uv, "pip", "install", "-q", "--python", python, "--require-hashes", "--no-deps", "-r", lock], check=True
        )
        shutil.copyfile(lock, kept)
    return python


def read_tiles() -> list[bytes]:
    """Reads the first test tiles of PCam as they are stored, JPEG."""
    with tarfile.open(ROOT.parent / "shared" / "data" / "pcam" / "test.tar") as archive:
        files = [member for member in archive if member.isfile()][:NUM_TILES]
        return [archive.extractfile(member).read() for member in files]  # type: ignore[union-attr]


def make_bundle(store: Store, tiles: list[bytes]) -> str:
    """Saves a ResNet-18 of random weights whose batch norms have seen the tiles: speed does not depend on what it learnt."""
    pixels = np.stack([decode_tile(tile) for tile in tiles[:256]])
    preprocessing = Preprocessing(input_px=96, mean=(0.70, 0.54, 0.69), std=(0.24, 0.28, 0.21))
    torch.manual_seed(0)
    model = build_model("resnet18", 2, 96, 0.0).train()
    with torch.no_grad():
        for start in range(0, len(pixels), 32):
            model(to_input(torch.from_numpy(pixels[start : start + 32]), preprocessing))
    point = OperatingPoint(positive_class="tumour", threshold=0.5, rule="bench")
    spec = BundleSpec(
        name="bench",
        architecture="resnet18",
        dropout=0.0,
        classes=("normal", "tumour"),
        preprocessing=preprocessing,
        mpp=0.97,
        operating_point=point,
        dataset="pcam@0",
        dataset_digest="0" * 64,
        accepted_leaks=(),
        run="bench",
        seed=0,
        created="2026-01-01T00:00:00+00:00",
        historay="0",
    )
    version = save_bundle(store, spec, model.eval(), {}, make_probes(model, pixels[:12], preprocessing))
    set_alias(store, "bench", CANDIDATE, version, "bench")
    return version


def in_process(store: Store, version: str, tiles: list[bytes], decodes: bool) -> float:
    """Tiles a second of a plain loop around OpenVINO, two streams of 16 tiles, with decoding or without."""
    runtime = make_runtime(load_bundle(store, "bench", version), "auto", 2)
    ready = np.stack([decode_tile(tile) for tile in tiles[:16]])
    batches = [tiles[start : start + 16] for start in range(0, len(tiles), 16)]

    def run(batch: list[bytes]) -> None:
        runtime.run(np.stack([decode_tile(tile) for tile in batch]) if decodes else ready)

    with ThreadPoolExecutor(runtime.num_streams) as threads:
        list(threads.map(run, batches))
        started, num_done = time.perf_counter(), 0
        while time.perf_counter() - started < SECONDS:
            num_done += sum(1 for _ in threads.map(run, batches)) * 16
        return num_done / (time.perf_counter() - started)


@contextmanager
def running(peer: Peer, home: Path, bundle: Path, body: Path) -> Iterator[None]:
    """Starts a server and waits for its first answer; ends its whole process group."""
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "HOME": str(home), "BENCH_BUNDLE": str(bundle), "PYTHONPATH": str(ROOT / "platform")}
    environment |= {"BENTOML_DO_NOT_TRACK": "True", "RAY_worker_niceness": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= dict(peer.settings)
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(peer.command, env=environment, cwd=home, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(lambda: answers(peer, body), server, home / "log")
            yield
        finally:
            os.killpg(server.pid, signal.SIGINT)
            try:
                server.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def wait_for(condition: Callable[[], bool], server: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        if condition():
            return
        if server.poll() is not None:
            break
        time.sleep(0.3)
    sys.exit(f"{server.args!r} did not answer:\n{log.read_text()[-2000:]}")


def answers(peer: Peer, body: Path) -> bool:
    request = urllib.request.Request(url(peer), body.read_bytes(), {"Content-Type": content_type(peer)}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def url(peer: Peer) -> str:
    return f"http://127.0.0.1:{PORT}{peer.path}"


def content_type(peer: Peer) -> str:
    return "image/jpeg" if peer.field is None else f"multipart/form-data; boundary={BOUNDARY}"


def write_body(path: Path, field: str | None, tiles: list[bytes]) -> Path:
    """Writes what each request sends."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="t.jpg"\r\n'
    head += "Content-Type: image/jpeg\r\n\r\n"
    parts = [head.encode() + tile + b"\r\n" for tile in tiles]
    path.write_bytes(tiles[0] if field is None else b"".join(parts) + f"--{BOUNDARY}--\r\n".encode())
    return path


def load(peer: Peer, body: Path, concurrency: int, seconds: int, rate: float | None = None) -> Load:
    """Runs bombardier, at full speed or at a rate of requests per second."""
    program = go_program(HERE / "tools", "github.com/codesenberg/bombardier")
    command = [program, "-m", "POST", "-f", body, "-H", f"Content-Type: {content_type(peer)}", "-c", str(concurrency)]
    command += ["-d", f"{seconds}s", "-t", "30s", "-l", "-p", "r", "-o", "json"]
    command += [*(["-r", str(int(rate))] if rate else []), url(peer)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)["result"]
    percentiles = result["latency"]["percentiles"]
    by_status = {"2xx": result["req2xx"], "4xx": result["req4xx"], "5xx": result["req5xx"], "others": result["others"]}
    return Load(result["req2xx"] / result["timeTakenSeconds"], percentiles["50"] / 1000, percentiles["99"] / 1000, by_status)


def measure(name: str, peer: Peer, tiles: list[bytes], scratch: Path, bundle: Path, loop: float) -> None:
    """Measures one server and prints its line."""
    single = write_body(scratch / "single", peer.field, tiles[:1])
    with running(peer, scratch / f"home{len(list(scratch.iterdir()))}", bundle, single):
        load(peer, single, CONCURRENCY, 4)
        full = load(peer, single, CONCURRENCY, SECONDS)
        part = load(peer, single, CONCURRENCY, SECONDS, 0.7 * full.per_second)
        figures = [f"{full.per_second:.0f}", f"{full.p50_ms:.0f}", f"{full.p99_ms:.0f}", str(full.num_failed)]
        print("|", " | ".join([name, *figures, f"{part.p99_ms / part.p50_ms:.1f}"]), "|", flush=True)
        if name == "historay":
            body = write_body(scratch / "many", "images", tiles[:MANY])
            found = load(peer._replace(field="images"), body, 4, SECONDS).per_second * MANY
            print(f"{MANY} tiles a request, 4 at once: {found:.0f} tiles/s, {found / loop:.2f} of the loop", flush=True)


def main(wanted: list[str]) -> None:
    """Measures each server in turn and prints a table."""
    tiles = read_tiles()
    with tempfile.TemporaryDirectory(prefix="hb-") as folder:
        scratch = Path(folder)
        store = open_store(str(scratch / "store"))
        version = make_bundle(store, tiles)
        network, loop = in_process(store, version, tiles, decodes=False), in_process(store, version, tiles, decodes=True)
        print(f"in-process OpenVINO: {network:.0f} tiles/s, with decoding {loop:.0f}")
        print("| server | requests/s, one tile, 32 at once | p50 ms | p99 ms | failed | p99 / p50 at 70 % |")
        print("|---|---|---|---|---|---|")
        for name, peer in peers(store).items():
            if not wanted or name in wanted:
                measure(name, peer, tiles, scratch, scratch / "store" / "models" / "bench" / version, loop)


if __name__ == "__main__":
    main(sys.argv[1:])
