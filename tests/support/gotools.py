"""Go programs that tests run: built once per pin, outside the checkout, and safe to ask for from several sessions at once."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_BUILD_TIMEOUT_S = 2400  # all of tests/cluster took 9 minutes of CPU; two cores are often busy


def go_program(module: Path, package: str, ldflags: str = "-s -w") -> Path:
    """Returns the program that ``package``, pinned by the Go module in ``module``, builds into; skips without Go."""
    require_go(package)
    pins = [(module / name).read_bytes() for name in ("go.mod", "go.sum")]
    pin = hashlib.sha256(b"\0".join([*pins, ldflags.encode()])).hexdigest()[:12]
    program = _cache() / f"{package.replace('/', '_')}-{pin}"
    with (_cache() / f"{program.name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second session waits for the first one's build
        if not program.exists():
            print(f"building {package} (once, minutes)", file=sys.stderr)
            unfinished = program.with_name(f"{program.name}.unfinished")
            command = ["go", "build", "-ldflags", ldflags, "-o", unfinished, package]
            subprocess.run(command, cwd=module, check=True, timeout=_BUILD_TIMEOUT_S)
            unfinished.replace(program)
    return program


def go_module_folder(module: Path, path: str) -> Path:
    """Returns the folder in which the client keeps the dependency ``path`` at the version that ``module`` pins."""
    require_go(path)
    command = ["go", "mod", "download", "-json", path]
    done = subprocess.run(command, cwd=module, check=True, capture_output=True, text=True, timeout=600)
    return Path(json.loads(done.stdout)["Dir"])


def require_go(what: str) -> None:
    """Skips the test that asks for ``what`` if there is no Go to build it with."""
    if shutil.which("go") is None:
        pytest.skip(f"{what} is built with Go, and there is no go on this machine")


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME", "/var/tmp")) / "historay-tools"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
