"""Checkpoints of a configuration, for people's engines. One file per format.

`hf.py`: `export_hf`: dequantized weights that plain transformers loads.
`evopress.py`: `export_evopress`: the text files that EvoPress's programs read.
`folder.py`: the folder that all of them write, whole or not at all.
"""

from evoray.export.evopress import export_evopress
from evoray.export.hf import export_hf

__all__ = ["export_evopress", "export_hf"]
