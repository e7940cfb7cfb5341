"""What settings are made of: the strict ground of all, types of fields, and the groups that several verbs share.

Holds: `Settings`, `ModelSettings`, `TextSettings`, `WorkSettings`, `flag`, the enumerations and types of fields.
"""

import os
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from evoray.credentials import refuse_credentials
from evoray.errors import UserError
from evoray.settings.workers import Workers
from evoray.sizes import parse_size


def flag(name: str) -> str:
    """A field's flag on the command line."""
    return "--" + name.replace("_", "-")


def _bytes(value: Any) -> Any:
    try:
        return parse_size(value) if isinstance(value, str) else value
    except UserError as error:
        # The value stands before the message already.
        raise ValueError(str(error).removeprefix(f"{value!r} ").removeprefix("is ")) from None


def listed(value: Any) -> Any:
    """Lists are written `16,4,1` or `16 4 1` on a command line."""
    if isinstance(value, str):
        return [part for part in value.replace(",", " ").split() if part]
    if isinstance(value, list | tuple) and any(isinstance(part, bool) for part in value):
        # Python counts True as 1; in a settings file it is a slip.
        raise ValueError("a switch stands in it; give values")
    return [value] if isinstance(value, int | float) else value


def _levels(value: Any) -> Any:
    found = listed(value)
    return [str(level) for level in found] if isinstance(found, list | tuple) else found


MODEL = "Model: a folder, a model id, or `embedded`."
"""What `--model` takes."""

RECIPE = "Settings of a known experiment, by its name in `evoray recipes`; other flags win over it."
"""What `--recipe` takes."""

MOST = 1_000_000
"""Of anything that is counted one by one: more could not be held in memory."""

Bytes = Annotated[int, BeforeValidator(_bytes), Field(gt=0)]
Integers = Annotated[tuple[int, ...], BeforeValidator(listed)]
Levels = Annotated[tuple[str, ...], BeforeValidator(_levels)]
Level = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)]
Names = Annotated[tuple[str, ...], BeforeValidator(_levels)]


TOKENS_PER_PASS = 2048
VOCABULARY_CHUNK = 16384
WORK_BYTES = 2 << 30
VARIANT_BYTES = 4 << 30
TOP_K = 10
"""What a worker takes where nobody says otherwise and memory allows: tokens of a pass, rows of the head per product,
its two limits of memory, and the tokens that a KL over top tokens looks at (as in EvoPress)."""


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


class RacePolicy(StrEnum):
    """Who is measured how far. `fixed`: the paper's, on fresh draws. `halving`: paired and cumulative. `sequential`:
    paired tests after each look, and a child wins only on text that did not choose it."""

    fixed = "fixed"
    halving = "halving"
    sequential = "sequential"


class ProposalRule(StrEnum):
    """Where offspring come from. `mutation`: blind, as in the paper. `screened`: of several mutants the most promising.
    `learned`: the best choices by what all measurements say of each gene."""

    mutation = "mutation"
    screened = "screened"
    learned = "learned"


class Settings(BaseModel):
    """Common ground: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    recipe_part: ClassVar[Literal["build", "search"] | None] = None
    """The part of a recipe that holds such settings; None where `--recipe` is no flag."""

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        wanted = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and wanted not in (bool, bool | None):
            # Python counts True as 1; in a settings file it is a slip.
            raise ValueError("this is no switch; give a value")
        if isinstance(value, str):
            # Before any value stands in a message, a log or a run directory.
            refuse_credentials(value)
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

    data: str = Field(
        description="Text: a file, a folder, `embedded`, wikitext2, c4, fineweb-edu, or NAME[:config][:split][:column] "
        "of the hub."
    )
    sequence_length: int | None = Field(
        None, ge=8, description="Most tokens of a block. Default: 512, or what the model reads."
    )
    bos: Literal["auto", "none", "document", "block"] = Field(
        "auto", description="Where beginning-of-sequence tokens stand."
    )
    separator: str = Field("auto", description="What cuts a .txt file: auto, none, a line, or re:PATTERN.")


class WorkSettings(Settings):
    """Who does the work."""

    workers: Workers = Field(
        None,
        description="Workers: auto, a number, or MIN..MAX, which begins with MIN and lets more join. 0: this process, "
        "without Ray. Default: auto, one per GPU of the cluster, or one per core.",
    )
    threads_per_worker: int = Field(
        1, ge=1, le=4096, description="Threads of torch in each worker; part of a run's bits."
    )
    gpus_per_worker: int = Field(
        1,
        ge=1,
        le=64,
        description="GPUs of one node that each worker spreads the model's blocks over, where one is too small for it.",
    )
    address: str | None = Field(None, description="Address of a running Ray cluster. Default: a local one.")
    wait: float = Field(600, ge=0, description="Seconds to wait for a worker to be placed; loading is not counted.")
    hung_after: float = Field(
        600,
        gt=0,
        description="Seconds without an answer after which a worker is restarted, if it should have taken a twentieth.",
    )
    hung_at_start: float = Field(
        7200,
        gt=0,
        description="Seconds after which a worker is restarted before any speed is known: while it loads its model, "
        "and at the first work of a kind. Default: 7200, time for a large download.",
    )
    allow_mixed: bool = Field(False, description="Let workers of unlike devices in, and give up bit-equal losses.")
    tokens_per_pass: int | None = Field(
        None,
        ge=8,
        description="Most tokens of a forward pass, padding included. Default: 2048, or what --work-memory allows.",
    )
    vocabulary_chunk: int | None = Field(
        None,
        ge=256,
        description="Rows of the output head per matrix product. Default: 16384, or what --work-memory allows.",
    )
    work_memory: Bytes = Field(
        WORK_BYTES,
        description="Memory for all beside base model and ready variants, per worker: a pass, states at block "
        "boundaries, weights in the making. Default: 2GiB.",
    )
    variant_memory: Bytes = Field(
        VARIANT_BYTES, description="Memory for ready variants on the device, per worker. Default: 4GiB."
    )
    cache_disk: Bytes | None = Field(
        None,
        description="Disk of each node for files of a remote store; the least recently used make room. "
        "Default: half of what is free.",
    )

    @model_validator(mode="after")
    def _gpus_to_spread_over(self) -> Self:
        # The device is the model's settings'.
        if self.gpus_per_worker > 1 and getattr(self, "device", None) is Device.cpu:
            raise ValueError(
                f"--gpus-per-worker {self.gpus_per_worker} spreads a model over GPUs, and --device cpu uses none; "
                "leave out one of them"
            )
        return self
