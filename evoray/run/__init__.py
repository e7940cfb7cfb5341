"""From settings to a result: the driver's loop, and what it leaves on disk.

`plan.py`: `SearchPlan`: everything a search needs, checked before a worker starts.
`search.py`: `search`: the driver's loop.
`directory.py`: `RunDirectory`: settings, identity and the lock of a run.
`journal.py`: `Journal`: what was measured and decided, a generation at a time; resuming reads it.
`teacher.py`: `TaughtText`, `teach_text`: a text with the teacher's part of it, kept under the run.
`judge.py`: `judge`: held-out losses of configurations.
`build.py`, `evaluate.py`, `export.py`: the verbs build, eval and export.
`named.py`: `configuration_of`: which configuration a path names.
`progress.py`: what a person sees meanwhile.
"""
