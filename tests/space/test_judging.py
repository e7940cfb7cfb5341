from dataclasses import dataclass

import pytest

from evoray.errors import UserError
from evoray.space import BareLayer, BareManifest, configuration_costs, judging_rows

MODEL = BareManifest(tuple(BareLayer(f"m.{n}.attn.q_proj", n, 4, 4, 32, 3) for n in range(2)), 100)


@dataclass(frozen=True)
class Site:
    name: str
    block: int
    kind: str
    layers: tuple[str, ...]
    other_bytes: int


SITES = (
    Site("m.0.attn", 0, "attn", ("m.0.attn.q_proj",), 5),
    Site("m.0", 0, "block", ("m.0.attn.q_proj",), 9),
    Site("m.1", 1, "block", ("m.1.attn.q_proj",), 9),
)


def test_sites_stand_behind_the_layers_and_are_kept_unless_dropped():
    assert judging_rows(MODEL, {}, SITES).tolist() == [-1] * 3, "without a store, layers are no columns"
    row = judging_rows(MODEL, {"m.0": "dropped", "m.1": "kept", "m.1.attn.q_proj": "base"}, SITES)
    assert (row.dtype.name, row.tolist()) == ("int8", [-1, 0, -1])


def test_a_sublayer_in_a_dropped_block_is_counted_once():
    block = configuration_costs(MODEL, {"m.0": "dropped"}, SITES)
    assert (block.size, block.sparsity, block.bits) == (100 - 9 + 32, 0.5, 8.0)
    assert configuration_costs(MODEL, {"m.0": "dropped", "m.0.attn": "dropped"}, SITES) == block


@pytest.mark.parametrize("ask", [judging_rows, configuration_costs])
def test_levels_that_a_site_lacks_are_named(ask):
    with pytest.raises(UserError, match=r"m\.1 has no level '4'; choose dropped or kept"):
        ask(MODEL, {"m.1": "4"}, SITES)
    with pytest.raises(UserError, match=r"names m\.1"):
        ask(MODEL, {"m.1": "dropped"})
