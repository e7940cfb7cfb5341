"""From settings to a result: the driver's loop, and what it leaves on disk.

`ground.py`: `Ground`: what searches and baselines stand on: facts, space, texts, checked before a worker starts.
`plan.py`: `SearchPlan`: a search on it. `workers.py`: how the workers of a verb are built.
`search.py`: `search`: the driver's loop. `sweep.py`: `sweep`: one search after the other, each seeding the next.
`budgets.py`: `SweepRecord`: the budgets of a sweep, as its folder tells them.
`directory.py`: `RunDirectory`: settings and identity of a run. `held.py`, `fence.py`: that a folder has one driver.
`journal.py`: `Journal`: what was measured and decided, a generation at a time; resuming reads it.
`teacher.py`: `TaughtText`, `teach_text`: a text with the teacher's part of it, kept under the run.
`judge.py`: `judge`: held-out losses of configurations.
`best.py`: what best.json says.
`problem.py`: baselines on real losses.
`build.py`, `baseline.py`, `evaluate.py`, `export.py`, `report.py`: the verbs build, baseline, eval, export and report.
`tasks.py`: lm-eval's tasks.
`monotonicity.py`: `monotonicity`: sums of layer errors against the losses of a run.
`named.py`: `configuration_of`: which configuration a path names.
`bare.py`: a model without a store. `sites.py`: files that name what may be dropped.
`progress.py`: what a person sees meanwhile. `log.py`: the same, kept in the run directory.
`loggers/`, `logged.py`: TensorBoard and the like, told the figures of a search as well.
"""
