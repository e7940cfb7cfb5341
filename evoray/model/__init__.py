"""Any decoder-only model of transformers: load it, find its parts, run part of it, swap its weights.

Everything is found by structure and checked by probes; there is no table of model names.

What is in the room:
- `load`: `load_model`, `load_config`, `load_tokenizer`, `settle_numerics`, `pick_device`, `pick_devices`.
- `spread`: which block goes to which GPU, where one is too small.
- `checkpoint`: `resolve_checkpoint`: a model's folder, from a path, a model id or the embedded model.
- `facts`: `checkpoint_facts`: shapes, sizes, dtype and digest of a checkpoint, without reading its weights;
  `model_folder`: whether a model was given as a folder, and which.
- `structure`: `find_structure`: decoder, blocks, layers and head; `LayerRef`.
- `droppable`: `find_droppable`: sublayers and blocks that a pass may do without; `Droppable`, `DropKind`.
- `dropped`: sublayers that can be taken out of a pass and put back.
- `gate`: `BlockGate`: start at a block, stop before one, keep states at boundaries.
- `adapter`: `ModelAdapter`: all of that for one loaded model.
- `products`: matrix products on CPUs.
- `probes`: what the adapter checks at load, and what is off when a check fails.
- `drop_probes`: what is checked before sublayers and blocks are dropped.
- `slots`: `LoadSlots`: how many models load at once on a node.
- `quiet`: `quiet_transformers`: keeps transformers' bars and remarks out of our output.
"""

from evoray.model.adapter import ModelAdapter
from evoray.model.checkpoint import Need, resolve_checkpoint
from evoray.model.droppable import DropKind, Droppable, find_droppable
from evoray.model.facts import Facts, LayerShape, checkpoint_facts, model_folder, weights_digest
from evoray.model.load import load_config, load_model, load_tokenizer, pick_device, pick_devices, settle_numerics
from evoray.model.quiet import quiet_transformers
from evoray.model.slots import LoadSlots
from evoray.model.structure import LayerRef, Structure, find_structure

__all__ = [
    "DropKind",
    "Droppable",
    "Facts",
    "LayerRef",
    "LayerShape",
    "LoadSlots",
    "ModelAdapter",
    "Need",
    "Structure",
    "checkpoint_facts",
    "find_droppable",
    "find_structure",
    "load_config",
    "load_model",
    "load_tokenizer",
    "model_folder",
    "pick_device",
    "pick_devices",
    "quiet_transformers",
    "resolve_checkpoint",
    "settle_numerics",
    "weights_digest",
]
