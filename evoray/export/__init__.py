"""Checkpoints of a configuration, for people's engines. One file per format.

`hf.py`: `export_hf`: dequantized weights that plain transformers loads.
"""

from evoray.export.hf import export_hf

__all__ = ["export_hf"]
