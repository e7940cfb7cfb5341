import pytest

from evoray.errors import UserError
from evoray.space import Tie, kind_defaults


@pytest.mark.parametrize(
    ("kind", "tie", "equal_steps"),
    [("quantization", Tie.FUSED, False), ("sparsity", Tie.NONE, True), ("joint", Tie.FUSED, False)],
)
def test_the_kind_of_a_store_names_a_module(kind, tie, equal_steps):
    assert (kind_defaults(kind).tie, kind_defaults(kind).equal_steps) == (tie, equal_steps)


@pytest.mark.parametrize("kind", ["quantisation", "levels", "", "os", "..run", "quantization.space"])
def test_anything_else_is_refused(kind):
    with pytest.raises(UserError, match="can't search; use a newer evoray"):
        kind_defaults(kind)
