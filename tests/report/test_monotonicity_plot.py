"""The picture of sums of layer errors against losses: what it shows is what was given, and it is drawn for real."""

import sys
from pathlib import Path

import numpy as np
import pytest

from evoray.errors import UserError
from evoray.report.monotonicity import check_plot, monotonicity_figure, monotonicity_plot
from evoray.run.monotonicity import Counts, Group, Monotonicity, compare
from evoray.space import Budget, Measure, Space
from evoray.space.gene import Gene

ERRORS = [0.5, 0.25, 1.0, 0.75]
LOSSES = [[3.0, 5.0], [6.0, 9.0], [2.0, 1.0], [2.0, 3.0]]
TOKENS = [4, 6]


def found(fitness: str = "kl", errors: list[float] = ERRORS, losses: list[list[float]] = LOSSES) -> Monotonicity:
    levels = tuple(str(number) for number in range(len(errors)))
    costs = tuple(range(1, len(errors) + 1))
    gene = Gene("a", 0, ("a",), levels, costs, code_bits=costs, bytes=costs)
    space = Space((gene,), Budget(Measure.BITS, 9).limit(weights=1, other_bytes=0), ("a",), (levels,), 1)
    genotypes = tuple((number,) for number in range(len(errors)))
    group = Group(3, 1, genotypes, np.array(errors), np.array(losses), np.array(TOKENS))
    counts, worst = compare(group)
    return Monotonicity(fitness, (group,), counts, worst, 0, space)


@pytest.mark.parametrize(("fitness", "axis"), [("kl", "KL"), ("perplexity", "log perplexity"), ("kl-topk", "kl-topk")])
def test_the_points_are_the_candidates(fitness: str, axis: str) -> None:
    axes = monotonicity_figure(found(fitness)).axes[0]
    points = [tuple(point) for point in axes.collections[0].get_offsets().tolist()]
    assert points == [(error, sum(losses) / sum(TOKENS)) for error, losses in zip(ERRORS, LOSSES, strict=True)]
    # The second has less error than the third, and more loss by 1.2 nats per token: no two others are further apart.
    (line,) = axes.lines
    assert [tuple(map(float, point)) for point in line.get_xydata()] == [(0.25, 1.5), (1.0, 0.3)]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("sum of layer errors", f"{axis} [nats/token]")
    assert axes.get_title() == "generation 3, rung 2: 4 candidates, 10 tokens"


def test_where_no_pair_is_turned_none_is_marked() -> None:
    rising = found(errors=[1.0, 2.0], losses=[[1.0, 1.0], [2.0, 3.0]])
    assert rising.counts == Counts(pairs=1, turned=0, clear=1, clear_turned=0)
    axes = monotonicity_figure(rising).axes[0]
    assert len(axes.collections[0].get_offsets()) == 2
    assert not axes.lines


@pytest.mark.parametrize(("suffix", "head"), [(".png", b"\x89PNG\r\n"), (".SVG", b"<?xml"), (".pdf", b"%PDF-")])
def test_a_file_is_of_the_kind_that_it_is_named(tmp_path: Path, suffix: str, head: bytes) -> None:
    place = monotonicity_plot(found(), str(tmp_path / f"errors{suffix}"))
    assert place == tmp_path / f"errors{suffix}"
    assert place.read_bytes().startswith(head)


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken.png").mkdir()
    for file, said in [
        (tmp_path / "errors", "a picture is one of .png, .svg, .pdf"),
        (tmp_path / "errors.txt", "a picture is one of .png, .svg, .pdf"),
        (tmp_path / "nowhere" / "errors.png", "there is no folder"),
        (tmp_path / "taken.png", "can't be written: Is a directory"),
    ]:
        with pytest.raises(UserError, match=said):
            monotonicity_plot(found(), str(file))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'evoray\[plots\]'"):
        check_plot(str(tmp_path / "errors.png"))
