"""Settings of every verb: strict, frozen, the same from the command line, a YAML file and Python.

Holds: `BuildSettings`, `SearchSettings`, `BaselineSettings`, `EvalSettings`, `ExportSettings`, `Preset`,
`load_settings`, `read_yaml`.

A field's description is its help on the command line, and its name is its flag.
"""

import difflib
import os
from collections.abc import Hashable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from evoray.errors import UserError
from evoray.sizes import parse_size


def _bytes(value: Any) -> Any:
    try:
        return parse_size(value) if isinstance(value, str) else value
    except UserError as error:
        # The value stands before the message already.
        raise ValueError(str(error).removeprefix(f"{value!r} ").removeprefix("is ")) from None


def _list(value: Any) -> Any:
    """Lists are written `16,4,1` or `16 4 1` on a command line."""
    if isinstance(value, str):
        return [part for part in value.replace(",", " ").split() if part]
    return [value] if isinstance(value, int | float) else value


def _levels(value: Any) -> Any:
    found = _list(value)
    return [str(level) for level in found] if isinstance(found, list | tuple) else found


_MODEL = "Model: a folder, a model id, or `embedded`."

TARGETS = ("target_bits", "target_bpw", "target_size", "target_sparsity")
"""Budgets for the levels of a store, of which one is given."""

MOST = 1_000_000
"""Of anything that is counted one by one: more could not be held in memory."""

Bytes = Annotated[int, BeforeValidator(_bytes), Field(gt=0)]
Integers = Annotated[tuple[int, ...], BeforeValidator(_list)]
Levels = Annotated[tuple[str, ...], BeforeValidator(_levels)]
Level = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)]
Names = Annotated[tuple[str, ...], BeforeValidator(_levels)]


VOCABULARY_CHUNK = 16384
BOUNDARY_BYTES = 1 << 30
VARIANT_BYTES = 4 << 30
TOP_K = 10
"""What a worker takes where nobody says otherwise: rows of the head per product, its two limits of memory, and the
tokens that a KL over top tokens looks at (as in EvoPress)."""


class Device(StrEnum):
    """Where models run. `auto` takes CUDA where there is some."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(StrEnum):
    """What models run in. `auto`: the checkpoint's own on CUDA, float32 on CPUs."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Preset(StrEnum):
    """Named sets of defaults. `evopress`: the algorithm of arXiv 2410.14649."""

    evopress = "evopress"


class MutationRule(StrEnum):
    """`budget`: switches of any two genes within the budget. `equal-steps`: the paper's, between equal cost steps."""

    budget = "budget"
    equal_steps = "equal-steps"


class Settings(BaseModel):
    """Common ground: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        wanted = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and wanted is not bool:
            # Python counts True as 1; in a settings file it is a slip.
            raise ValueError("this is no switch; give a value")
        if isinstance(value, str) and not value.strip() and wanted in (str, str | None):
            raise ValueError("it is empty; give a value")
        return os.fspath(value) if isinstance(value, os.PathLike) else value


class ModelSettings(Settings):
    """How a model is loaded and runs."""

    revision: str | None = Field(None, description="Branch, tag or commit of the model on the hub.")
    trust_remote_code: bool = Field(False, description="Let the checkpoint's own Python run, on workers too.")
    attn_implementation: str | None = Field(None, description="Attention: eager, sdpa or flash_attention_2.")
    dtype: Dtype = Field(Dtype.auto, description="What the model runs in.")
    device: Device = Field(Device.auto, description="Where the model runs.")
    allow_partial: bool = Field(False, description="Accept models with less than 90% of their weights in reach.")


class TextSettings(Settings):
    """Which text, and how it is cut."""

    data: str = Field(description="Text: a file, a folder, `embedded`, or NAME[:config][:split][:column] of the hub.")
    sequence_length: int | None = Field(
        None, ge=8, description="Most tokens of a block. Default: 512, or what the model reads."
    )
    bos: Literal["auto", "none", "document", "block"] = Field(
        "auto", description="Where beginning-of-sequence tokens stand."
    )
    separator: str = Field("auto", description="What cuts a .txt file: auto, none, a line, or re:PATTERN.")


class WorkSettings(Settings):
    """Who does the work."""

    workers: int | None = Field(
        None, ge=0, description="Workers. 0: this process, without Ray. Default: one per GPU, or one per core."
    )
    threads_per_worker: int = Field(
        1, ge=1, le=4096, description="Threads of torch in each worker; part of a run's bits."
    )
    address: str | None = Field(None, description="Address of a running Ray cluster. Default: a local one.")
    wait: float = Field(600, ge=0, description="Seconds to wait for a worker to be placed; loading is not counted.")
    allow_mixed: bool = Field(False, description="Let workers of unlike devices in, and give up bit-equal losses.")
    tokens_per_pass: int = Field(2048, ge=8, description="Most tokens of a forward pass, padding included.")
    vocabulary_chunk: int = Field(VOCABULARY_CHUNK, ge=256, description="Rows of the output head per matrix product.")
    boundary_memory: Bytes = Field(
        BOUNDARY_BYTES, description="Memory for states at block boundaries, per worker. Default: 1GiB."
    )
    variant_memory: Bytes = Field(
        VARIANT_BYTES, description="Memory for ready variants on the device, per worker. Default: 4GiB."
    )


METHODS = {
    "quantization": ("gptq", "rtn"),
    "sparsity": ("sparsegpt", "magnitude", "wanda"),
    "joint": ("sparsegpt", "magnitude"),
}
"""Kind -> its usual method, the one that needs no text, and others."""

_OF_CODES = {"group_size", "symmetric", "scales", "scale_dtype", "cost_format", "act_order"}
_MAKING = {"method", "levels", "target_sparsity", "steps", "step_weights", "data", "hessian_tokens", "hessian_inputs"}
_MAKING |= {"hessian_level", "damping", "scales", "scale_dtype", "act_order"}


class BuildSettings(ModelSettings):
    """`evoray build`: makes the variants."""

    model: str = Field(description=_MODEL)
    store: str = Field(description="Where the variants go: a folder or a URI (s3://, gs://, file://).")
    kind: Literal["quantization", "sparsity", "joint"] = Field("quantization", description="What levels mean.")
    method: Literal["gptq", "rtn", "sparsegpt", "wanda", "magnitude"] | None = Field(
        None, description="How weights are compressed. Default: gptq for bits, sparsegpt for the others."
    )
    levels: Levels | None = Field(
        None,
        description="Bits (2 to 8), sparsities (0.5), or for joint both and mixed ones (4x0.5). "
        "Default: 2,3,4,5,6 or 0.3,0.4,0.5,0.6,0.7,0.8 or 2,3,4,4x0.5,0.5.",
    )
    target_sparsity: float | None = Field(
        None, gt=0, lt=1, description="Sparsity: levels are steps around it, instead of --levels."
    )
    steps: int | None = Field(None, ge=1, le=63, description="Sparsity: steps on each side of the target. Default: 8.")
    step_weights: int | None = Field(
        None, ge=1, description="Sparsity: weights of a step, in every layer. Default: the paper's."
    )
    from_evopress: str | None = Field(
        None, description="Take variants from a folder that EvoPress made (LAYER/LEVEL.pth), instead of making them."
    )
    group_size: int = Field(128, ge=-1, description="Input columns per scale; -1: a whole row.")
    symmetric: bool = Field(True, description="Without zero points.")
    scales: Literal["mse", "minmax"] = Field("mse", description="How scales are chosen.")
    scale_dtype: Literal["auto", "float16", "bfloat16", "float32"] = Field(
        "auto", description="What scales are stored in. auto: the checkpoint's dtype."
    )
    cost_format: Literal["compressed-tensors", "tight"] = Field(
        "compressed-tensors", description="How bytes are counted."
    )
    data: str | None = Field(
        None, description="Hessian text: a file, a folder, `embedded`, or NAME[:config][:split][:column]."
    )
    hessian_tokens: int = Field(262144, ge=64, description="Most tokens of Hessian text.")
    hessian_inputs: Literal["base", "quantized"] = Field(
        "base", description="Inputs of Hessians come from the base model, or the model compressed so far."
    )
    hessian_level: Level | None = Field(
        None, description="Level of the model compressed so far. Default: the middle one."
    )
    damping: float = Field(0.01, gt=0, description="Added to the Hessian's diagonal, as a share of its mean.")
    act_order: bool = Field(True, description="Columns in the order of their Hessian; groups stay as they lie.")
    sequence_length: int | None = Field(
        None, ge=8, description="Most tokens of a block. Default: 2048, or what the model reads."
    )
    bos: Literal["auto", "none", "document", "block"] = Field(
        "auto", description="Where beginning-of-sequence tokens stand."
    )
    separator: str = Field("auto", description="What cuts a .txt file: auto, none, a line, or re:PATTERN.")
    tokens_per_pass: int = Field(2048, ge=8, description="Most tokens of a forward pass, padding included.")
    threads: int | None = Field(None, ge=1, description="Threads of torch. Default: all cores.")
    seed: int = Field(0, ge=0, description="Orders the documents.")
    dry_run: bool = Field(False, description="Say what it would take, and stop.")

    @model_validator(mode="after")
    def _fits_the_kind(self) -> "BuildSettings":
        if self.from_evopress is not None:
            self._refuse_beside("--from-evopress", self._given(_MAKING), "the folder decides them")
            if self.kind == "joint":
                raise ValueError("EvoPress makes no joint variants; give --kind quantization or sparsity")
        usual, textless, *others = METHODS[self.kind]
        if self.method not in (None, usual, textless, *others):
            known = ", ".join((usual, *others, textless))
            raise ValueError(f"method {self.method} makes no variants of kind {self.kind}; choose one of {known}")
        stepping = [name for name in ("target_sparsity", "steps", "step_weights") if getattr(self, name) is not None]
        if stepping and self.kind != "sparsity":
            self._refuse_beside(f"--kind {self.kind}", stepping, "steps are for --kind sparsity")
        if stepping and self.levels is not None:
            self._refuse_beside("--levels", stepping, "give sparsities or steps")
        if stepping and self.target_sparsity is None:
            raise ValueError(f"{flag(stepping[0])} needs a --target-sparsity for the steps to go from")
        if self.kind == "sparsity":
            self._refuse_beside("--kind sparsity", self._given(_OF_CODES), "it is for bits")
        method = self.method or usual
        if method != textless and self.data is None and self.from_evopress is None:
            raise ValueError(f"method {method} needs Hessian text: give --data, or use --method {textless}")
        return self

    def _given(self, names: set[str]) -> list[str]:
        fields = type(self).model_fields
        return [name for name in fields if name in names and getattr(self, name) != fields[name].default]

    def _refuse_beside(self, given: str, names: list[str], reason: str) -> None:
        if names:
            raise ValueError(f"{flag(names[0])} does not go with {given}: {reason}; leave out one of them")


class ChoiceSettings(ModelSettings, TextSettings, WorkSettings):
    """What may be chosen, for which budget, and how it is judged: common to searches and baselines."""

    model: str = Field(description=_MODEL)
    store: str | None = Field(
        None, description="The variants: a folder or URI that `evoray build` made. Not needed to drop only."
    )
    run: str = Field(description="Run directory: a folder or URI. A run of the same settings goes on.")
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
    mutation: MutationRule | None = Field(
        None,
        description="Switches: any within the budget, or of equal cost steps. Default: budget; equal-steps for "
        "sparsity and dropping.",
    )
    switches: int = Field(3, ge=1, le=MOST, description="Most level switches of an offspring.")
    max_hours: float | None = Field(None, gt=0, description="Stop after so many hours; the run can go on later.")
    max_tokens: int | None = Field(
        None, gt=0, description="Stop after so many candidate tokens; the run can go on later."
    )
    dry_run: bool = Field(False, description="Say what it would take, and stop.")

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


class EvalSettings(ModelSettings, TextSettings, WorkSettings):
    """`evoray eval`: held-out perplexity and KL, and scores of tasks, of a configuration or of the base model."""

    model: str | None = Field(None, description=f"{_MODEL} Default: the one of the run or store.")
    store: str | None = Field(
        None, description="The variants. Default: the store of the run; not needed for the base model."
    )
    configuration: str | None = Field(
        None, description="A file of `layer: level` lines, a best.json, or a run folder. Default: the base model."
    )
    # Wider than in the base class, which is safe where nothing is ever assigned.
    data: str | None = Field(  # type: ignore[assignment]
        None,
        description="Text: a file, a folder, `embedded`, wikitext2, c4 or fineweb-edu (cut as in the EvoPress paper), "
        "or NAME[:config][:split][:column] of the hub. Required without --tasks.",
    )
    eval_tokens: int | None = Field(
        None, ge=64, description="Most tokens to judge on. Default: all; 524288 of fineweb-edu."
    )
    role: Literal["all", "judge", "search", "hessian"] = Field(
        "all",
        description="Which documents: all (of wikitext2, c4 and fineweb-edu what papers judge on), "
        "or one share of the split.",
    )
    tasks: Names = Field(
        (),
        description="Tasks of lm-eval, such as arc_easy,hellaswag; they run in this process, on one device. "
        "Needs pip install 'evoray[tasks]'. Default: none.",
    )
    task_path: str | None = Field(None, description="Folder with task files (.yaml) of your own.")
    num_fewshot: int | None = Field(
        None, ge=0, description="Solved examples before each question. Default: the task's own number."
    )
    task_limit: int | None = Field(None, ge=1, description="Most questions of each task. Default: all.")
    batch_size: int | None = Field(None, ge=1, description="Requests of tasks in a forward pass. Default: 8.")
    seed: int = Field(0, ge=0, description="Orders the documents.")

    @model_validator(mode="after")
    def _something_to_judge_on(self) -> "EvalSettings":
        if self.data is None and not self.tasks:
            raise ValueError("--data is missing; give text to judge on, or --tasks")
        for name in ("task_path", "num_fewshot", "task_limit", "batch_size"):
            if not self.tasks and getattr(self, name) is not None:
                raise ValueError(f"{flag(name)} is for tasks; give --tasks, or leave it out")
        if self.data is None:
            for name in ("address", "workers"):
                if getattr(self, name):
                    raise ValueError(
                        f"{flag(name)} {getattr(self, name)} is for text, and tasks run in this process; "
                        "leave it out, or give --data, too"
                    )
        return self


class ExportSettings(Settings):
    """`evoray export`: a checkpoint of a configuration, or the text files that other programs read."""

    format: Literal["hf", "evopress"] = Field(
        "hf",
        description="hf: dequantized weights that transformers loads as they are; evopress: the texts that EvoPress's "
        "programs read, levels and dropped sublayers.",
    )
    model: str | None = Field(None, description="Model. Default: the one of the run or store.")
    revision: str | None = Field(None, description="Branch, tag or commit of the model on the hub.")
    trust_remote_code: bool = Field(False, description="Let the checkpoint's own Python run.")
    allow_partial: bool = Field(False, description="Accept models with less than 90% of their weights in reach.")
    store: str | None = Field(None, description="The variants. Default: the store of the run.")
    configuration: str = Field(description="A file of `layer: level` lines, a best.json, or a run folder.")
    out: str = Field(description="Folder of what is written; must not hold another one.")


_PAPER = {"offspring": 128, "survivors": (16, 4, 1), "tokens": (2048, 16384, 131072), "switches": 3}

PRESETS: dict[Preset, dict[str, dict[str, Any]]] = {
    # Section 4 and the appendix of the paper, by what the budget is: untied layers, switches of equal steps, sequences
    # as long as the model reads up to 8192 (`run/ground.py`).
    Preset.evopress: {
        "target_bits": {**_PAPER, "generations": 150, "tie": "none", "mutation": "equal-steps"},
        "target_sparsity": {
            **_PAPER,
            "generations": 400,
            "offspring": 64,
            "survivors": (8, 2, 1),
            "tokens": (2048, 16384, 65536),
        },
        "drop_blocks": {
            **_PAPER,
            "offspring": 32,
            "survivors": (2, 1),
            "tokens": (2048, 32768),
            "initial_candidates": 64,
            "initial_tokens": 2048,
        },
    }
}


def _preset(preset: Preset, given: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's values for the budget that is given; of two the one of the levels decides."""
    values = PRESETS[preset]
    return next((values[budget] for budget in values if given.get(budget) is not None), {})


_S = TypeVar("_S", bound=Settings)


def flag(name: str) -> str:
    """A field's flag on the command line."""
    return "--" + name.replace("_", "-")


def load_settings(kind: type[_S], given: Mapping[str, Any], file: str | Path | None = None) -> _S:
    """Settings from flags over a YAML file over a preset over defaults.

    Args:
        kind: the class of settings.
        given: flags; None means not given.
        file: a YAML file with the same names, dashes or underscores.

    Raises:
        UserError: an unknown key, a missing or wrong value; one line for all of them.
    """
    named = {key: value for key, value in given.items() if value is not None}
    merged = (read_yaml(file) if file is not None else {}) | named
    preset = merged.get("preset")
    if "preset" in kind.model_fields and preset in list(Preset):
        merged = _preset(Preset(preset), merged) | merged
    try:
        return kind(**merged)
    except ValidationError as error:
        lines = (_line(kind, entry, named, file) for entry in error.errors(include_url=False))
        raise UserError("; ".join(dict.fromkeys(lines))) from None


def _line(kind: type[Settings], entry: Any, named: Mapping[str, Any], file: str | Path | None) -> str:
    name = str(entry["loc"][0]) if entry["loc"] else ""
    where = f" in {file}" if file is not None and name and name not in named else ""
    if entry["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, kind.model_fields, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(kind.model_fields))}"
        return f"unknown key {name!r}{where}; {remedy}"
    if entry["type"] == "missing":
        return f"{flag(name)} is missing"
    message = entry["msg"].removeprefix("Value error, ").removeprefix("Input ").partition(", unable to parse")[0]
    message = message.replace("a valid tuple", "a list, like 16,4,1")
    return f"{flag(name)} {entry['input']!r}{where}: {message[:1].lower()}{message[1:]}" if name else message


class _StrictLoader(yaml.SafeLoader):
    """Refuses a mapping that names a key twice, where YAML would keep the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [str(self.construct_object(key, deep=True)).replace("-", "_") for key, _ in node.value]
        if len(twice := [key for key in keys if keys.count(key) > 1]):
            raise yaml.YAMLError(f"{twice[0]} is named twice; keep one of the lines")
        return super().construct_mapping(node, deep)


def read_yaml(file: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, with underscores in its keys.

    Raises:
        UserError: missing, unreadable, or no mapping.
    """
    try:
        # A loader of its own, but one that constructs nothing beyond plain values.
        found: Any = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=_StrictLoader)
    except FileNotFoundError:
        raise UserError(f"no settings file at {file}; give a YAML file of `key: value` lines") from None
    except UnicodeDecodeError:
        raise UserError(f"settings file {file} is no text; give a YAML file of `key: value` lines") from None
    except OSError as error:
        raise UserError(f"settings file {file} can't be read: {error.strerror}; give another") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"settings file {file} is no YAML that can be read: {' '.join(str(error).split())}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"settings file {file} must hold `key: value` lines, it holds a {type(found).__name__}")
    return {str(key).replace("-", "_"): value for key, value in found.items()}
