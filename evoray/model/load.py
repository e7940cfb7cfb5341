"""Loading a model, its configuration and its tokenizer.

Holds:
- `load_model`: the base model, in evaluation mode, straight to its device.
- `load_config`, `load_tokenizer`.
- `settle_numerics`: the process's switches that decide bits.
- `pick_device`: "auto" made definite, with a check that the device is there. `pick_devices`: the same for several.
- `skeleton_of`: a model without weights.
- `refusal`: transformers' complaint about a model as one line.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from evoray.errors import EvorayError, UserError
from evoray.model.checkpoint import Need, checkpoint_dtype, resolve_checkpoint
from evoray.model.quiet import quiet_transformers
from evoray.model.slots import DEFAULT_SLOTS, LoadSlots
from evoray.model.spread import device_map, free_output

AUTO = "auto"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_model(
    model: str,
    *,
    revision: str | None = None,
    dtype: str = AUTO,
    device: str = "cpu",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    load_slots: int = DEFAULT_SLOTS,
    gpus: int = 1,
) -> PreTrainedModel:
    """Load a base model for evaluation.

    Settles the process's numerics first (`settle_numerics`). On a CUDA device the weights go straight there, a file
    at a time, so no process ever holds the whole model in host memory.

    Args:
        model: A folder, a model id, or the name of the embedded model; anything `AutoModelForCausalLM` loads.
        revision: Branch, tag or commit on the hub.
        dtype: "float32", "float16", "bfloat16", or "auto": float32 on the CPU (where half precision is slow and
            coarse), the checkpoint's own dtype on CUDA.
        device: "cpu", "cuda", "cuda:N", or "auto" (CUDA where there is one).
        attn_implementation: transformers' name of the attention code; None for its own choice.
        trust_remote_code: Let the checkpoint's own Python run.
        load_slots: Models that may load at once on this node; others wait.
        gpus: CUDA devices that its blocks are spread over, the first ones of this process.

    Returns:
        The model in evaluation mode, without gradients.

    Raises:
        UserError: The model, dtype, device or attention implementation is not to be had.
        EvorayError: The device has too little memory.
    """
    places = pick_devices(device, gpus)
    place = places[0]
    if dtype != AUTO and dtype not in DTYPES:
        raise UserError(f"dtype {dtype}: not one of {', '.join([AUTO, *DTYPES])}; choose one of them")
    folder = resolve_checkpoint(model, revision, Need.weights)
    config = load_config(model, revision, trust_remote_code)
    if dtype == AUTO:
        kind = torch.float32 if place.type == "cpu" else checkpoint_dtype(folder, config)
    else:
        kind = DTYPES[dtype]
    settle_numerics()
    arguments: dict[str, Any] = {"dtype": kind, "trust_remote_code": trust_remote_code, "output_loading_info": True}
    if attn_implementation is not None:
        arguments["attn_implementation"] = attn_implementation
    if place.type != "cpu":
        arguments["device_map"] = {"": place}
    if gpus > 1:
        memory = [torch.cuda.get_device_properties(each).total_memory for each in places]
        skeleton = skeleton_of(model, config, trust_remote_code)
        arguments["device_map"] = {
            path: places[gpu] for path, gpu in device_map(skeleton, kind.itemsize, memory).items()
        }
    try:
        with LoadSlots(load_slots), quiet_transformers():
            answer: Any = AutoModelForCausalLM.from_pretrained(folder, **arguments)
    except torch.OutOfMemoryError:
        raise EvorayError(
            f"model {model}: {' and '.join(map(str, places))} has too little free memory for it in {kind}; "
            "choose another --dtype, free the device, take a larger one, or several by --gpus-per-worker"
        ) from None
    # Loaders raise their own kinds of exceptions (safetensors, pickle, remote code); all mean this checkpoint.
    except Exception as error:
        if attn_implementation is not None and "attention" in str(error).lower():
            raise refusal(model, error, f"it with attention {attn_implementation}", "--attn-implementation") from error
        raise refusal(model, error) from error
    loaded: PreTrainedModel
    loaded, info = answer
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"model {model}: its checkpoint lacks {len(missing)} of the weights that {type(loaded).__name__} needs, "
            f"{missing[0]} first; choose a complete causal language model"
        )
    if gpus > 1:
        free_output(loaded)
    loaded.eval()
    loaded.requires_grad_(False)
    return loaded


def skeleton_of(model: str, config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model of this configuration on the meta device: all its modules and shapes, and no weights.

    Args:
        model: As it was named.
        config: Its configuration.
        trust_remote_code: Let the checkpoint's own Python run.

    Raises:
        UserError: transformers can't build it.
    """
    try:
        # Copied: building a model writes into its configuration.
        with quiet_transformers(), torch.device("meta"):
            skeleton: PreTrainedModel = AutoModelForCausalLM.from_config(
                type(config).from_dict(config.to_dict()), trust_remote_code=trust_remote_code
            )
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        raise refusal(model, error) from error
    return skeleton


def load_config(model: str, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """Load a model's configuration.

    Raises:
        UserError: It is missing or unreadable, of a kind transformers doesn't know, or of a model that is quantized
            already.
    """
    folder = resolve_checkpoint(model, revision, Need.config)
    try:
        with quiet_transformers():
            config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise refusal(model, error) from error
    quantization = getattr(config, "quantization_config", None)
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else type(quantization).__name__
        raise UserError(f"model {model} is quantized already ({method}); choose the checkpoint it was made from")
    return config


def load_tokenizer(model: str, revision: str | None = None, trust_remote_code: bool = False) -> Tokenizer:
    """Load a model's tokenizer.

    Raises:
        UserError: It is missing or unreadable.
    """
    folder = resolve_checkpoint(model, revision, Need.tokenizer)
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raise plain Exception for unreadable files
        raise refusal(model, error, "its tokenizer", "that its tokenizer files are complete") from error


def settle_numerics() -> None:
    """Set the switches of this process that decide the bits of a result, once, before a model is loaded.

    Full float32 products, no autotuning, no atomics, no split sums in half precision. Operations that exist only in
    an unordered form warn instead of failing.
    """
    # Read by cuBLAS when it first starts; without it, its results may change with what runs beside.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with warnings.catch_warnings():
        # Newer torch has other names for these switches, but not all versions we support have them.
        warnings.simplefilter("ignore")
        # On CPUs too: below it oneDNN rounds operands to bfloat16.
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Part of that mode by default, and of no use to us: it only makes reads of unwritten memory repeatable.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def pick_device(device: str) -> torch.device:
    """Make a device definite.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UserError: No such device here.
    """
    if device == AUTO:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError:
        raise UserError(f"device {device}: not known; choose auto, cpu, cuda or cuda:N") from None
    if place.type == "cpu":
        return torch.device("cpu")
    if place.type != "cuda":
        raise UserError(f"device {device}: not supported; choose auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = place.index or 0
    if index >= count:
        raise UserError(f"device {device}: torch sees {count} CUDA devices here; choose cpu or a lower number")
    return torch.device("cuda", index)


def pick_devices(device: str, gpus: int) -> list[torch.device]:
    """The devices that a model is on: the one picked, or for several GPUs the first ones of this process.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        gpus: How many.

    Raises:
        UserError: No such devices here.
    """
    if gpus == 1:
        return [pick_device(device)]
    if device not in (AUTO, "cuda"):
        raise UserError(f"--gpus-per-worker {gpus} with device {device}: blocks are spread over GPUs alone; use cuda")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < gpus:
        raise UserError(f"--gpus-per-worker {gpus}: torch sees {count} CUDA devices here; lower it, or use other nodes")
    return [torch.device("cuda", index) for index in range(gpus)]


def refusal(
    model: str, error: Exception, what: str = "it", check: str = "that it is a complete causal language model"
) -> UserError:
    """What transformers said about a model it can't build or read, as one line of ours.

    Args:
        model: As it was named.
        error: What transformers raised.
        what: It failed to load.
        check: What the user may look at.
    """
    if "trust_remote_code" in str(error):
        return UserError(f"model {model} brings its own code; give --trust-remote-code if you trust it")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    if isinstance(error, KeyError):
        reason = f"KeyError {reason}"
    if len(reason) > 240:
        reason = reason[:240].rstrip() + "..."
    return UserError(f"model {model}: transformers can't load {what} ({reason}); check {check}")
