"""What people look at.

`tables.py`: what is in a store, a run, a configuration, and how candidates compare.
`page.py`: `page`: the page of a report. `style.py`: how it looks; `spelled.py`: how it spells values.
`pictures.py`, `figures.py`, `drawing.py`: its figures, with the tables of their numbers.
`reading.py`: `read_run`: the numbers of a run (`numbers.py`). `allocation.py`: which layer has which level.
`monotonicity.py`: where less error in the layers is more loss: a table and a picture.
`sweep.py`: several budgets side by side. `tasks.py`: scores of tasks.
`dry_run.py`: what a build or search would take. `recipes.py`: settings of known experiments.
"""
