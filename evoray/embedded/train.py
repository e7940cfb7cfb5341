"""Trains the embedded model: `python -m evoray.embedded.train --out DIR [--steps N] [--threads N]`.

    Recipe          what decides the weights, beside the text
    new_model       the untrained model
    new_tokenizer   bytes as tokens
    train           the loop, from a recipe and texts to a model
    bits_per_byte   how well a model predicts texts
    package         writes the folder: fp16 weights, configuration, tokenizer, model card

Everything random comes from generators seeded by the recipe: the same recipe, text, thread count and torch build give
the same weights. The text is the running Python's own, so another Python version gives a slightly different model.

Shapes: B blocks, T tokens, V vocabulary.
"""

import argparse
import copy
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from evoray.embedded.text import documents

# Ids 0 to 255 are the bytes themselves. The last five fill the vocabulary to a multiple of eight.
BOS, EOS, PAD = 256, 257, 258
SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>", *(f"<|reserved_{index}|>" for index in range(5)))
VOCABULARY = 256 + len(SPECIAL_TOKENS)


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, beside the text. The defaults made the packaged model.

    Args:
        steps: Optimiser steps.
        rows: Blocks in a step's batch.
        sequence_length: Tokens that a block is trained to predict.
        peak_rate: Learning rate after warm-up; a cosine takes it from there to zero.
        warm_up: Steps of linear warm-up, at most a tenth of all steps.
        weight_decay: AdamW's, on matrices only.
        clip: Largest norm of the gradient.
        bfloat16: Multiply matrices in bfloat16 (weights and optimiser stay in float32).
        seed: Of the initial weights and of the order of blocks.
    """

    steps: int = 4500
    rows: int = 8
    sequence_length: int = 256
    peak_rate: float = 3e-3
    warm_up: int = 200
    weight_decay: float = 0.1
    clip: float = 1.0
    bfloat16: bool = True
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of step `step` (the first is 0)."""
        warm_up = max(1, min(self.warm_up, self.steps // 10))
        if step < warm_up:
            return self.peak_rate * (step + 1) / warm_up
        return self.peak_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, self.steps - warm_up)))


def new_model(seed: int) -> LlamaForCausalLM:
    """The untrained model, in float32: 8 blocks, 1.6 million weights.

    Every input width of a layer (128, 384) is a multiple of 128, so that group sizes 32, 64 and 128 all divide it.

    Args:
        seed: Of the initial weights; the global generator is left as it was.
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # transformers draws initial weights from the global generator only
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                continue
            # Embeddings of spread 0.02 drown in what the first blocks add: 150 steps then end near 4 bits per byte,
            # against 3.2 with 0.1 or, a little better, with 0.05 and writing layers that start at zero.
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            spread = 0.0 if writes else 0.05 if "embed" in name else weight.shape[1] ** -0.5
            weight.normal_(0.0, spread, generator=generator)
    return model


def new_tokenizer() -> Tokenizer:
    """Bytes as tokens: the id of a byte is its value, and no two bytes are ever merged.

    Nothing is put before or after a text: whether it starts with `<|bos|>` is its reader's decision.
    """
    # `tokenizers` writes a byte as a printable character: printable Latin-1 bytes as themselves, the others, in
    # order, as the characters from U+0100 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    vocabulary = {chr(byte if byte in printable else 256 + others.index(byte)): byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    # The pattern of GPT-2 cuts a text to words: without it one word were the whole text.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def token_stream(texts: Sequence[str]) -> Tensor:
    """Documents end to end, each between `<|bos|>` and `<|eos|>`: int64 [tokens]."""
    ids: list[int] = []
    for text in texts:
        ids += [BOS, *text.encode(), EOS]
    return torch.tensor(ids, dtype=torch.int64)


def bits_per_byte(model: PreTrainedModel, texts: Sequence[str], *, block_bytes: int = 256, rows: int = 16) -> float:
    """Mean bits that the model needs for a byte of the texts; lower is better, 8 is no model at all.

    Each document is cut into blocks; each block is predicted on its own, its first byte from `<|bos|>`, so every byte
    counts once.

    Args:
        model: Any model over these tokens.
        texts: Whole documents.
        block_bytes: Longest block, in bytes.
        rows: Blocks that go through the model together.
    """
    blocks = [
        raw[start : start + block_bytes]
        for raw in (text.encode() for text in texts)
        for start in range(0, len(raw), block_bytes)
    ]
    blocks.sort(key=len)  # little padding
    nats = 0.0
    for first in range(0, len(blocks), rows):
        some = blocks[first : first + rows]
        longest = max(map(len, some))
        ids_BT = torch.tensor([[BOS, *raw, *[PAD] * (longest - len(raw))] for raw in some])
        with torch.no_grad():
            logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits.float()
        targets_BT = ids_BT[:, 1:].masked_fill(ids_BT[:, 1:] == PAD, -100)
        nats += float(functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="sum"))
    return nats / math.log(2) / sum(map(len, blocks))


def train(
    recipe: Recipe, texts: Sequence[str], watch: Callable[[int, float, LlamaForCausalLM], None] | None = None
) -> LlamaForCausalLM:
    """Trains a new model.

    Args:
        recipe: All settings.
        texts: The training documents; together longer than one block.
        watch: Called after every step with the steps done, the step's loss (nats per token) and the model.

    Returns:
        The model in float32, in evaluation mode.
    """
    model = new_model(recipe.seed).train()
    stream = token_stream(texts)
    blocks = _Blocks(stream, recipe)
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.95))
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        ids_BT = blocks.next()
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits_BTV.float().flatten(0, 1), ids_BT[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        if watch:
            watch(step + 1, float(loss.detach()), model)
    return model.eval()


class _Blocks:
    """Batches of blocks that go through the whole stream before any of it comes again.

    Each pass cuts the stream at another random offset, so that no byte always stands at a block's start.
    """

    def __init__(self, stream: Tensor, recipe: Recipe) -> None:
        self._length = recipe.sequence_length
        # The first token of the second block is the last target of the first.
        if len(stream) < 2 * self._length + 1:
            raise ValueError(f"{len(stream)} tokens of text; at least {2 * self._length + 1} are needed")
        self._stream = stream
        self._rows = recipe.rows
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self._starts: list[int] = []

    def next(self) -> Tensor:
        """The next batch: int64 [rows, sequence_length + 1]."""
        while len(self._starts) < self._rows:
            offset = int(torch.randint(self._length, (1,), generator=self._generator))
            count = (len(self._stream) - 1 - offset) // self._length
            order = torch.randperm(count, generator=self._generator)
            self._starts += (offset + self._length * order).tolist()
        starts, self._starts = self._starts[: self._rows], self._starts[self._rows :]
        return torch.stack([self._stream[start : start + self._length + 1] for start in starts])


def package(model: LlamaForCausalLM, folder: Path, card: str) -> None:
    """Writes what `from_pretrained` needs: weights in float16, configuration, tokenizer, and the model card.

    Args:
        model: The trained model; its head must be tied, as its weight is not written.
        folder: Made if need be; files of these names are replaced.
        card: The text of `README.md`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().to(torch.float16).contiguous() for name, weight in model.named_parameters()}
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    config = copy.deepcopy(model.config)
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = torch.float16
    config.save_pretrained(folder)
    GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD).save_pretrained(folder)
    new_tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    bos, eos, pad = SPECIAL_TOKENS[:3]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "clean_up_tokenization_spaces": False,  # decoding gives back the very bytes that went in
        "split_special_tokens": True,  # a text that spells a special token stays a text
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def rounded(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy of the model with weights as `package` writes them (float16), to be computed in float32."""
    copy = new_model(seed=0).eval()
    copy.load_state_dict({name: tensor.to(torch.float16).float() for name, tensor in model.state_dict().items()})
    return copy


def model_card(recipe: Recipe, done: int, bits: float, judged: Sequence[str], trained: Sequence[str]) -> str:
    """The model's `README.md`.

    Args:
        recipe: What it was trained by.
        done: Steps done, of the recipe's.
        bits: Bits per byte on `judged`, with the packaged weights.
        judged: Documents held out for judging.
        trained: Documents trained on.
    """
    tokens = done * recipe.rows * recipe.sequence_length
    size = {name: sum(len(text.encode()) for text in texts) for name, texts in (("j", judged), ("t", trained))}
    weights = sum(weight.numel() for weight in new_model(seed=0).parameters())
    return f"""---
license: apache-2.0
language: en
library_name: transformers
---

# The embedded model of evoray

A byte-level `LlamaForCausalLM` for tests and demonstrations: 8 blocks, hidden size 128, {weights:,} weights in
float16, head tied to the embeddings. Ids 0 to 255 are bytes; 256 is `<|bos|>`, 257 `<|eos|>`, 258 `<|pad|>`. The
tokenizer puts nothing before a text.

**Held-out text: {bits:.3f} bits per byte**, over all {size["j"]:,} bytes of the {len(judged)} documents held out for
judging, in blocks of 256 bytes, each from `<|bos|>`; weights as packaged, computed in float32.

Trained on {size["t"]:,} bytes in {len(trained)} documents: the topics of `pydoc` and the docstrings of the standard
library of Python {platform.python_version()} (Python Software Foundation License). The hash of a topic's or a
module's name decides whether it is for training, search or judging, so held-out names are the same in every Python
version.

Recipe: {done:,} of {recipe.steps:,} steps, {tokens:,} tokens, {recipe.rows} blocks of {recipe.sequence_length} a step,
AdamW, peak learning rate {recipe.peak_rate:g}, cosine to zero, weight decay {recipe.weight_decay:g},
{"bfloat16 matrix products" if recipe.bfloat16 else "float32"}, seed {recipe.seed}, torch {torch.__version__}. Made by

    python -m evoray.embedded.train --out DIR
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: trains, prints bits per byte as it goes, and writes the folder."""
    parser = argparse.ArgumentParser(prog="python -m evoray.embedded.train", description="Trains the embedded model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="optimiser steps (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default %(default)s)")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints (default %(default)s)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    recipe = Recipe(steps=chosen.steps)
    trained, judged = documents("train"), documents("judge")
    sample = [text[:2048] for text in judged]
    began = time.monotonic()
    losses: list[float] = []

    def watch(step: int, loss: float, model: LlamaForCausalLM) -> None:
        losses.append(loss)
        if step % chosen.every and step != recipe.steps:
            return
        last = step == recipe.steps
        packaged = rounded(model)
        bits = bits_per_byte(packaged, judged if last else sample)
        card = model_card(recipe, step, bits, judged, trained) if last else f"Unfinished: step {step}.\n"
        package(packaged, chosen.out, card)
        mean = sum(losses) / len(losses) / math.log(2)
        losses.clear()
        seconds = time.monotonic() - began
        speed = step * recipe.rows * recipe.sequence_length / seconds
        print(
            f"step {step}/{recipe.steps}  training {mean:.3f} bits per byte  "
            f"judge {'text' if last else 'sample'} {bits:.3f}  {speed:,.0f} tokens/s  {seconds:,.0f} s",
            flush=True,
        )

    train(recipe, trained, watch)


if __name__ == "__main__":
    main()
