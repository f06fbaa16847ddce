"""The endpoint at twice its capacity for ten minutes: python bench/soak.py [SECONDS]. Status codes, memory, recovery."""

import sys
import tempfile
import threading
from pathlib import Path

import psutil
from serving import CONCURRENCY, load, make_bundle, peers, read_tiles, running, write_body

from historay.storage import open_store

CONNECTIONS = 400  # more than may be worked on and wait at once


def resident_mib(home: Path) -> float:
    """Memory of all replicas, MiB."""
    total = 0
    for process in psutil.process_iter():
        try:
            if "ServeReplica" in " ".join(process.cmdline()) and process.environ().get("HOME") == str(home):
                total += process.memory_info().rss
        except psutil.Error:
            continue  # it ended while we looked
    return total / 2**20


def main(seconds: int) -> None:
    """Finds the capacity, doubles it, and looks at what comes back."""
    tiles = read_tiles()
    with tempfile.TemporaryDirectory(prefix="hs-") as folder:
        scratch = Path(folder)
        store = open_store(str(scratch / "store"))
        version = make_bundle(store, tiles)
        peer, body = peers(store)["historay"], write_body(scratch / "single", None, tiles[:1])
        home = scratch / "home"
        with running(peer, home, scratch / "store" / "models" / "bench" / version, body):
            load(peer, body, CONCURRENCY, 5)
            capacity = load(peer, body, CONCURRENCY, 10).per_second
            memory: list[float] = []
            ended = threading.Event()

            def watch() -> None:
                while not ended.wait(10):
                    memory.append(resident_mib(home))

            watcher = threading.Thread(target=watch)
            watcher.start()
            soak = load(peer, body, CONNECTIONS, seconds, 2 * capacity)
            ended.set()
            watcher.join()
            after = load(peer, body, 1, 5)
            asked = f"{2 * capacity:.0f} asked for {seconds} s over {CONNECTIONS} connections"
            print(f"capacity {capacity:.0f} requests/s; then {asked}")
            print(f"answered {soak.per_second:.0f}/s with 200, p99 {soak.p99_ms:.0f} ms; by status {soak.by_status}")
            print(f"replicas' memory, MiB, every 10 s: {' '.join(f'{one:.0f}' for one in memory)}")
            print(f"at once afterwards, one client: {after.per_second:.0f}/s, p99 {after.p99_ms:.0f} ms, {after.by_status}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 600)
