"""Figures with the tables of their numbers: what a report shows of one run, and of several.

Needs matplotlib (the extra `plots`).

Holds: `Picture`, `pictures_of`, `pictures_beside`, `judged_head`, `judged_row`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from evoray.report.figures import (
    allocation_figure,
    busy_figure,
    busy_shares,
    bytes_figure,
    errors_figure,
    funnel_figure,
    loss_figure,
    losses_figure,
    sizes_figure,
)
from evoray.report.numbers import Judged, RunNumbers, loss_name
from evoray.report.spelled import exact, flat, number, whole
from evoray.sizes import human_bytes


@dataclass(frozen=True)
class Picture:
    """A figure with its numbers.

    Attributes:
        key: names it among those of a run, and its file.
        png: the file.
        title: what it shows.
        about: how to read it.
        head: of the table of its numbers.
        rows: of that table.
        words: columns from the left that hold no numbers.
    """

    key: str
    png: bytes
    title: str
    about: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


def judged_head(sparse: bool) -> list[str]:
    """The columns of a table of candidates; with their sparsity where there is some."""
    return [
        *("bits", "bpw", "size"),
        *(["sparsity"] if sparse else []),
        *("KL [nats/token]", "perplexity", "found better by (95%)"),
    ]


def judged_row(each: Judged, *, sparse: bool) -> list[str]:
    """Costs and held-out losses of one candidate, in the order of `judged_head`."""
    better = f"{number(each.better_by, 4)} ± {number(each.interval, 4)}"
    if each.better_by == each.interval == 0:
        better = "the same"
    return [
        exact(each.bits),
        exact(each.bpw),
        human_bytes(each.size),
        *([exact(each.sparsity)] if sparse else []),
        number(each.kl),
        number(each.perplexity),
        "" if each.name == "found" else better,
    ]


def pictures_of(run: RunNumbers) -> list[Picture]:
    """What there is to show of one run, in the order of the page."""
    makers = (_loss, _allocation, _bytes, _errors, _funnel, _busy)
    return [picture for maker in makers if (picture := maker(run)) is not None]


def pictures_beside(runs: Sequence[RunNumbers]) -> list[Picture]:
    """What compares several runs."""
    found = []
    if any(run.generations for run in runs):
        rows = [
            [run.name, loss_name(run.fitness), whole(each.generation), whole(each.total_tokens), number(each.fitness)]
            for run in runs
            for each in run.generations
        ]
        found.append(
            Picture(
                "losses",
                losses_figure(runs),
                "Loss against candidate tokens",
                "The winner of each generation, on the tokens of its last rung.",
                ("run", "of", "generation", "candidate tokens so far", "loss [nats/token]"),
                rows,
                words=2,
            )
        )
    if any(run.judged for run in runs):
        sparse = any(each.sparsity for run in runs for each in run.judged)
        found.append(
            Picture(
                "sizes",
                sizes_figure(runs),
                "Size against held-out loss",
                "What each run found, filled and numbered, and what it is judged beside, hollow; lower left is better.",
                ("run", "candidate", *judged_head(sparse)),
                [[run.name, each.name, *judged_row(each, sparse=sparse)] for run in runs for each in run.judged],
                words=2,
            )
        )
    return found


def _loss(run: RunNumbers) -> Picture | None:
    if not run.generations:
        return None
    head = (
        "generation",
        "loss [nats/token]",
        "parent's loss",
        "accepted",
        "candidates",
        "candidate tokens so far",
        "seconds so far",
        "bits",
        "bpw",
        "size",
        "workers lost",
    )
    rows = [
        [
            whole(each.generation),
            number(each.fitness),
            number(each.parent_fitness),
            flat(each.accepted),
            whole(each.candidates),
            whole(each.total_tokens),
            number(each.total_seconds),
            exact(each.bits),
            exact(each.bpw),
            human_bytes(each.size),
            whole(each.lost_workers),
        ]
        for each in run.generations
    ]
    about = "The winner of each generation, on the tokens of its last rung, against candidate tokens and time."
    return Picture("loss", loss_figure(run.generations, run.fitness), "Loss of the search", about, head, rows)


def _allocation(run: RunNumbers) -> Picture | None:
    if run.allocation is None:
        return None
    kinds, grid = run.allocation.kinds, run.allocation.rows()
    return Picture(
        "allocation",
        allocation_figure(run.allocation),
        "Who got which level",
        "The best configuration, block by block; a cross is what is dropped.",
        ("block", *kinds),
        [[str(block), *(grid[block].get(kind, "") for kind in kinds)] for block in run.allocation.blocks],
    )


def _bytes(run: RunNumbers) -> Picture | None:
    if not run.parts:
        return None
    total = sum(part.bytes for part in run.parts)
    known = any(part.base_bytes is not None for part in run.parts)
    rows = [
        [part.name, whole(part.bytes), f"{100 * part.bytes / total:.2f}%", *([whole(part.base_bytes)] if known else [])]
        for part in run.parts
    ]
    base = [whole(sum(part.base_bytes or 0 for part in run.parts))] if known else []
    return Picture(
        "bytes",
        bytes_figure(run.parts),
        "Where the bytes go",
        "Parts of the checkpoint of the best configuration.",
        ("part", "bytes", "share", *(["bytes in the base model"] if known else [])),
        [*rows, ["all", whole(total), "100.00%", *base]],
    )


def _errors(run: RunNumbers) -> Picture | None:
    if not run.errors:
        return None
    place = {level: number for number, level in enumerate(run.error_levels)}
    kinds = list(dict.fromkeys(error.kind for error in run.errors))
    ordered = sorted(run.errors, key=lambda error: (kinds.index(error.kind), place[error.level]))
    return Picture(
        "errors",
        errors_figure(run.errors, run.error_levels),
        "Layer errors of the store",
        "Relative error of each kind of layer at each level, the mean over blocks. No search decides by them.",
        ("kind of layer", "level", "layers", "mean", "least", "most"),
        [
            [each.kind, each.level, whole(each.layers), number(each.mean), number(each.least), number(each.most)]
            for each in ordered
        ],
        words=2,
    )


def _funnel(run: RunNumbers) -> Picture | None:
    if not run.funnel:
        return None
    return Picture(
        "funnel",
        funnel_figure(run.funnel),
        "The funnel of the race",
        "What a generation measures on each rung, on average over generations. Generation 0, a race for the start, "
        "is in the table alone.",
        ("generation", "rung", "candidates", "tokens of each", "candidate tokens"),
        [
            [
                whole(each.generation),
                whole(each.rung + 1),
                whole(each.candidates),
                whole(each.tokens_each),
                whole(each.tokens),
            ]
            for each in run.funnel
        ],
    )


def _busy(run: RunNumbers) -> Picture | None:
    if not any(each.busy_seconds for each in run.generations):
        return None
    rows = [
        [
            whole(each.generation),
            number(each.seconds, 3),
            whole(len(each.busy_seconds)),
            *[f"{100 * share:.1f} %" for share in busy_shares(each)],
        ]
        for each in run.generations
        if each.busy_seconds
    ]
    return Picture(
        "busy",
        busy_figure(run.generations),
        "Busy time of workers",
        "Share of a generation's time in which workers had work: all of them together, and the least busy one.",
        ("generation", "seconds", "workers", "busy", "least busy"),
        rows,
    )
