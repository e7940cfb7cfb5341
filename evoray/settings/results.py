"""Settings of what is done with a result: `evoray eval` and `evoray export`.

Holds: `EvalSettings`, `ExportSettings`.
"""

from typing import Literal

from pydantic import Field, model_validator

from evoray.settings.fields import MODEL, ModelSettings, Names, Settings, TextSettings, WorkSettings, flag


class EvalSettings(ModelSettings, TextSettings, WorkSettings):
    """`evoray eval`: held-out perplexity and KL, and scores of tasks, of a configuration or of the base model."""

    model: str | None = Field(None, description=f"{MODEL} Default: the one of the run or store.")
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

    format: Literal["hf", "compressed-tensors", "gptq", "gguf", "evopress"] = Field(
        "hf",
        description="hf: dequantized weights that transformers loads as they are; compressed-tensors: packed codes for "
        "vLLM (needs pip install 'evoray[export]'); gptq: codes of 2, 3, 4 and 8 bits, for GPTQModel, vLLM and SGLang; "
        "gguf: types of layers and commands for llama.cpp, which quantizes anew; evopress: the texts that EvoPress's "
        "programs read, levels and dropped sublayers.",
    )
    depth: Literal["zeros", "removed", "no-op"] = Field(
        "zeros",
        description="How a checkpoint says what is dropped: zero weights, which every engine runs; whole blocks "
        "removed and the rest renumbered; or, of a llama, no_op entries of block_configs, for engines that read them.",
    )
    allow_dense: bool = Field(False, description="Keep layers dense that the format can't hold at their level.")
    model: str | None = Field(None, description="Model. Default: the one of the run or store.")
    revision: str | None = Field(None, description="Branch, tag or commit of the model on the hub.")
    trust_remote_code: bool = Field(False, description="Let the checkpoint's own Python run.")
    allow_partial: bool = Field(False, description="Accept models with less than 90% of their weights in reach.")
    store: str | None = Field(None, description="The variants. Default: the store of the run.")
    configuration: str = Field(description="A file of `layer: level` lines, a best.json, or a run folder.")
    out: str = Field(description="Folder or URI of what is written; must not hold another one.")
