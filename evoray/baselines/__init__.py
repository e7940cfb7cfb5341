"""What a search has to beat. Each gives a genotype of the same space, within the same budget.

`uniform.py`: `uniform`: one level for every gene.
"""

from evoray.baselines.uniform import uniform

__all__ = ["uniform"]
