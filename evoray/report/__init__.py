"""What people look at.

`tables.py`: what is in a store, a run, a configuration, and how candidates compare.
`monotonicity.py`: where less error in the layers is more loss: a table and a picture.
`tasks.py`: scores of tasks.
`dry_run.py`: what a build or search would take. `recipes.py`: settings of known experiments.
"""
