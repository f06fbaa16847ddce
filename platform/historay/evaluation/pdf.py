"""Prints the report's page as PDF with a headless Chromium, where the machine has one."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from historay.log import log_event

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_TIMEOUT_S = 120
# The page loads nothing; these keep the browser itself off the network.
_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--metrics-recording-only",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--disable-dev-shm-usage",  # /dev/shm of a container is often 64 MB
    "--no-pdf-header-footer",
)


def find_browser() -> str | None:
    """Returns the path of the first Chromium on PATH, or None."""
    return next((path for path in map(shutil.which, _BROWSERS) if path), None)


def print_pdf(html: bytes) -> bytes | None:
    """Returns the page as PDF, or None, with one log line, where there is no Chromium or it fails."""
    browser = find_browser()
    if browser is None:
        log_event("pdf skipped", reason=f"none of {', '.join(_BROWSERS)} is on PATH; report.html prints the same")
        return None
    with tempfile.TemporaryDirectory(prefix="historay-pdf-") as folder:
        source, target = Path(folder, "report.html"), Path(folder, "report.pdf")
        source.write_bytes(html)
        try:
            # A fixed list of arguments, no shell; the page is a file of our own.
            subprocess.run(_command(browser, source, target), check=True, capture_output=True, timeout=_TIMEOUT_S)  # noqa: S603
            return target.read_bytes()
        except (subprocess.SubprocessError, OSError) as error:
            log_event("pdf failed", browser=browser, error=_first_line(error))
            return None


def _command(browser: str, source: Path, target: Path) -> list[str]:
    # As root, in containers, Chromium refuses to start with its sandbox.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    own = [f"--user-data-dir={source.parent / 'profile'}", f"--print-to-pdf={target}"]
    return [browser, *_FLAGS, *sandbox, *own, source.as_uri()]


def _first_line(error: Exception) -> str:
    detail = getattr(error, "stderr", None)
    text = (
        detail.decode(errors="replace") if isinstance(detail, bytes) and detail.strip() else f"{type(error).__name__}: {error}"
    )
    return text.strip().splitlines()[0][:200]
