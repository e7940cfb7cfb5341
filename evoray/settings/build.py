"""Settings of `evoray build`.

Holds: `BuildSettings`.
"""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from evoray.settings.fields import MODEL, RECIPE, Level, Levels, ModelSettings, flag
from evoray.settings.workers import Workers

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

    recipe_part: ClassVar[Literal["build", "search"] | None] = "build"

    recipe: str | None = Field(None, description=RECIPE)
    model: str = Field(description=MODEL)
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
        None,
        description="Hessian text: a file, a folder, `embedded`, wikitext2, c4, fineweb-edu, or "
        "NAME[:config][:split][:column] of the hub.",
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
    workers: Workers = Field(
        0,
        description="Workers: auto (one per GPU of the cluster, or one per core), a number, or MIN..MAX, which begins "
        "with MIN and lets more join. 0: this process, without Ray. The store is the same with any.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="Threads of torch in each worker; on CPUs part of a store's bits. Default: those that the store "
        "was begun with; else all cores, or 1 with --workers.",
    )
    address: str | None = Field(None, description="Address of a running Ray cluster. Default: a local one.")
    wait: float = Field(600, ge=0, description="Seconds to wait for a worker to be placed; loading is not counted.")
    hung_after: float = Field(
        7200,
        gt=0,
        description="Seconds after which a worker is restarted that still loads its model, or is still at one piece of "
        "work: a shard of the text through a block, or layers with one input.",
    )
    seed: int = Field(0, ge=0, description="Orders the documents.")
    dry_run: bool = Field(False, description="Say what it would take, and stop.")

    @model_validator(mode="after")
    def _fits_the_kind(self) -> "BuildSettings":
        if self.address is not None and self.workers == 0:
            raise ValueError("--address needs workers on that cluster: give --workers auto or a number")
        if self.from_evopress is not None:
            self._refuse_beside("--from-evopress", self._given(_MAKING), "the folder decides them")
            self._refuse_beside("--from-evopress", self._given({"workers"}), "nothing is computed")
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
