"""Numbers of workers as people write them."""

from typing import Any

import pytest

from evoray.errors import UserError
from evoray.settings import EvalSettings, load_settings
from evoray.settings.workers import worker_range


@pytest.mark.parametrize(
    ("written", "kept", "least", "most"),
    [
        ("auto", None, 1, None),
        (None, None, 1, None),
        (0, 0, 0, 0),
        ("3", 3, 1, 3),
        (3, 3, 1, 3),
        ("4..16", "4..16", 4, 16),
        (" 4 .. 4 ", "4..4", 4, 4),
        ("..8", "1..8", 1, 8),
    ],
)
def test_a_number_or_a_range(written: Any, kept: Any, least: int, most: int | None) -> None:
    settings = load_settings(EvalSettings, {"model": "m", "data": "d", "workers": written})
    assert settings.workers == kept
    assert worker_range(settings.workers) == (least, most)
    # What a run keeps of it is read again.
    assert EvalSettings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize("written", ["8..4", "0..3", "..", "4..", "many", "-1", -1, 10**9, "1.5", 2.5])
def test_what_is_neither_is_told_in_a_line(written: Any) -> None:
    with pytest.raises(UserError, match=r"--workers .*should be auto, a number, or a range such as 4\.\.16"):
        load_settings(EvalSettings, {"model": "m", "data": "d", "workers": written})
