"""Kinds are found by their names, and nothing else is imported for one."""

import subprocess
import sys

import pytest

from evoray.compress.kinds import find_kind
from evoray.compress.outliers import outlier_ratios
from evoray.errors import UserError


@pytest.mark.parametrize("kind", ["quantization", "sparsity", "joint"])
def test_a_kind_is_its_module(kind):
    assert find_kind(kind).__name__ == f"evoray.compress.{kind}"


@pytest.mark.parametrize("kind", ["builder", "os", "recipe", "gptq.x", ""])
def test_other_modules_are_no_kinds(kind):
    with pytest.raises(UserError, match=f"this evoray can't build stores of kind '{kind}'; use a newer evoray"):
        find_kind(kind)


def test_plans_come_without_torch():
    code = "import sys, evoray.compress; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False)
    assert ran.returncode == 0


def test_outliers_by_hand():
    import torch

    weight = torch.tensor([[1.0, -1.0, 1.0, 1.0], [1.0, 1.0, 1.0, -13.0]])
    # The mean is 2.5, so the last is 5.2 times the mean.
    assert outlier_ratios(weight, None) == {"3": 0.125, "5": 0.125, "7": 0.0, "10": 0.0}
    # Inputs of sizes 1, 1, 1, 0: it has no score at all.
    assert outlier_ratios(weight, torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0]))) == dict.fromkeys(
        ("3", "5", "7", "10"), 0.0
    )
    # Sizes 4, 1, 1, 1: the squares stand in the Hessian.
    scores = [[4, 1, 1, 1], [4, 1, 1, 13]]
    mean = sum(map(sum, scores)) / 8
    assert outlier_ratios(weight, torch.diag(torch.tensor([16.0, 1.0, 1.0, 1.0]))) == {
        str(many): sum(score > many * mean for row in scores for score in row) / 8 for many in (3, 5, 7, 10)
    }
