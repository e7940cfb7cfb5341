"""SparseGPT against the textbook: one layer, one level, one column after the other, with the inverse Hessian itself."""

import numpy as np
import pytest
import torch
from hessians import correlated_hessian, random_weight
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.compress import Scales
from evoray.compress import sparsegpt as sparsegpt_module
from evoray.compress.grid import fit_grid
from evoray.compress.hessian import relative_errors
from evoray.compress.masks import lowest, magnitude_mask, wanda_masks
from evoray.compress.sparsegpt import Wanted, sparsegpt
from evoray.formats.masked import MaskedWeight

GRID = {"group_size": 32, "scales": Scales.MSE, "scale_dtype": torch.float16}


def slow_sparsegpt(weight, hessian, zeros, *, block=128, damping=0.01, grid=None):
    """The paper's algorithm 1: columns update all later ones at once, weights of a block go one after the other.

    Returns the mask and the values, both float64 lists of rows, before any rounding to a dtype.
    """
    rows, columns = weight.shape
    hessian = hessian.double().clone()
    dead = [column for column in range(columns) if hessian[column, column] == 0]
    alive = [column for column in range(columns) if column not in dead]
    mean = sum(float(hessian[c, c]) for c in alive) / max(1, len(alive)) if alive else 1.0
    for column in range(columns):
        hessian[column, column] += (1.0 if column in dead else 0.0) + damping * mean
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    left = weight.double().clone()
    keep = [[True] * columns for _ in range(rows)]
    gone = 0
    for start in range(0, columns, block):
        end = min(start + block, columns)
        scores = []
        for row in range(rows):
            for column in range(start, end):
                value = float(left[row, column])
                alive_score = value**2 / float(upper[column, column]) ** 2
                # Dead columns first, their smallest weights first.
                scores.append(((0, value**2) if column in dead else (1, alive_score), row, column))
        quota = zeros * end // columns - gone
        for _, row, column in sorted(scores)[:quota]:
            keep[row][column] = False
        gone += quota
        for column in range(start, end):
            kept = torch.tensor([row[column] for row in keep])
            value = left[:, column].clone()
            if grid is not None:
                scale = grid.scale_OG[:, column // grid.group_size].float()
                low = grid.lowest_OG().expand(rows, columns // grid.group_size)[:, column // grid.group_size]
                steps = (value.float() / scale).round().clamp(low, low + 2**grid.bits - 1)
                value = (steps.half() * scale.half()).double()
            value = value * kept
            error = (left[:, column] - value) / upper[column, column]
            left[:, column] = value
            left[:, column + 1 :] -= error[:, None] * upper[column, column + 1 :]
    return torch.tensor(keep), left


@pytest.mark.parametrize("columns", [96, 128, 288])
def test_equals_the_slow_reference(columns):
    hessian = correlated_hessian(columns)
    weights = {"q": random_weight(12, columns, 1), "k": random_weight(5, columns, 2)}
    wanted = [
        Wanted(name, str(percent), len(weight) * columns * percent // 100 + 1)
        for name, weight in weights.items()
        for percent in (30, 50, 90)
    ]
    found, damping = sparsegpt(weights, hessian, wanted, value_dtype=torch.float32)
    assert damping == 0.01
    for want in wanted:
        keep, values = slow_sparsegpt(weights[want.layer], hessian, want.zeros)
        made = found[want.layer][want.level]
        assert torch.equal(made.keep_OI, keep), want
        assert int((~keep).sum()) == want.zeros
        assert torch.allclose(made.weight_OI.double(), values, rtol=1e-5, atol=1e-8), want


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_joint_form_equals_the_slow_reference(symmetric):
    columns = 160
    hessian = correlated_hessian(columns, 3)
    weight = random_weight(10, columns, 4)
    grids = {bits: fit_grid(weight, bits=bits, symmetric=symmetric, **GRID) for bits in (2, 4)}
    wanted = [Wanted("w", f"{bits}", 701, grid) for bits, grid in grids.items()] + [Wanted("w", "plain", 701)]
    found, _ = sparsegpt({"w": weight}, hessian, wanted, value_dtype=torch.float16)
    for bits, grid in grids.items():
        keep, values = slow_sparsegpt(weight, hessian, 701, grid=grid)
        made = found["w"][f"{bits}"]
        assert torch.equal(made.keep_OI, keep)
        assert torch.equal(made.dequantize(torch.float32), values.float())
        # Scales of the weight as it was.
        assert torch.equal(made.weight.scale_OG, grid.scale_OG)
    assert torch.equal(found["w"]["plain"].keep_OI, slow_sparsegpt(weight, hessian, 701)[0])


@settings(max_examples=40)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 40),
    block=st.sampled_from([1, 3, 16, 128]),
    data=st.data(),
)
def test_counts_are_exact(rows, columns, block, data):
    zeros = data.draw(st.lists(st.integers(0, rows * columns), min_size=1, max_size=4, unique=True))
    # Few different weights, so that there are many ties, and zeros that may be kept.
    values = data.draw(
        st.lists(st.sampled_from([0.0, 0.5, -0.5, 1.0]), min_size=rows * columns, max_size=rows * columns)
    )
    weight = torch.tensor(values).view(rows, columns)
    hessian = torch.eye(columns) if data.draw(st.booleans()) else correlated_hessian(columns, tokens=256)
    wanted = [Wanted("w", str(count), count) for count in zeros]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparsegpt_module, "BLOCK", block)
        found, _ = sparsegpt({"w": weight}, hessian, wanted, value_dtype=torch.float32)
    masks = wanda_masks(weight, hessian, zeros)
    for count, mask in zip(zeros, masks, strict=True):
        assert found["w"][str(count)].kept == rows * columns - count
        assert int((~mask).sum()) == int((~magnitude_mask(weight, count)).sum()) == count
        assert max((~mask).sum(1)) - min((~mask).sum(1)) <= 1


@given(scores=st.lists(st.integers(0, 4), min_size=1, max_size=40), data=st.data())
def test_of_equal_scores_the_first_go(scores, data):
    count = data.draw(st.integers(0, len(scores)))
    chosen = sorted(range(len(scores)), key=lambda place: (scores[place], place))[:count]
    expected = [place in chosen for place in range(len(scores))]
    assert lowest(torch.tensor(scores, dtype=torch.float32), count).tolist() == expected


def test_ties_go_by_row_and_column():
    weight = torch.ones(3, 4)
    found, _ = sparsegpt({"w": weight}, torch.eye(4), [Wanted("w", "5", 5)], value_dtype=torch.float32)
    assert found["w"]["5"].keep_OI.int().tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]]
    assert magnitude_mask(weight, 5).int().tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]]
    # Wanda: 1, 2, 2 weights of the rows.
    assert wanda_masks(weight, torch.eye(4), [5])[0].int().tolist() == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_stacking_and_cutting_into_pieces_change_no_bit(monkeypatch):
    columns = 160
    hessian = correlated_hessian(columns, 5)
    weights = {"gate": random_weight(17, columns, 6), "up": random_weight(9, columns, 7)}
    grids = {name: fit_grid(weight, bits=3, symmetric=True, **GRID) for name, weight in weights.items()}
    wanted = [
        Wanted(name, f"{zeros}{'c' * coded}", zeros, grids[name] if coded else None)
        for name in weights
        for zeros in (100, 500, 1200)
        for coded in (False, True)
    ]
    together, _ = sparsegpt(weights, hessian, wanted, value_dtype=torch.float16)
    monkeypatch.setattr(sparsegpt_module, "_MOST_ERRORS", 30 * columns)
    pieces, _ = sparsegpt(weights, hessian, wanted, value_dtype=torch.float16)
    for want in wanted:
        alone, _ = sparsegpt({want.layer: weights[want.layer]}, hessian, [want], value_dtype=torch.float16)
        for found in (together, pieces):
            one, other = found[want.layer][want.level], alone[want.layer][want.level]
            assert torch.equal(one.keep_OI, other.keep_OI)
            assert torch.equal(one.dequantize(torch.float32), other.dequantize(torch.float32))


@pytest.mark.parametrize("zeros", [1200, 2400, 3600])
def test_magnitude_has_the_largest_output_error(zeros):
    columns = 128
    hessian = correlated_hessian(columns, 8)
    weight = random_weight(36, columns, 9)
    found, _ = sparsegpt({"w": weight}, hessian, [Wanted("w", "0", zeros)], value_dtype=torch.float16)
    wanda = MaskedWeight.of(weight, wanda_masks(weight, hessian, [zeros])[0], torch.float16)
    magnitude = MaskedWeight.of(weight, magnitude_mask(weight, zeros), torch.float16)
    dense = [made.dequantize(torch.float32) for made in (found["w"]["0"], wanda, magnitude)]
    errors = relative_errors(weight, dense, hessian)
    assert errors[0] < 0.7 * errors[2]
    assert errors[1] < 0.9 * errors[2]


def test_columns_without_input_go_first_and_the_smallest_of_them_first():
    columns, dead = 96, [0, 5, 40, 95]
    hessian = correlated_hessian(columns, 10)
    hessian[dead] = 0
    hessian[:, dead] = 0
    weight = random_weight(8, columns, 11)
    wanted = [Wanted("w", str(zeros), zeros) for zeros in (10, 32, 300)]
    found, _ = sparsegpt({"w": weight}, hessian, wanted, value_dtype=torch.float32)
    for want in wanted:
        keep, values = slow_sparsegpt(weight, hessian, want.zeros)
        assert torch.equal(found["w"][want.level].keep_OI, keep)
        assert torch.allclose(found["w"][want.level].weight_OI.double(), values, rtol=1e-5, atol=1e-8)
    assert found["w"]["10"].keep_OI[:, [c for c in range(columns) if c not in dead]].all()
    assert not found["w"]["32"].keep_OI[:, dead].any()


def test_an_input_that_was_never_there_gives_magnitude():
    weight = random_weight(8, 64, 12)
    found, _ = sparsegpt({"w": weight}, torch.zeros(64, 64), [Wanted("w", "0", 200)], value_dtype=torch.float32)
    keep = magnitude_mask(weight, 200)
    assert torch.equal(found["w"]["0"].keep_OI, keep)
    assert torch.equal(found["w"]["0"].weight_OI, weight * keep)


def test_wanda_equals_the_plain_sort_of_each_row(monkeypatch):
    hessian = correlated_hessian(50, 13)
    weight = random_weight(7, 50, 14)
    norm = hessian.diagonal().sqrt()
    zeros = [0, 3, 173, 350]
    expected = []
    for count in zeros:
        keep = torch.ones(7, 50, dtype=torch.bool)
        for row in range(7):
            quota = count * (row + 1) // 7 - count * row // 7
            scores = [float(weight[row, column].abs() * norm[column]) for column in range(50)]
            keep[row, sorted(range(50), key=scores.__getitem__)[:quota]] = False
        expected.append(keep)
    for piece in (1 << 22, 120):
        monkeypatch.setattr("evoray.compress.masks._CPU_PIECE", piece)
        assert all(map(torch.equal, wanda_masks(weight, hessian, zeros), expected))


def test_values_are_those_of_the_dtype_they_are_stored_in():
    weight = random_weight(4, 32, 15)
    hessian = correlated_hessian(32, 16)
    wide, narrow = (
        sparsegpt({"w": weight}, hessian, [Wanted("w", "0", 64)], value_dtype=dtype)[0]["w"]["0"]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert torch.equal(narrow.weight_OI, wide.weight_OI.to(torch.bfloat16))
    assert np.array_equal(narrow.keep_OI.numpy(), wide.keep_OI.numpy())
