"""Settings of `evoray sweep`.

Holds: `SweepSettings`, `SWEPT`.
"""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from evoray.settings.choice import TARGETS, SearchSettings
from evoray.settings.fields import MOST, Bytes, flag, listed

SWEPT = (*TARGETS, "drop_blocks")
"""Budgets of which one is a list."""

Numbers = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(listed)]
Shares = Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], BeforeValidator(listed)]
Sizes = Annotated[tuple[Bytes, ...], BeforeValidator(listed)]
Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(listed)]


class SweepSettings(SearchSettings):
    """`evoray sweep`: searches for several budgets in one job, each seeding the next."""

    # Lists where a search has one value, which is safe where nothing is ever assigned.
    target_bits: Numbers | None = Field(None, description="Budgets: average code bits, such as 2.25,3,4.")  # type: ignore[assignment]
    target_bpw: Numbers | None = Field(None, description="Budgets: average stored bits, scales included.")  # type: ignore[assignment]
    target_size: Sizes | None = Field(None, description="Budgets: sizes of the whole checkpoint.")  # type: ignore[assignment]
    target_sparsity: Shares | None = Field(None, description="Budgets: shares of the weights that are zero.")  # type: ignore[assignment]
    drop_blocks: Counts | None = Field(None, description="Budgets: how many are dropped.")  # type: ignore[assignment]
    seeded_generations: int | None = Field(
        None,
        ge=0,
        le=MOST,
        description="Generations of budgets that another one seeds. Default: a fifth of --generations.",
    )

    @property
    def swept(self) -> str:
        """The name of the budget that is a list."""
        return next(name for name in SWEPT if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one_list(self) -> Self:
        given = [name for name in SWEPT if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{flag(given[0])} and {flag(given[1])} given; a sweep is over one kind of budget")
        values: tuple[Any, ...] = getattr(self, given[0])
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{flag(given[0])} {','.join(map(str, values))}: give one or more, all different")
        if self.init is not None:
            raise ValueError("--init is for one search; in a sweep each budget seeds the next")
        return self
