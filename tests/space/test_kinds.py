import pytest

from evoray.errors import UserError
from evoray.space import Tie, kind_defaults


@pytest.mark.parametrize(("kind", "tie"), [("quantization", Tie.FUSED), ("sparsity", Tie.NONE), ("joint", Tie.FUSED)])
def test_the_kind_of_a_store_names_a_module(kind, tie):
    assert kind_defaults(kind).tie == tie


@pytest.mark.parametrize("kind", ["quantisation", "levels", "", "os", "..run", "quantization.space"])
def test_anything_else_is_refused(kind):
    with pytest.raises(UserError, match="can't search; use a newer evoray"):
        kind_defaults(kind)
