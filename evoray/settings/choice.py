"""Settings of what chooses: `evoray search` and `evoray baseline`.

Holds: `ChoiceSettings`, `SearchSettings`, `BaselineSettings`, `TARGETS`.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from evoray.settings.fields import (
    MODEL,
    MOST,
    RECIPE,
    TOP_K,
    Bytes,
    Integers,
    Levels,
    ModelSettings,
    MutationRule,
    Names,
    Preset,
    ProposalRule,
    RacePolicy,
    TextSettings,
    WorkSettings,
    flag,
)

TARGETS = ("target_bits", "target_bpw", "target_size", "target_sparsity")
"""Budgets for the levels of a store, of which one is given."""


class ChoiceSettings(ModelSettings, TextSettings, WorkSettings):
    """What may be chosen, for which budget, and how it is judged: common to searches and baselines."""

    model: str = Field(description=MODEL)
    store: str | None = Field(
        None, description="The variants: a folder or URI that `evoray build` made. Not needed to drop only."
    )
    run: str = Field(description="Run directory: a folder or URI. A run of the same settings goes on.")
    take_over: bool = Field(
        False, description="Take the run directory over from a driver that seems to be at work; that one stops."
    )
    target_bits: float | None = Field(None, gt=0, description="Budget: average code bits per compressible weight.")
    target_bpw: float | None = Field(None, gt=0, description="Budget: average stored bits per weight, scales included.")
    target_size: Bytes | None = Field(None, description="Budget: size of the whole checkpoint, such as 3.5GB.")
    target_sparsity: float | None = Field(
        None, gt=0, lt=1, description="Budget: share of the compressible weights that are zero or dropped."
    )
    drop_blocks: int | None = Field(
        None,
        ge=1,
        description="Budget: drop so many attention and as many MLP sublayers; blocks with --drop-entire-block. "
        "Beside another budget it is one of its own.",
    )
    drop_entire_block: bool = Field(False, description="Drop whole blocks instead of sublayers.")
    drop_two_consecutive: bool = Field(
        False, description="Drop pairs of blocks: the first two, the next two, and so on; --drop-blocks counts pairs."
    )
    allow_drops: bool = Field(
        False, description="Let sublayers (or blocks) be dropped within the budget: what one frees, others can use."
    )
    droppable: str | None = Field(
        None,
        description="File that limits what may be dropped: site names, or none|attn|mlp|attn+mlp a line per block.",
    )
    levels: Levels | None = Field(None, description="Levels to choose from. Default: all of the store.")
    tie: Literal["fused", "none"] | None = Field(
        None,
        description="fused: layers that engines fuse (q/k/v, gate/up) share a level. Default: fused; sparsity: none.",
    )
    max_level: int | None = Field(
        None, ge=1, description="Most steps that a layer's level is away from the level at the target."
    )
    max_total_deviation: int | None = Field(None, ge=0, description="The same, summed over all layers.")
    fitness: Literal["kl", "perplexity", "kl-topk", "kl-topk-renormalised"] = Field(
        "kl",
        description="What is minimised: KL divergence to the base model, perplexity, or the KL over its top "
        "tokens, with the rest as one outcome or renormalised without it.",
    )
    top_k: int = Field(TOP_K, ge=1, le=1024, description="Top tokens of the base model that the kl-topk forms look at.")
    invert: bool = Field(False, description="Look for the worst instead of the best, as the paper does to learn.")
    search_tokens: int = Field(524288, ge=64, description="Most tokens of search text.")
    seed: int = Field(0, ge=0, description="Seed of every draw.")
    judge_data: str | None = Field(None, description="Held-out text. Default: the judging share of --data.")
    judge_tokens: int = Field(65536, ge=64, description="Most tokens of held-out text.")

    @property
    def target(self) -> str | None:
        """The name of the target that was given, without what is counted by itself."""
        return next((name for name in TARGETS if getattr(self, name) is not None), None)

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        options = ", ".join(map(flag, TARGETS))
        if len(given) > 1 or not (given or self.drop_blocks):
            named = " and ".join(flag(name) for name in given) or "none"
            raise ValueError(f"one budget is needed, {named} given; give one of {options}, --drop-blocks")
        if self.allow_drops and self.drop_blocks:
            raise ValueError("--allow-drops lets the budget decide how much is dropped; leave out it or --drop-blocks")
        drops = self.allow_drops or self.drop_blocks is not None
        for name in ("drop_entire_block", "drop_two_consecutive", "droppable"):
            if getattr(self, name) and not drops:
                raise ValueError(f"{flag(name)} needs --drop-blocks or --allow-drops")
        if self.store is None and not drops:
            raise ValueError("--store is missing; without one a search can only drop: --drop-blocks or --allow-drops")
        if self.store is None and given and not self.allow_drops:
            raise ValueError(f"{flag(given[0])} needs a --store, or --allow-drops to reach it by dropping alone")
        if self.store is not None and not given:
            raise ValueError(f"the levels of --store need a budget beside --drop-blocks: one of {options}")
        return self


class SearchSettings(ChoiceSettings):
    """`evoray search`: finds which layer gets which level."""

    recipe_part: ClassVar[Literal["build", "search"] | None] = "search"

    recipe: str | None = Field(None, description=RECIPE)
    preset: Preset | None = Field(None, description="evopress: the paper's algorithm and budget.")
    generations: int | None = Field(
        None,
        ge=0,
        le=MOST,
        description="Generations; a finished run goes on when this is raised. Default: 150, or k(n-k)/1.5 for the "
        "paper's preset with k of n sublayers dropped.",
    )
    offspring: int = Field(128, ge=1, le=MOST, description="Offspring per generation.")
    survivors: Integers = Field((16, 4, 1), description="Survivors of each rung.")
    tokens: Integers = Field((2048, 16384, 131072), description="Tokens of each rung.")
    population: int = Field(1, ge=1, le=MOST, description="Parents that go on; the last rung has as many survivors.")
    initial_candidates: int = Field(32, ge=1, le=MOST, description="Random configurations that race for the start.")
    initial_tokens: int | None = Field(None, ge=2, description="Tokens of that race. Default: those of the first rung.")
    init: str | None = Field(
        None, description="Start from a configuration (a file, or a run's best.json), or from a baseline, such as dp."
    )
    guesses: bool | None = Field(
        None,
        description="Let the choices of OWL and of the least sum of layer errors, which no token is spent on, race in "
        "the first generation. Default: with learned offspring.",
    )
    mutation: MutationRule = Field(
        MutationRule.budget, description="Switches: any within the budget, or of equal cost steps."
    )
    switches: int = Field(3, ge=1, le=MOST, description="Most level switches of an offspring.")
    race: RacePolicy = Field(
        RacePolicy.sequential,
        description="Who is measured how far: the paper's fixed draws, paired halving, or paired sequential tests.",
    )
    proposals: ProposalRule | None = Field(
        None,
        description="Offspring: the paper's mutation, mutants screened by an additive model of all measurements, or "
        "choices learned by it. Default: learned; mutation where genes have too many levels in all to learn of each.",
    )
    survey: int | None = Field(
        None,
        ge=0,
        le=MOST,
        description="Learned offspring: candidates that are measured on the first rung's tokens, to learn from, before "
        "any may replace the parent. Default: half as many as genes have steps from level to level.",
    )
    merge: bool = Field(False, description="Merge a generation's improving offspring into new ones of the same race.")
    patience: int | None = Field(
        None, ge=1, le=MOST, description="Stop after so many generations in a row without a better one. Default: never."
    )
    max_hours: float | None = Field(
        None, gt=0, description="Stop after so many hours; the run can go on later. Of a sweep, each search."
    )
    max_tokens: int | None = Field(
        None,
        gt=0,
        description="Stop after so many candidate tokens; the run can go on later. Of a sweep, each search.",
    )
    log_to: Names = Field(
        (),
        description="Where figures of the run go as well: tensorboard, wandb, mlflow. "
        "Needs pip install 'evoray[NAME]'. Default: nowhere.",
    )
    dry_run: bool = Field(False, description="Say what it would take, and stop.")

    @model_validator(mode="after")
    def _rules_that_fit(self) -> Self:
        if self.merge and self.race is not RacePolicy.sequential:
            raise ValueError(f"--merge needs --race sequential, not {self.race.value}; leave out one of them")
        if self.population > self.initial_candidates:
            raise ValueError(
                f"--population {self.population} is more than the {self.initial_candidates} of --initial-candidates, "
                "which it comes from; lower it, or raise them"
            )
        return self

    @model_validator(mode="after")
    def _papers_budget(self) -> Self:
        of_paper = ("target_bits", "target_sparsity", None)
        if self.preset is Preset.evopress and (self.target not in of_paper or self.allow_drops):
            raise ValueError(
                "--preset evopress is the paper's, whose budget is --target-bits, --target-sparsity or --drop-blocks; "
                "give one of these, or leave out --preset"
            )
        return self


class BaselineSettings(ChoiceSettings):
    """`evoray baseline`: what a search has to beat, for the same budget and in the same form."""

    method: str = Field(
        description="uniform, random, dp, owl, greedy; for dropping cosine, cosine-window, norm-ratio, l2, "
        "l2-normalised, perplexity, kl, sequential, brute-force."
    )
    tokens: int = Field(16384, ge=2, description="Tokens that candidates are measured on, where the method measures.")
    candidates: int | None = Field(
        None, ge=1, le=MOST, description="random: how many; brute-force: at most. Default: 128, and 20,000."
    )
