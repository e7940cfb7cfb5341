"""What a person sees: bars on a terminal, few lines in a pipe."""

import io

import pytest
from rich.console import Console

from evoray.run import progress
from evoray.run.progress import RichProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands until it is set."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_pipe_gets_no_steps_and_the_time_that_layers_leave(clock: list[float]) -> None:
    out = io.StringIO()
    with RichProgress(Console(file=out, width=200)) as told:
        told.step("generation 3, rung 1")(0.5)
        told.step("generation 3, rung 2")(1.0)
        for done in range(4, 21):  # four were finished by an earlier build
            clock[0] = 10.0 * (done - 4)
            told.layer(done, 20, "name")
    assert out.getvalue().splitlines() == [
        "4/20 layers",
        *(f"{done}/20 layers, {(20 - done) // 6}:{(20 - done) * 10 % 60:02d} left" for done in range(6, 20, 2)),
        "20/20 layers",
    ]


def test_a_terminal_shows_one_step_at_a_time() -> None:
    told = RichProgress(Console(file=io.StringIO(), force_terminal=True, width=100))
    for name in ("generation 3, rung 1", "generation 3, rung 2"):
        share = told.step(name)
        share(0.5)
        assert [(task.description, task.percentage, task.visible) for task in told._bars.tasks] == [(name, 50.0, True)]
    share(1.0)
    assert not any(task.visible for task in told._bars.tasks)
