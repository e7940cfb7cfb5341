"""The uniform baseline: the dearest shared level within the budget."""

import pytest
from searches import Material

from evoray.baselines import uniform
from evoray.space import Budget, Measure, Tie, quantization_space
from evoray.store import VariantStore


@pytest.mark.parametrize("tie", [Tie("fused"), Tie("none")])
@pytest.mark.parametrize(("target", "level"), [(2, "2"), (2.5, "2"), (2.99, "2"), (3, "3"), (3.7, "3"), (4, "4")])
def test_it_is_the_dearest_level_within_the_budget(material: Material, tie: Tie, target: float, level: str) -> None:
    space = quantization_space(VariantStore.open(material.store).manifest, Budget(Measure.BITS, target), tie, None)
    assert set(space.configuration(uniform(space)).values()) == {level}
    assert space.summary(uniform(space)).bits <= target
