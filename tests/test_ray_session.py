"""A local Ray that misses its own time limit is started again, and in the end that is said in one sentence."""

import pytest
import ray

from historay import ray_session
from historay.errors import HistorayError


def failing(monkeypatch: pytest.MonkeyPatch, num_failures: int, message: str) -> list[str]:
    """Puts a start that fails so often in place of Ray's: a machine cannot be made busy to order."""
    tried: list[str] = []

    def init(**_: object) -> None:
        tried.append("init")
        if len(tried) <= num_failures:
            raise Exception(message)

    monkeypatch.setattr(ray, "init", init)
    return tried


TIMED_OUT = "The current node timed out during startup. This could happen because some of the raylet failed to startup"


def test_ray_is_started_again_after_it_missed_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = failing(monkeypatch, 3, TIMED_OUT)
    ray_session._start_local(cpus=4)
    assert len(tried) == 4


def test_after_four_starts_it_is_said_that_the_machine_is_too_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, 4, TIMED_OUT)
    with pytest.raises(HistorayError, match="4 times over; the machine is too busy"):
        ray_session._start_local(cpus=4)


def test_any_other_reason_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = failing(monkeypatch, 1, "no such address")
    with pytest.raises(Exception, match="no such address"):
        ray_session._start_local(cpus=4)
    assert len(tried) == 1
