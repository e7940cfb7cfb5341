"""Takes a folder of variants that EvoPress made into a store: `EvopressFolder`, `read_folder`, `folder_header`,
`import_folder`.

Such a folder holds `<layer>/<level>.pth`, each the dense weight of a layer at a level; for sparsity `metadata.pth` with
target, size and number of steps; and maybe `errors.pth`, layer errors by group, layer and rising level. Files are
loaded as weights only, so none of them can run code.

Shape letters: O out, I in.
"""

from __future__ import annotations

import collections
import hashlib
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evoray.compress.hessian import relative_errors
from evoray.compress.outliers import outlier_ratios
from evoray.compress.plan import check_group_size
from evoray.compress.quantization import LEAST_BITS, MOST_BITS, level_cost
from evoray.compress.quantization import record_bytes as quantized_record_bytes
from evoray.compress.recipe import PER_ROW
from evoray.compress.zeros import Steps
from evoray.errors import EvorayError, UserError
from evoray.formats.costs import BITMASK, masked_cost
from evoray.formats.dense import DenseWeight
from evoray.formats.packed import SCALE_DTYPES, scale_name
from evoray.model import ModelAdapter
from evoray.store import LayerEntry, LevelCost, Manifest, StoreHeader, StoreWriter
from evoray.store.writer import NAMING

if TYPE_CHECKING:
    from evoray.model import Facts

METHOD = "evopress"
"""`StoreHeader.method` of these stores."""

NO_CODES = (
    "a store taken from EvoPress has no codes: exports of packed codes (compressed-tensors, gptq) will refuse it; "
    "--format hf works"
)

_METADATA, _ERRORS = "metadata.pth", "errors.pth"
_MOST_LEVELS = 127
"""The rows that candidates travel in hold a level's index in one signed byte."""


@dataclass(frozen=True)
class EvopressFolder:
    """A folder that was looked through: names, shapes and dtypes fit, and no weight was read.

    Attributes:
        path: the folder.
        kind: "quantization" or "sparsity".
        labels: all levels, smallest cost first.
        files: layer -> level -> file, in the order of the model and of `labels`.
        dtype: of all weights.
        steps: what `metadata.pth` says; None without it.
        errors: layer -> level -> layer error, as `errors.pth` says; empty without it.
        digest: sha256 of names and sizes of the files, to know the folder by.
        disk_bytes: of all weights.
    """

    path: Path
    kind: str
    labels: tuple[str, ...]
    files: dict[str, dict[str, Path]]
    dtype: str
    steps: Steps | None
    errors: dict[str, dict[str, float]]
    digest: str
    disk_bytes: int


def read_folder(path: str | Path, kind: str, shapes: Mapping[str, tuple[int, int]]) -> EvopressFolder:
    """Looks through a folder, and refuses what does not fit the model.

    Args:
        path: the folder.
        kind: "quantization" or "sparsity".
        shapes: layer -> output rows, input columns, in the order of the model.

    Raises:
        UserError: no such folder, layers that the model lacks or that are missing, levels that are none or missing,
            wrong shapes or dtypes, files that are no weights.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"--from-evopress {path}: there is no such folder; give one with LAYER/LEVEL.pth files")
    found = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    if unknown := sorted(found - set(shapes)):
        raise UserError(
            f"--from-evopress {path}: the model has no layer {unknown[0]}{_more(unknown)}; give the model that the "
            "folder was made from"
        )
    by_layer = {layer: _level_files(folder / layer) for layer in shapes if layer in found}
    if missing := [layer for layer in shapes if not by_layer.get(layer)]:
        raise UserError(
            f"--from-evopress {path}: {len(missing)} of the model's {len(shapes)} layers are missing: "
            f"{', '.join(missing)}; make them by EvoPress first"
        )
    levels = sorted({level for files in by_layer.values() for level in files}, reverse=kind == "sparsity")
    if len(levels) > _MOST_LEVELS:
        raise UserError(f"--from-evopress {path}: {len(levels)} levels; a store holds at most {_MOST_LEVELS}")
    if kind == "quantization":
        _check_bits(path, levels, by_layer)
    files = {
        layer: {str(level): found[level] for level in levels if level in found} for layer, found in by_layer.items()
    }
    dtype, disk_bytes = _look(files, shapes)
    sizes = [f"{layer}/{level}: {file.stat().st_size}" for layer, of in files.items() for level, file in of.items()]
    return EvopressFolder(
        path=folder,
        kind=kind,
        labels=tuple(map(str, levels)),
        files=files,
        dtype=dtype,
        steps=_steps(folder) if kind == "sparsity" else None,
        errors=_errors(folder, files),
        digest=hashlib.sha256("\n".join(sizes).encode()).hexdigest(),
        disk_bytes=disk_bytes,
    )


def _level_files(folder: Path) -> dict[int, Path]:
    """Level -> file of one layer."""
    files: dict[int, Path] = {}
    for file in sorted(folder.glob("*.pth")):
        try:
            level = Fraction(file.name.removesuffix(".pth"))
        except (ValueError, ZeroDivisionError):
            level = Fraction(1, 2)
        if level.denominator != 1:
            raise UserError(f"{file}: its name is no whole level, such as 3.pth; rename it or take it away")
        if int(level) in files:
            raise UserError(f"{file}: level {level} is there twice, in {files[int(level)].name} too; take one away")
        files[int(level)] = file
    return files


def _check_bits(path: str | Path, levels: list[int], by_layer: Mapping[str, Mapping[int, Path]]) -> None:
    if wrong := [level for level in levels if not LEAST_BITS <= level <= MOST_BITS]:
        raise UserError(
            f"--from-evopress {path}: level {wrong[0]} is no number of bits from {LEAST_BITS} to {MOST_BITS}; "
            "is it --kind sparsity?"
        )
    for layer, found in by_layer.items():
        if lacking := [level for level in levels if level not in found]:
            raise UserError(
                f"--from-evopress {path}: layer {layer} lacks level {lacking[0]}, which others have; make it by "
                "EvoPress, or take that level away from all"
            )


def _look(files: Mapping[str, Mapping[str, Path]], shapes: Mapping[str, tuple[int, int]]) -> tuple[str, int]:
    """The dtype of all weights and their bytes."""
    dtype: torch.dtype | None = None
    size = 0
    for layer, by_level in files.items():
        for file in by_level.values():
            weight_OI = _load_weight(file)
            if tuple(weight_OI.shape) != shapes[layer]:
                raise UserError(
                    f"{file} has the shape {list(weight_OI.shape)}, the layer {list(shapes[layer])}; give the model "
                    "that it was made from"
                )
            dtype = dtype or weight_OI.dtype
            if weight_OI.dtype is not dtype or dtype not in SCALE_DTYPES.values():
                raise UserError(
                    f"{file} has the dtype {weight_OI.dtype}; all weights must have one of {', '.join(SCALE_DTYPES)}, "
                    "and all the same"
                )
            size += weight_OI.nbytes
    assert dtype is not None
    return scale_name(dtype), size


def _dictionary(factory: Any = None) -> collections.OrderedDict[Any, Any]:
    return collections.OrderedDict()


def _load(file: Path) -> Any:
    # `errors.pth` holds nested defaultdicts, which torch does not fill: they are read as dictionaries of another kind.
    # Nothing else beyond torch's own list of harmless types is let in.
    with torch.serialization.safe_globals([(_dictionary, "collections.defaultdict"), dict, list]):
        try:
            try:
                return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:
                # Files in torch's old format can't be mapped.
                return torch.load(file, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError, LookupError) as error:
            reason = (str(error).splitlines() or ["?"])[0][:80]
            raise UserError(f"{file} is no file of weights ({reason}); make it by EvoPress again") from None


def _load_weight(file: Path) -> Tensor:
    weight_OI = _load(file)
    if not isinstance(weight_OI, Tensor):
        raise UserError(f"{file} holds no weight but a {type(weight_OI).__name__}; make it by EvoPress again")
    return weight_OI.detach()


def _steps(folder: Path) -> Steps | None:
    """What `metadata.pth` says."""
    file = folder / _METADATA
    if not file.is_file():
        return None
    found = _load(file)
    try:
        return Steps(float(found["sparsity"]), int(found["num_levels"]), int(found["weights_diff"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{file} does not say sparsity, weights_diff and num_levels, so it is of no folder of steps; give one that "
            "EvoPress's prune.py made"
        ) from None


def _errors(folder: Path, files: Mapping[str, Mapping[str, Path]]) -> dict[str, dict[str, float]]:
    """What `errors.pth` says: group -> layer -> errors of its levels, rising."""
    file = folder / _ERRORS
    if not file.is_file():
        return {}
    remedy = "make it by EvoPress's compute_layer_errors.py again, or delete it"
    try:
        found = {layer: list(errors) for group in _load(file).values() for layer, errors in group.items()}
    except (AttributeError, TypeError):
        raise UserError(f"{file} holds no layer errors by group and layer; {remedy}") from None
    named: dict[str, dict[str, float]] = {}
    for layer, by_level in files.items():
        errors = found.get(layer, [])
        if len(errors) != len(by_level) or not all(
            isinstance(error, int | float) and 0 <= error < math.inf for error in errors
        ):
            raise UserError(f"{file} has no error for each of the {len(by_level)} levels of {layer}; {remedy}")
        named[layer] = dict(zip(sorted(by_level, key=int), map(float, errors), strict=True))
    return named


def folder_header(
    facts: Facts,
    folder: EvopressFolder,
    *,
    group_size: int,
    symmetric: bool,
    cost_format: str,
    compute_dtype: str,
    device: str,
) -> StoreHeader:
    """How the store of a folder is made. Reads no weights.

    Args:
        facts: of the checkpoint.
        folder: as `read_folder` gives it.
        group_size: quantization: input columns per scale that bytes are counted with.
        symmetric: quantization: whether bytes are counted without zero points.
        cost_format: quantization: how bytes are counted.
        compute_dtype: dtype that the model is loaded in.
        device: kind of the device.

    Raises:
        UserError: the group size does not fit.
    """
    quantized = folder.kind == "quantization"
    if quantized:
        check_group_size({layer.name: layer.in_features for layer in facts.layers}, group_size)
    settings: dict[str, Any] = {"codes": False, "folder": folder.digest, "given_errors": bool(folder.errors)}
    settings |= folder.steps.settings() if folder.steps is not None else {}
    return StoreHeader(
        model=facts.model,
        revision=facts.revision,
        weights_digest=facts.weights_digest,
        dtype=facts.dtype,
        kind=folder.kind,
        method=METHOD,
        levels=folder.labels,
        group_size=(group_size or PER_ROW) if quantized else PER_ROW,
        symmetric=symmetric if quantized else True,
        scale_dtype=folder.dtype,
        cost_format=cost_format if quantized else BITMASK,
        dense_bytes=facts.dense_bytes,
        settings={**settings, "compute_dtype": compute_dtype, "device": device},
    )


def import_folder(
    adapter: ModelAdapter,
    writer: StoreWriter,
    folder: EvopressFolder,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> Manifest:
    """Takes all variants of a folder into a store and finishes it. Layers that the writer has already are left out.

    The layer error of a variant is that of `errors.pth`, or the relative squared error of the weight. A sparse variant
    keeps what is not zero; where `metadata.pth` tells how many weights a step keeps, and no more than that are not
    zero, it keeps so many.

    Args:
        adapter: the base model.
        writer: of the store, under the header that `folder_header` gives.
        folder: as `read_folder` gives it.
        progress: told at the start and after each layer: finished layers, all layers, name of the layer.

    Returns:
        The manifest of the finished store.

    Raises:
        EvorayError: weights that are not finite, or files that can't be written.
    """
    report = progress or (lambda done, total, name: None)
    report(len(writer.finished_layers()), len(adapter.layers), "start")
    for name, ref in adapter.layers.items():
        if name in writer.finished_layers():
            continue
        base_OI = adapter.weight_OI(name).to("cpu", torch.float32)
        given = folder.errors.get(name)
        costs: dict[str, LevelCost] = {}
        variants = []
        for level, file in folder.files[name].items():
            weight_OI = _load_weight(file)
            if not bool(weight_OI.isfinite().all()):
                raise EvorayError(f"{file} has weights that are not finite; make it by EvoPress again")
            error = given[level] if given else relative_errors(base_OI, [weight_OI.to(torch.float32)], None)[0]
            costs[level] = _cost(weight_OI, level, folder, writer.header)
            variants.append(DenseWeight(weight_OI).to_variant(name, level, error))
        entry = LayerEntry(
            name=name,
            block=ref.block,
            out_features=ref.out_features,
            in_features=ref.in_features,
            dense_bytes=base_OI.numel() * getattr(torch, writer.header.dtype).itemsize,
            record_bytes=quantized_record_bytes(writer.header) if folder.kind == "quantization" else 0,
            costs=costs,
            outliers=outlier_ratios(base_OI, None),
        )
        writer.write(entry, variants, name=False)
        writer.name_finished(after=NAMING)
        report(len(writer.finished_layers()), len(adapter.layers), name)
    return writer.finish(list(adapter.layers))


def _cost(weight_OI: Tensor, level: str, folder: EvopressFolder, header: StoreHeader) -> LevelCost:
    if folder.kind == "quantization":
        return level_cost(*weight_OI.shape, int(level), header)
    weights = weight_OI.numel()
    kept = int(weight_OI.count_nonzero())
    if folder.steps is not None:
        # A dense weight does not tell a kept zero from one that went.
        kept = max(kept, weights - folder.steps.zeros(weights).get(level, weights))
    return masked_cost(weights, kept, header.dtype)


def _more(items: list[str]) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
