"""What people look at.

`tables.py`: what is in a store, a run, a configuration, and how candidates compare.
`dry_run.py`: what a build or search would take.
"""
