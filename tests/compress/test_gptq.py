"""GPTQ against the textbook: one layer, one level, one column after the other, with the inverse Hessian itself."""

import numpy as np
import pytest
import torch
from hessians import correlated_hessian, random_weight

from evoray.compress import Scales
from evoray.compress import gptq as gptq_module
from evoray.compress.gptq import gptq
from evoray.compress.grid import fit_grid
from evoray.compress.hessian import relative_errors
from evoray.compress.rtn import rtn
from evoray.errors import EvorayError

COMMON = {"group_size": 32, "scales": Scales.MSE}
LEVELS = tuple(range(2, 9))


def slow_gptq(weight, hessian, bits, *, group_size, symmetric, scales, scale_dtype, damping=0.01, act_order=True):
    """The paper's algorithm 1 without blocks: every column updates all later ones at once."""
    grid = fit_grid(
        weight, bits=bits, group_size=group_size, symmetric=symmetric, scales=scales, scale_dtype=scale_dtype
    )
    columns = weight.shape[1]
    hessian = hessian.double().clone()
    dead = [column for column in range(columns) if hessian[column, column] == 0]
    for column in dead:
        hessian[column, column] = 1.0
    mean = sum(float(hessian[c, c]) for c in range(columns) if c not in dead) / (columns - len(dead))
    diagonal = [0.0 if c in dead else float(hessian[c, c]) for c in range(columns)]
    order = sorted(range(columns), key=lambda c: -diagonal[c]) if act_order else list(range(columns))
    for column in range(columns):
        hessian[column, column] += damping * mean
    inverse = torch.linalg.inv(hessian[order][:, order])
    upper = torch.linalg.cholesky(inverse, upper=True)
    left = weight.double()[:, order]
    codes = torch.zeros_like(weight, dtype=torch.uint8)
    for step, column in enumerate(order):
        group = column // group_size
        scale = grid.scale_OG[:, group].float()
        zero = torch.full_like(scale, 2 ** (bits - 1)) if symmetric else grid.zero_OG[:, group].float()
        whole = (left[:, step].float() / scale).round().clamp(-zero, 2**bits - 1 - zero)
        codes[:, column] = (whole + zero).to(torch.uint8)
        value = (whole.to(scale_dtype) * grid.scale_OG[:, group]).double()
        error = (left[:, step] - value) / upper[step, step]
        left[:, step:] -= error[:, None] * upper[step, step:]
    return codes


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.float32])
def test_equals_the_slow_reference(act_order, symmetric, scale_dtype):
    # More columns than a block has, and not a multiple of runs or blocks.
    columns = 288
    hessian = correlated_hessian(columns)
    weights = {"q": random_weight(24, columns, 1), "k": random_weight(10, columns, 2)}
    arguments = {**COMMON, "symmetric": symmetric, "scale_dtype": scale_dtype, "act_order": act_order}
    found = gptq(weights, hessian, (2, 3, 4, 8), **arguments)
    assert found.damping == 0.01
    for name, weight in weights.items():
        for bits in (2, 3, 4, 8):
            expected = slow_gptq(weight, hessian, bits, **arguments)
            assert torch.equal(found.weights[name][bits].codes_OI, expected), (name, bits)


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
def test_stacking_changes_no_code(scale_dtype):
    columns = 160
    hessian = correlated_hessian(columns, 3)
    weights = {"gate": random_weight(33, columns, 4), "up": random_weight(33, columns, 5)}
    for symmetric in (True, False):
        arguments = {**COMMON, "symmetric": symmetric, "scale_dtype": scale_dtype}
        together = gptq(weights, hessian, LEVELS, **arguments).weights
        for name, weight in weights.items():
            for bits in LEVELS:
                alone = gptq({name: weight}, hessian, (bits,), **arguments).weights[name][bits]
                assert torch.equal(together[name][bits].codes_OI, alone.codes_OI)
                assert torch.equal(together[name][bits].scale_OG, alone.scale_OG)
                if not symmetric:
                    assert torch.equal(together[name][bits].zero_OG, alone.zero_OG)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
def test_beats_round_to_nearest_in_output_error(act_order, symmetric, scale_dtype):
    columns = 128
    hessian = correlated_hessian(columns, 6)
    weight = random_weight(48, columns, 7)
    arguments = {**COMMON, "symmetric": symmetric, "scale_dtype": scale_dtype}
    with_hessian = gptq({"w": weight}, hessian, LEVELS, act_order=act_order, **arguments).weights["w"]
    rounded = rtn(weight, LEVELS, **arguments)
    for bits in LEVELS:
        errors = relative_errors(
            weight, [found[bits].dequantize(torch.float32) for found in (with_hessian, rounded)], hessian
        )
        assert errors[0] < 0.8 * errors[1], bits


def test_groups_are_those_of_the_original_order():
    columns = 128
    hessian = correlated_hessian(columns, 8)
    weight = random_weight(20, columns, 9)
    arguments = {**COMMON, "symmetric": True, "scale_dtype": torch.float16}
    found = gptq({"w": weight}, hessian, (3,), act_order=True, **arguments).weights["w"][3]
    assert torch.equal(found.scale_OG, fit_grid(weight, bits=3, **arguments).scale_OG)
    # Each code is near its own weight, so none stands in another column's place.
    moved = (found.dequantize(torch.float32) - weight).abs() / found.scale_OG.float().repeat_interleave(32, 1)
    assert float(moved.median()) < 0.6


def test_one_group_per_row_and_a_width_of_one_block():
    hessian = correlated_hessian(128, 10)
    weight = random_weight(12, 128, 11)
    arguments = {"group_size": 128, "symmetric": False, "scales": Scales.MINMAX, "scale_dtype": torch.float32}
    found = gptq({"w": weight}, hessian, (4,), **arguments).weights["w"][4]
    assert torch.equal(found.codes_OI, slow_gptq(weight, hessian, 4, **arguments))


def test_columns_without_input_are_rounded_to_nearest():
    columns = 96
    hessian = correlated_hessian(columns, 12)
    dead = [0, 5, 40, 95]
    hessian[dead] = 0
    hessian[:, dead] = 0
    weight = random_weight(16, columns, 13)
    arguments = {**COMMON, "symmetric": True, "scale_dtype": torch.float32}
    found = gptq({"w": weight}, hessian, (3,), **arguments).weights["w"][3]
    assert torch.equal(found.codes_OI, slow_gptq(weight, hessian, 3, **arguments))
    assert torch.equal(found.codes_OI[:, dead], rtn(weight, (3,), **arguments)[3].codes_OI[:, dead])


def test_an_input_that_was_never_there_gives_round_to_nearest():
    weight = random_weight(8, 64, 14)
    arguments = {**COMMON, "symmetric": True, "scale_dtype": torch.float32}
    found = gptq({"w": weight}, torch.zeros(64, 64), (4,), **arguments).weights["w"][4]
    assert torch.equal(found.codes_OI, rtn(weight, (4,), **arguments)[4].codes_OI)


def test_damping_is_raised_until_the_hessian_can_be_factored():
    columns = 64
    hessian = correlated_hessian(columns, 15)
    # An eigenvalue of about -0.3 times the mean diagonal: far more than rounding makes, so 0.01 and 0.1 fail.
    direction = torch.nn.functional.normalize(torch.ones(columns), dim=0)
    lowest = float(direction @ hessian @ direction)
    hessian -= (lowest + 0.3 * float(hessian.diagonal().mean())) * torch.outer(direction, direction)
    assert float(torch.linalg.eigvalsh(hessian)[0]) < -0.2 * float(hessian.diagonal().mean())
    found = gptq(
        {"w": random_weight(4, columns, 16)}, hessian, (4,), symmetric=True, scale_dtype=torch.float32, **COMMON
    )
    assert found.damping == pytest.approx(1.0)


def test_a_hessian_that_is_none_is_refused():
    with pytest.raises(EvorayError, match="64 columns has no Cholesky factor"):
        gptq(
            {"w": random_weight(4, 64, 17)}, torch.full((64, 64), float("nan")), (4,), symmetric=True,
            scale_dtype=torch.float32, **COMMON,
        )  # fmt: skip


@pytest.mark.parametrize(("block", "run"), [(1, 1), (32, 16), (64, 7), (500, 500)])
def test_cutting_the_loop_otherwise_changes_no_code(monkeypatch, block, run):
    columns = 160
    hessian = correlated_hessian(columns, 18)
    weights = {"w": random_weight(16, columns, 19)}
    arguments = {**COMMON, "symmetric": True, "scale_dtype": torch.float16}
    usual = gptq(weights, hessian, (2, 4), **arguments).weights["w"]
    monkeypatch.setattr(gptq_module, "_BLOCK", block)
    monkeypatch.setattr(gptq_module, "_RUN", run)
    cut = gptq(weights, hessian, (2, 4), **arguments).weights["w"]
    assert all(torch.equal(usual[bits].codes_OI, cut[bits].codes_OI) for bits in (2, 4))


def test_relative_errors_are_those_of_the_output():
    inputs = torch.from_numpy(np.random.default_rng(20).normal(size=(300, 32)).astype(np.float32))
    weight = random_weight(6, 32, 21)
    other = weight + random_weight(6, 32, 22) * 0.1
    output, changed = inputs @ weight.T, inputs @ other.T
    expected = float(((output - changed) ** 2).sum() / (output**2).sum())
    assert relative_errors(weight, [other, weight], inputs.T @ inputs / 300) == pytest.approx([expected, 0], rel=1e-4)
    plain = float(((weight - other) ** 2).sum() / (weight**2).sum())
    assert relative_errors(weight, [other], None) == pytest.approx([plain], rel=1e-5)
    assert relative_errors(torch.zeros(6, 32), [other], None) == [0.0]
