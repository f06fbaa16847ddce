"""docs/kubernetes.md says what the code does."""

import re
import runpy
from pathlib import Path

from historay.cluster.settings import JobsConfig, SubmitConfig

REPOSITORY = Path(__file__).parent.parent.parent
PAGE = (REPOSITORY / "docs" / "kubernetes.md").read_text()


def test_the_capacity_table_is_what_the_calculation_gives() -> None:
    assert runpy.run_path(str(REPOSITORY / "bench" / "capacity.py"))["table"]() in PAGE


def test_the_rates_of_the_capacity_table_stand_in_the_benchmarks() -> None:
    used = runpy.run_path(str(REPOSITORY / "bench" / "capacity.py"))
    benchmarks = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    for name, shown in {"TRAINED": "{:.0f} to", "PREDICTED": "decoding {:,.0f}", "ANSWERED": "| {:.0f} |"}.items():
        assert shown.format(used[name] * 2) in benchmarks, name  # each of two cores
    assert f"{used['SEARCH_S']} s" in benchmarks


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
