"""The commands of docs/serving.md, section "Calling it", are run as they stand there, by the real curl."""

import io
import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from bundles import PROBES, SPEC, network
from endpoint import listening
from images import encoded, texture
from PIL import Image

from historay.models.bundle import Bundle
from historay.serving.http import build_app
from historay.serving.keys import KeyRing
from historay.serving.limits import RequestConfig
from historay.serving.metrics import METRICS
from historay.serving.service import make_service

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
CALLING = PAGE.partition("## Calling it\n")[2].partition("\n## ")[0]
COMMANDS = re.findall(r"```bash\n(.*?)```", CALLING, re.DOTALL)


def images(folder: Path) -> None:
    """Lays out the files that the commands name."""
    (folder / "tile.jpg").write_bytes(encoded(texture(0, 48)))
    (folder / "tile.png").write_bytes(encoded(texture(1, 48), "PNG"))
    with zipfile.ZipFile(folder / "tiles.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.write(folder / "tile.jpg", f"folder/{number}.jpg")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on this machine")
def test_each_command_of_the_page_is_answered(tmp_path: Path) -> None:
    config = RequestConfig(runtime="torch", audit_log=str(tmp_path / "audit"))
    service = make_service(Bundle(SPEC, network(), "f" * 16, PROBES), config)
    images(tmp_path)
    assert len(COMMANDS) == 6
    outputs = []
    with listening(build_app(lambda: service, config, KeyRing.of(lis="right"))) as (port, _):
        environment = {"URL": f"http://127.0.0.1:{port}", "HISTORAY_API_KEY": "right", "PATH": "/usr/local/bin:/usr/bin:/bin"}
        for command in COMMANDS:
            run = ["bash", "-eu", "-o", "pipefail", "-c", command]
            done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30, check=False)
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            outputs.append(done.stdout)
    assert [len(json.loads(output)["results"]) for output in outputs[:4]] == [1, 2, 3, 1]
    with Image.open(io.BytesIO((tmp_path / "heat.png").read_bytes())) as heat:
        assert heat.size == (48, 48)
    model, _, ready = outputs[5].partition("}{")
    assert '"architecture"' in model
    assert '"ok"' in ready


def test_the_page_names_every_metric_and_every_status() -> None:
    section = PAGE.partition("## Metrics\n")[2].partition("\n## ")[0]
    named = re.findall(r"^\| (historay_\w+) \| ([\w, ]*) ?\|", section, re.MULTILINE)
    ours = [(f"{each.name}_total" if each.kind == "counter" else each.name, ", ".join(each.labels)) for each in METRICS]
    assert sorted((name, labels.strip()) for name, labels in named) == sorted(ours)
