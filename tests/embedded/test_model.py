"""The packaged model: it loads, is small, and predicts text that it has not seen."""

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from evoray.embedded import EMBEDDED, model_path
from evoray.embedded.text import documents
from evoray.embedded.train import bits_per_byte

# Bits per byte. The sample measures 2.02 with Python 3.11's text; other Pythons and processors come out somewhat off.
BOUND = 2.15


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def judged() -> list[str]:
    """The first half kilobyte of every document for judging."""
    return [document[:512] for document in documents("judge")]


@pytest.fixture(scope="module")
def bits(model: LlamaForCausalLM, judged: list[str]) -> float:
    return bits_per_byte(model, judged)


def test_the_folder_is_small_and_complete() -> None:
    files = {path.name: path.stat().st_size for path in Path(model_path()).iterdir()}
    assert files.keys() == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) <= 4 * 2**20


def test_it_is_a_llama_whose_widths_groups_divide(model: LlamaForCausalLM) -> None:
    assert type(model) is LlamaForCausalLM
    linears = [module for module in model.model.layers.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 7 * 8
    assert all(linear.in_features % 128 == 0 for linear in linears)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_it_predicts_held_out_text(bits: float, judged: list[str]) -> None:
    raw = "".join(judged).encode()
    frequencies = [count / len(raw) for count in Counter(raw).values()]
    unigram = -sum(share * math.log2(share) for share in frequencies)
    assert bits < BOUND
    assert bits < unigram / 2


def test_its_card_states_what_it_measures(bits: float) -> None:
    # The card's figure is over whole documents; their beginnings are neither much harder nor much easier.
    card = (Path(model_path()) / "README.md").read_text(encoding="utf-8")
    stated = float(card.split("Held-out text: ")[1].split(" bits per byte")[0])
    assert bits == pytest.approx(stated, abs=0.1)


def test_it_goes_on_with_words(model: LlamaForCausalLM) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("Return a string which is the ")["input_ids"]]])
    written = model.generate(ids, max_new_tokens=60, do_sample=False)
    text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    known = set(" ".join(documents("train")).split())
    words = text.split()[:-1]  # the last one may be cut
    assert len(words) >= 5
    assert sum(word in known for word in words) >= 0.8 * len(words)


def test_the_path_is_found_without_torch() -> None:
    assert EMBEDDED == "embedded"
    code = "import sys, evoray.embedded as e; e.model_path(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
