"""Named sets of defaults.

Holds: `PRESETS`, `preset_values`.
"""

from collections.abc import Mapping
from typing import Any

from evoray.settings.fields import Preset

_PAPER = {
    "offspring": 128,
    "survivors": (16, 4, 1),
    "tokens": (2048, 16384, 131072),
    "switches": 3,
    "race": "fixed",
    "proposals": "mutation",
}

PRESETS: dict[Preset, dict[str, dict[str, Any]]] = {
    # Section 4 and the appendix of the paper, by what the budget is: untied layers, switches of equal steps, sequences
    # as long as the model reads up to 8192 (`run/ground.py`).
    Preset.evopress: {
        "target_bits": {**_PAPER, "generations": 150, "tie": "none", "mutation": "equal-steps"},
        "target_sparsity": {
            **_PAPER,
            "generations": 400,
            "offspring": 64,
            "survivors": (8, 2, 1),
            "tokens": (2048, 16384, 65536),
        },
        "drop_blocks": {
            **_PAPER,
            "offspring": 32,
            "survivors": (2, 1),
            "tokens": (2048, 32768),
            "initial_candidates": 64,
            "initial_tokens": 2048,
        },
    }
}


def preset_values(preset: Preset, given: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's values for the budget that is given; of two the one of the levels decides."""
    values = PRESETS[preset]
    return next((values[budget] for budget in values if given.get(budget) is not None), {})
