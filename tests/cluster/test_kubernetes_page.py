"""docs/kubernetes.md says what the code does."""

import re
import runpy
from pathlib import Path

from historay.cluster.settings import JobsConfig, SubmitConfig

REPOSITORY = Path(__file__).parent.parent.parent
PAGE = (REPOSITORY / "docs" / "kubernetes.md").read_text()


def test_the_capacity_table_is_what_the_calculation_gives() -> None:
    assert runpy.run_path(str(REPOSITORY / "bench" / "capacity.py"))["table"]() in PAGE


def test_every_flag_of_submit_that_the_page_names_exists() -> None:
    known = {name.replace("_", "-") for config in (SubmitConfig, JobsConfig) for name in config.model_fields}
    stages = {"epochs", "use-gpu", "max-failures"}
    docker = {"target"}
    named = set(re.findall(r"--([a-z][a-z-]+)", PAGE))
    assert named - stages - docker <= known
    assert len(named & known) >= 8


def test_every_file_that_the_page_links_to_is_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (REPOSITORY / "docs" / link).exists(), link
