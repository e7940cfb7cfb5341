"""The embedded model: a small byte-level Llama, its tokenizer, and the text it was trained and is judged on.

    model_path      the packaged model's folder, for `AutoModelForCausalLM` and `AutoTokenizer`
    EMBEDDED        the name that stands for this model where a model id or a folder is asked for
    evoray.embedded.text    the documents for training, search and judging (every Python carries them)
    evoray.embedded.train   the script that made the model (`python -m evoray.embedded.train --out DIR`)

Tests and the demo use it, so neither needs a network. Nothing here imports torch before `train` is asked for.
"""

from pathlib import Path

__all__ = ["EMBEDDED", "model_path"]

EMBEDDED = "embedded"
"""Stands for the packaged model wherever a model is named (`--model embedded`)."""


def model_path() -> str:
    """The folder of the packaged model (configuration, fp16 weights, tokenizer).

    The files are package data: a wheel installs them unpacked beside this module, so the folder is a real one
    that `from_pretrained` can open.

    Returns:
        The absolute path of the folder.
    """
    return str(Path(__file__).resolve().parent / "model")
