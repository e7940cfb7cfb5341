"""One worker, one base model: genotypes x batches -> losses.

`evaluator.py`: `Evaluator`: losses of candidates, and influences of a model's parts.
`work.py`: `Work`: one batch, ready to run.
`sites.py`: `Sites`: what the columns of a candidate's row mean, and how a model becomes that candidate.
`boundaries.py`: `BoundaryStack`: states from which candidates resume.
`cache.py`: `VariantCache`: ready weights.
`memory.py`: `peak_bytes`: what a call holds at most.
`influences.py`: `InfluenceWalk`: what parts of the base model do to the state.
"""

from evoray.evaluator.cache import VariantCache
from evoray.evaluator.evaluator import Evaluator
from evoray.evaluator.memory import peak_bytes
from evoray.evaluator.work import Work

__all__ = ["Evaluator", "VariantCache", "Work", "peak_bytes"]
