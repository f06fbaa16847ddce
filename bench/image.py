"""Builds a target of the Dockerfile in chroots, without Docker, and times each step: python bench/image.py BASE TARGET.

BASE is a folder made by debootstrap (bookworm, minbase, with python3, python3-venv, ca-certificates). Understands what our
Dockerfile uses and refuses the rest: FROM, ARG, ENV, WORKDIR, COPY, RUN (with a cache mount), USER, LABEL, ENTRYPOINT, CMD.
Needs root. Leaves the root file system of the target in TARGET's folder beside BASE.
"""

import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
# A RUN sees this machine's resolver and certificates, where a company's base image would bring its own.
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_BUILD_ENVIRONMENT = {"SSL_CERT_FILE": _CERTIFICATES, "PIP_CERT": _CERTIFICATES, "DEBIAN_FRONTEND": "noninteractive"}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_IGNORED = {"LABEL", "ENTRYPOINT", "CMD", "ARG", "USER"}


def instructions(text: str) -> list[tuple[str, str]]:
    """Returns each instruction with its argument, continuation lines joined and comments dropped."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


class Builder:
    def __init__(self, base: Path) -> None:
        self.base, self.work = base, base.parent
        self.environment: dict[str, dict[str, str]] = {}
        self.folder: dict[str, str] = {}
        self.stage = ""

    def root(self, stage: str) -> Path:
        return self.work / f"stage-{stage}"

    def start(self, rest: str) -> None:
        source, _, self.stage = rest.split()
        parent = None if source == "${BASE}" else source
        self.environment[self.stage] = dict(self.environment.get(parent or "", {"PATH": _PATH}))
        self.folder[self.stage] = self.folder.get(parent or "", "/")
        shutil.rmtree(self.root(self.stage), ignore_errors=True)
        # Reflinks or hard links would be cheaper, but a stage must not write into its parent.
        subprocess.run(["cp", "-a", self.root(parent) if parent else self.base, self.root(self.stage)], check=True)

    def copy(self, rest: str) -> None:
        *sources, target = [word for word in rest.split() if not word.startswith("--")]
        found = re.match(r"--from=(\S+)", rest)
        origin = self.root(found.group(1)) if found else ROOT
        place = self.root(self.stage) / Path(self.folder[self.stage], target).as_posix().lstrip("/")
        for source in sources:
            path = origin / source.lstrip("/")
            into = place / path.name if target.endswith("/") and path.is_file() else place
            into.parent.mkdir(parents=True, exist_ok=True)
            flags = "-aT" if path.is_dir() else "-a"
            subprocess.run(["cp", flags, path, into], check=True)

    def run(self, rest: str) -> None:
        root, environment = self.root(self.stage), self.environment[self.stage]
        mount = re.match(r"--mount=type=cache,target=(\S+) ", rest)
        script = rest[mount.end() :] if mount else rest
        exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in (_BUILD_ENVIRONMENT | environment).items())
        inside = f"cd {self.folder[self.stage]} && env -i {exports} /bin/sh -c {shlex.quote(script)}"
        lines = [f"mount -t proc proc {root}/proc"]
        lines += [f"mount --bind {path} {root}{path}" for path in ("/dev", "/etc/resolv.conf", _CERTIFICATES)]
        (root / "etc/resolv.conf").touch()
        if mount:
            (root / mount.group(1).lstrip("/")).mkdir(parents=True, exist_ok=True)
            lines.append(f"mount --bind {mount.group(1)} {root}{mount.group(1)}")
        lines.append(f"chroot {root} /bin/sh -c {shlex.quote(inside)}")
        # A mount namespace of its own: whatever happens, nothing stays mounted.
        subprocess.run(["unshare", "--mount", "/bin/sh", "-ec", "\n".join(lines)], check=True)

    def do(self, name: str, rest: str) -> None:
        match name:
            case "FROM":
                self.start(rest)
            case "ENV":
                for word in shlex.split(rest):
                    key, _, value = word.partition("=")
                    environment = self.environment[self.stage]
                    environment[key] = value.replace("$PATH", environment["PATH"])
            case "WORKDIR":
                self.folder[self.stage] = rest
                (self.root(self.stage) / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "COPY":
                self.copy(rest)
            case "RUN":
                self.run(rest)
            case _ if name not in _IGNORED:
                raise SystemExit(f"{name} {rest}: not understood")


def needed(steps: list[tuple[str, str]], target: str) -> set[str]:
    """Returns the stages that the target is made of."""
    uses: dict[str, set[str]] = {}
    stage = ""
    for name, rest in steps:
        if name == "FROM":
            source, _, stage = rest.split()
            uses[stage] = {source} - {"${BASE}"}
        elif found := re.match(r"--from=(\S+)", rest):
            uses[stage].add(found.group(1))
    wanted, todo = set(), [target]
    while todo:
        wanted.add(current := todo.pop())
        todo += uses[current]
    return wanted


def main(base: str, target: str) -> None:
    steps = instructions((ROOT / "Dockerfile").read_text())
    builder, wanted, stage = Builder(Path(base).absolute()), needed(steps, target), ""
    for name, rest in steps:
        stage = rest.split()[-1] if name == "FROM" else stage
        if stage not in wanted:
            continue
        start = time.monotonic()
        builder.do(name, rest)
        if name in {"FROM", "COPY", "RUN"}:
            print(f"{time.monotonic() - start:6.1f} s  {stage:<9}  {name} {rest[:90]}", flush=True)
    size = subprocess.run(["du", "-sm", builder.root(target)], check=True, capture_output=True, text=True).stdout.split()[0]
    print(f"{target}: {size} MiB in {builder.root(target)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
