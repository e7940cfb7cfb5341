"""Where a model's files are: a folder, the embedded model, or a snapshot of the hub in the local cache.

Holds:
- `Need`: what of a checkpoint is asked for.
- `resolve_checkpoint`: the folder of a model, downloaded first where needed.
- `weight_files`: the weight files that transformers would read from a folder.
- `SafetensorsHeader`, `read_header`: names, dtypes and shapes in a safetensors file, without its data.
- `checkpoint_dtype`: the dtype that most of the weights are stored in.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import PretrainedConfig

from evoray.errors import UserError

_TEXT_FILES = ("*.json", "*.py", "*.jinja")
_TOKENIZER_FILES = ("*.txt", "*.model", "*.tiktoken")
# As transformers looks for them: safetensors before pickles, one file before shards.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZER_SIGNS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
# A header lists a few hundred bytes per tensor; more than this is no header.
_LARGEST_HEADER = 100 << 20
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Need(StrEnum):
    """What of a checkpoint is asked for; decides what is downloaded and what must be there."""

    config = "config"
    tokenizer = "tokenizer"
    weights = "weights"


def resolve_checkpoint(model: str, revision: str | None = None, need: Need = Need.weights) -> Path:
    """Find the folder with a model's files.

    A snapshot that is in the local cache already is taken without asking the hub for a newer one, so all nodes that
    share a cache use the same files; name a commit as revision to be sure across caches.

    Args:
        model: A folder, a model id of the hub, or the name of the embedded model.
        revision: Branch, tag or commit on the hub; only for model ids.
        need: What the caller is going to read.

    Returns:
        The folder. For a model id it is named by the commit.

    Raises:
        UserError: There is no such model, it can't be read or downloaded, or lacks what is needed.
    """
    from evoray.embedded import EMBEDDED, model_path

    path = Path(model_path() if model == EMBEDDED else model).expanduser()
    if model.strip() and path.exists():
        if revision is not None:
            raise UserError(f"revision {revision}: model {model} is a folder and has no revisions; leave it out")
        return _checked_folder(model, path, need)
    if model.startswith(("/", "./", "../", "~")) or model.count("/") > 1 or not model.strip():
        raise UserError(f"model {model!r}: there is no such folder; give a folder with config.json or a model id")
    try:
        folder = Path(_snapshot(model, revision, need, local=True))
        if not _lacking(folder, need):
            return folder
    except (LocalEntryNotFoundError, FileNotFoundError):
        pass
    except HFValidationError:
        raise UserError(f"model {model!r}: neither a folder nor a model id; give one of them") from None
    folder = Path(_download(model, revision, need))
    return _checked_folder(model, folder, need)


def weight_files(folder: Path) -> tuple[str, ...]:
    """Names of the weight files that transformers reads from a folder, sorted; empty where there are none.

    Raises:
        UserError: An index names files that are not there, or can't be read.
    """
    for name in _WEIGHTS:
        path = folder / name
        if not path.is_file():
            continue
        if not name.endswith(".index.json"):
            return (name,)
        try:
            names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise UserError(f"model folder {folder}: {name} is unreadable; download the checkpoint again") from None
        missing = [shard for shard in names if not (folder / shard).is_file()]
        if missing:
            raise UserError(
                f"model folder {folder}: {len(missing)} of {len(names)} weight files are missing, {missing[0]} first; "
                "download the checkpoint again"
            )
        return tuple(names)
    return ()


@dataclass(frozen=True)
class SafetensorsHeader:
    """What the head of a safetensors file says.

    Attributes:
        raw: The header's bytes, with the eight bytes of its length.
        tensors: (dtype as safetensors writes it, shape) of each tensor, by name.
    """

    raw: bytes
    tensors: dict[str, tuple[str, tuple[int, ...]]]


def read_header(path: Path) -> SafetensorsHeader:
    """Read the header of a safetensors file, none of its data.

    Raises:
        UserError: The file is unreadable or no safetensors file.
    """
    try:
        with path.open("rb") as file:
            length_bytes = file.read(8)
            length = int.from_bytes(length_bytes, "little")
            if len(length_bytes) < 8 or length > min(_LARGEST_HEADER, path.stat().st_size):
                raise ValueError("no header")
            header = file.read(length)
        entries = json.loads(header)
        # Offsets count from the end of the header; a download that broke off is shorter than they say.
        end = max((int(entry["data_offsets"][1]) for key, entry in entries.items() if key != "__metadata__"), default=0)
        if 8 + length + end > path.stat().st_size:
            raise ValueError("cut off")
        tensors = {
            name: (str(entry["dtype"]), tuple(int(size) for size in entry["shape"]))
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise UserError(
            f"weight file {path} is no readable safetensors file, or cut off; download the checkpoint again"
        ) from None
    return SafetensorsHeader(length_bytes + header, tensors)


def checkpoint_dtype(folder: Path, config: PretrainedConfig) -> torch.dtype:
    """The dtype that most of a checkpoint's weights are stored in.

    From the heads of safetensors files; for pickles, what the configuration says, else float32.
    """
    counts: Counter[torch.dtype] = Counter()
    for name in weight_files(folder):
        if name.endswith(".safetensors"):
            for kind, shape in read_header(folder / name).tensors.values():
                if kind in _DTYPES:
                    counts[_DTYPES[kind]] += torch.Size(shape).numel()
    if counts:
        return counts.most_common(1)[0][0]
    named: Any = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    named = getattr(torch, named, None) if isinstance(named, str) else named
    return named if isinstance(named, torch.dtype) else torch.float32


def _checked_folder(model: str, folder: Path, need: Need) -> Path:
    if not folder.is_dir():
        raise UserError(f"model {model} is a file; give the folder with config.json in it, or a model id")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"model {model}: the folder can't be read; check its permissions")
    lacking = _lacking(folder, need)
    if lacking:
        raise UserError(f"model {model}: no {lacking} in {folder}; give a folder of save_pretrained, or a model id")
    return folder


def _lacking(folder: Path, need: Need) -> str | None:
    if need is Need.tokenizer:
        found = any((folder / name).is_file() for name in _TOKENIZER_SIGNS) or any(folder.glob("*.tiktoken"))
        # Tokenizers written in Python bring files of any name.
        return None if found or (folder / "tokenizer_config.json").is_file() else "tokenizer"
    if not (folder / "config.json").is_file():
        return "config.json"
    if need is Need.weights and not weight_files(folder):
        return "weights (model.safetensors or pytorch_model.bin)"
    return None


def _snapshot(model: str, revision: str | None, need: Need, *, local: bool = False, pickles: bool = False) -> str:
    patterns = list(_TEXT_FILES) + list(_TOKENIZER_FILES)
    if need is Need.weights:
        patterns.append("pytorch_model*.bin" if pickles else "model*.safetensors")
    return snapshot_download(model, revision=revision, allow_patterns=patterns, local_files_only=local)


def _download(model: str, revision: str | None, need: Need) -> str:
    named = f"model {model}" + (f" at revision {revision}" if revision else "")
    try:
        folder = _snapshot(model, revision, need)
        if need is Need.weights and not weight_files(Path(folder)):
            folder = _snapshot(model, revision, need, pickles=True)
        return folder
    except GatedRepoError:
        raise UserError(f"{named} is gated; ask for access on the hub and set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise UserError(f"{named}: the hub has the model but not this revision; name a branch, tag or commit") from None
    except RepositoryNotFoundError:
        raise UserError(f"{named}: no such folder, nor such a model on the hub; check the name or HF_TOKEN") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise UserError(
            f"{named}: no such folder, not in the local cache, and the hub can't be reached ({reason}); "
            "check the name and the network, or give a folder"
        ) from None
