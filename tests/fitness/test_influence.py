"""The measures of influence against the torch functions that their publication uses."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.fitness import INFLUENCES, influence


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 7), width=st.integers(2, 40), seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1, 1e3])
)
def test_they_are_the_published_ones(tokens, width, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    before_ND = scale * torch.randn(tokens, width, generator=generator)
    behind_ND = before_ND + 0.3 * scale * torch.randn(tokens, width, generator=generator)
    found = dict(zip(INFLUENCES, influence(before_ND, behind_ND), strict=True))
    x_ND, y_ND = before_ND.double(), behind_ND.double()
    unit_x_ND, unit_y_ND = F.normalize(x_ND, dim=1), F.normalize(y_ND, dim=1)
    torch.testing.assert_close(found["cosine"], 1 - F.cosine_similarity(x_ND, y_ND, dim=1))
    torch.testing.assert_close(found["norm-ratio"], (y_ND - x_ND).norm(dim=1) / y_ND.norm(dim=1))
    torch.testing.assert_close(found["l2"], torch.linalg.vector_norm(x_ND - y_ND, dim=1))
    torch.testing.assert_close(found["l2-normalised"], torch.linalg.vector_norm(unit_x_ND - unit_y_ND, dim=1))


def test_nothing_changed():
    state_ND = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    found_4N = influence(state_ND, state_ND)
    assert torch.all(found_4N[0].abs() < 1e-15)
    assert torch.all(found_4N[1:] == 0)


def test_states_of_length_zero():
    zero_ND, one_ND = torch.zeros(1, 4), torch.eye(4)[:1]
    assert influence(zero_ND, one_ND)[:, 0].tolist() == [1, 1, 1, 1]
    assert influence(one_ND, zero_ND)[:, 0].tolist() == [1, torch.inf, 1, 1]
    assert influence(zero_ND, zero_ND)[1:, 0].tolist() == [0, 0, 0]


def test_half_precision_loses_nothing_more():
    before_ND = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    behind_ND = (before_ND * 1.02).bfloat16()
    assert torch.equal(influence(before_ND, behind_ND), influence(before_ND.double(), behind_ND.double()))
