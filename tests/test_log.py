"""Progress says how much is done, in what the user counts."""

import pytest

from historay.log import track


def test_progress_counts_what_size_says_of_each_item(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "historay"):
        assert list(track(["ab", "c", "defg"], "letters", 7, size=len, every_s=0)) == ["ab", "c", "defg"]
    assert [record.getMessage() for record in caplog.records] == [f"letters done={done} total=7" for done in (2, 3, 7)]
