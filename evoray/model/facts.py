"""What can be known of a checkpoint without reading its weights: all that a driver needs.

Holds:
- `LayerShape`: name, block and shape of one compressible matrix.
- `Facts`: configuration, dtype, shapes, sizes and the digest of the weights.
- `model_folder`: the folder that a model was given as.
- `checkpoint_facts`: finds them, from a model on the meta device and the heads of the weight files.
- `weights_digest`: the identity of a checkpoint's weights, from sampled pages.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig

from evoray.embedded import EMBEDDED
from evoray.errors import UserError
from evoray.model.checkpoint import Need, checkpoint_dtype, read_header, resolve_checkpoint, weight_files
from evoray.model.droppable import Droppable, find_droppable
from evoray.model.load import load_config, skeleton_of
from evoray.model.structure import check_reach, find_structure

# 64 pages a file: another training run differs nearly everywhere, so a few would do; 256 KiB a file cost nothing.
_PAGES = 64
_PAGE_BYTES = 4096
# Names under which configurations keep the longest sequence, beside the usual one.
_POSITION_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


@dataclass(frozen=True)
class LayerShape:
    """Name, block and shape of one compressible matrix.

    Attributes:
        name: Module path.
        block: Index of its block.
        out_features: Rows as [out, in].
        in_features: Columns as [out, in].
        dense_bytes: Bytes of the weight in the checkpoint's dtype.
        transposed: The module keeps it as [in, out] (transformers' `Conv1D`), and is no `nn.Linear`.
    """

    name: str
    block: int
    out_features: int
    in_features: int
    dense_bytes: int
    transposed: bool


@dataclass(frozen=True)
class Facts:
    """What can be known of a checkpoint without reading its weights.

    Attributes:
        model: The model as it was named.
        revision: The commit of the hub it was resolved to; None for a folder.
        folder: Where its files are on this machine.
        config: transformers' configuration.
        model_class: Name of the class that transformers builds from it.
        dtype: dtype that most of its weights are stored in ("float16").
        tensors: Shape of every tensor the model keeps, shared ones once, by the name in the model.
        layers: The compressible matrices, in order of blocks, then of definition.
        droppable: Sublayers in order of the blocks, then all blocks. Bytes count in the checkpoint's dtype.
        n_blocks: Number of blocks.
        parameter_bytes: Bytes of all tensors in the checkpoint's dtype.
        weights_digest: Identity of the weights (sha256, see `weights_digest`).
        max_position: Longest sequence in tokens that the configuration names, or None.
        notes: Lines worth showing (weights out of reach that were allowed).
    """

    model: str
    revision: str | None
    folder: Path
    config: PretrainedConfig
    model_class: str
    dtype: str
    tensors: dict[str, tuple[int, ...]]
    layers: tuple[LayerShape, ...]
    droppable: tuple[Droppable, ...]
    n_blocks: int
    parameter_bytes: int
    weights_digest: str
    max_position: int | None
    notes: tuple[str, ...]

    @property
    def dense_bytes(self) -> int:
        """Bytes of all tensors that are no layer (embeddings, head unless tied, norms, biases)."""
        return self.parameter_bytes - sum(layer.dense_bytes for layer in self.layers)


def model_folder(model: str) -> Path | None:
    """The absolute path of a model that is given as a folder; None for a model id and the embedded model."""
    path = Path(model).expanduser()
    return path.absolute() if model != EMBEDDED and model.strip() and path.exists() else None


def checkpoint_facts(
    model: str, revision: str | None = None, trust_remote_code: bool = False, *, allow_partial: bool = False
) -> Facts:
    """Find out about a checkpoint without reading its weights.

    Args:
        model: A folder, a model id, or the name of the embedded model.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Let the checkpoint's own Python run.
        allow_partial: Accept a model less than 90% of whose blocks' weights are in layers.

    Raises:
        UserError: The model is missing or unreadable, quantized already, or can't be handled.
    """
    folder = resolve_checkpoint(model, revision, Need.weights)
    config = load_config(model, revision, trust_remote_code)
    skeleton = skeleton_of(model, config, trust_remote_code)
    structure = find_structure(skeleton)
    note = check_reach(skeleton, structure, allow_partial)
    dtype = checkpoint_dtype(folder, config)

    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in skeleton.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # a tied head is the embedding again
            seen.add(id(tensor))
            tensors[name] = tensor
    layers = tuple(
        LayerShape(
            name,
            ref.block,
            ref.out_features,
            ref.in_features,
            ref.out_features * ref.in_features * dtype.itemsize,
            ref.transposed,
        )
        for name, ref in structure.layers.items()
    )
    return Facts(
        model=model,
        # A folder may be named like a commit: a snapshot of the hub's cache, given as a path.
        revision=folder.name if model_folder(model) is None and re.fullmatch(r"[0-9a-f]{40}", folder.name) else None,
        folder=folder,
        config=config,
        model_class=type(skeleton).__name__,
        dtype=str(dtype).removeprefix("torch."),
        tensors={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        layers=layers,
        droppable=find_droppable(skeleton, structure, dtype),
        n_blocks=len(structure.blocks),
        parameter_bytes=sum(
            tensor.numel() * (dtype.itemsize if tensor.is_floating_point() else tensor.element_size())
            for tensor in tensors.values()
        ),
        weights_digest=weights_digest(folder),
        max_position=_max_position(config),
        notes=(note,) if note else (),
    )


def weights_digest(folder: Path) -> str:
    """The identity of a checkpoint's weights, cheap enough for any size.

    sha256 over, per weight file in order of names: name, size, the safetensors header where it has one, and 64 pages
    of 4 KiB evenly spaced over the rest, the first and the last included (all of a small file).

    Args:
        folder: A checkpoint's folder.

    Returns:
        64 hexadecimal digits.

    Raises:
        UserError: There are no weight files, or they are unreadable.
    """
    names = weight_files(folder)
    if not names:
        raise UserError(f"model folder {folder}: no weights in it; give a folder saved by save_pretrained")
    digest = hashlib.sha256(b"evoray weights 1\n")
    for name in names:
        path = folder / name
        header = read_header(path).raw if name.endswith(".safetensors") else b""
        try:
            size = path.stat().st_size
            digest.update(f"{name}\n{size}\n{len(header)}\n".encode())
            digest.update(header)
            with path.open("rb") as file:
                for offset in _page_offsets(len(header), size):
                    file.seek(offset)
                    digest.update(file.read(_PAGE_BYTES))
        except OSError as error:
            raise UserError(f"weight file {path} can't be read ({error.strerror}); check its permissions") from None
    return digest.hexdigest()


def _page_offsets(start: int, size: int) -> list[int]:
    span = size - start
    if span <= _PAGES * _PAGE_BYTES:
        return list(range(start, size, _PAGE_BYTES))
    return [start + index * (span - _PAGE_BYTES) // (_PAGES - 1) for index in range(_PAGES)]


def _max_position(config: PretrainedConfig) -> int | None:
    text = config.get_text_config()
    for name in _POSITION_NAMES:
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
