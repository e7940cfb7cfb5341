"""The training script: its tokenizer, its blocks, its measure, and that it gives the same weights again."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from evoray.embedded import train as training
from evoray.embedded.train import BOS, EOS, VOCABULARY, Recipe, bits_per_byte, new_model, package, token_stream, train

TEXTS = ["The quick brown fox jumps over the lazy dog. " * 8, "Straße, naïve façade, 北京. " * 12]
TINY = Recipe(steps=3, rows=2, sequence_length=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    package(new_model(seed=5), folder, "A card.\n")
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


@given(text=st.text())
@example(text="<|bos|> spelt out <|eos|><|reserved_4|>")
@example(text=" two  spaces , a comma 's n't \r\n\t\0\x7f\xa0\xad")
@example(text="".join(map(chr, range(0x250))))
@example(text="x" * 5000)
def test_ids_are_the_bytes_and_decode_to_the_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_special_tokens_have_names_and_fill_the_vocabulary(tokenizer: PreTrainedTokenizerBase) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 257, 258)
    assert len(tokenizer) == VOCABULARY == new_model(seed=0).config.vocab_size
    assert tokenizer.decode([BOS, 65, EOS]) == "<|bos|>A<|eos|>"
    assert tokenizer.decode([BOS, 65, EOS], skip_special_tokens=True) == "A"


def test_the_package_is_the_model_in_float16(folder: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.float16
    expected = new_model(seed=5).state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, expected[name].half()), name
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()


def test_two_runs_give_the_same_weights() -> None:
    first, second = train(TINY, TEXTS), train(TINY, TEXTS)
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    other_seed = train(dataclasses.replace(TINY, seed=1), TEXTS)
    assert not torch.equal(first.model.embed_tokens.weight, other_seed.model.embed_tokens.weight)


def test_training_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    train(TINY, TEXTS)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_learns_a_text_by_heart() -> None:
    recipe = Recipe(steps=40, rows=4, sequence_length=64)
    text = TEXTS[0]
    assert bits_per_byte(new_model(recipe.seed).eval(), [text]) > 7.5
    assert bits_per_byte(train(recipe, [text] * 2), [text]) < 3.0


def test_a_pass_shows_every_block_once() -> None:
    stream = torch.arange(1001)
    blocks = training._Blocks(stream, Recipe(rows=5, sequence_length=20))
    # 49 or 50 blocks of 20 fit a pass, whatever its offset: the first 45 are of one pass.
    rows = torch.cat([blocks.next() for _ in range(9)])
    assert rows.shape == (45, 21)
    assert torch.equal(rows - rows[:, :1], torch.arange(21).expand(45, 21))
    starts = rows[:, 0].sort().values
    assert (starts % 20).unique().numel() == 1
    assert starts.unique().numel() == 45


def test_a_text_too_short_for_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 65"):
        train(TINY, ["short"])


def test_documents_stand_between_bos_and_eos() -> None:
    assert token_stream(["ab", "é"]).tolist() == [256, 97, 98, 257, 256, 0xC3, 0xA9, 257]


def test_bits_per_byte_equals_byte_after_byte() -> None:
    model = new_model(seed=3).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(20)  # far from uniform, so that a wrong byte would show
    texts = ["abcdefghij", "xyz", "é"]
    nats, count = 0.0, 0
    for text in texts:
        raw = list(text.encode())
        for start in range(0, len(raw), 4):
            seen = [BOS]
            for byte in raw[start : start + 4]:
                with torch.no_grad():
                    logits_V = model(input_ids=torch.tensor([seen])).logits[0, -1]
                nats -= float(torch.log_softmax(logits_V, -1)[byte])
                seen.append(byte)
                count += 1
    measured = bits_per_byte(model, texts, block_bytes=4, rows=2)
    assert measured == pytest.approx(nats / math.log(2) / count, rel=1e-5)


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    recipe = Recipe(steps=100, warm_up=200, peak_rate=1.0)
    rates = [recipe.rate(step) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])  # at most a tenth of the steps
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
