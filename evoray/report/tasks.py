"""The table of tasks.

Holds: `task_table`.
"""

from collections.abc import Sequence

from rich.table import Table

from evoray.run.tasks import TaskScore


def task_table(scores: Sequence[TaskScore]) -> Table:
    """What tasks gave, a line per figure."""
    table = Table(title="tasks of lm-eval", title_justify="left")
    for column in ("task", "metric", "value", "stderr", "questions"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for score in scores:
        table.add_row(
            score.task,
            score.metric,
            f"{score.value:.4f}",
            "" if score.stderr is None else f"{score.stderr:.4f}",
            "" if score.samples is None else f"{score.samples:,}",
        )
    return table
