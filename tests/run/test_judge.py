"""Held-out KL and perplexity against transformers in float64, and the interval against plain numpy."""

import math

import numpy as np
import pytest
import torch
from searches import Material
from transformers import AutoModelForCausalLM

from evoray.cluster import LocalPool
from evoray.formats import dense_weight
from evoray.run.judge import PASSES_TOGETHER, Judgement, judge, paired_interval
from evoray.run.plan import plan_search
from evoray.run.shapes import Shapes
from evoray.store import VariantStore
from evoray.tokens import TokenText, all_batches


@pytest.fixture(scope="module")
def text(material: Material) -> TokenText:
    return plan_search(material.settings("unused", sequence_length=40)).ground.judge_text


def reference(material: Material, text: TokenText, row: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Two whole models in float64, one block at a time, softmax over the whole vocabulary."""
    base = AutoModelForCausalLM.from_pretrained(material.model, dtype=torch.float64).eval()
    compressed = AutoModelForCausalLM.from_pretrained(material.model, dtype=torch.float64).eval()
    store = VariantStore.open(material.store)
    for layer, level in zip(store.manifest.layers, row.tolist(), strict=True):
        if level >= 0:
            weight_OI = dense_weight(store.read(layer.name, layer.levels[level]), torch.float32, torch.device("cpu"))
            compressed.get_submodule(layer.name).weight.data.copy_(weight_OI)
    divergence_B, entropy, predicted = [], 0.0, 0
    with torch.no_grad():
        for block in text.blocks:
            ids_1T = torch.from_numpy(block.astype(np.int64))[None]
            teacher_TV, student_TV = (model(ids_1T).logits[0].log_softmax(-1) for model in (base, compressed))
            divergence_B.append(float((teacher_TV.exp() * (teacher_TV - student_TV)).sum()))
            entropy -= float(student_TV[:-1].gather(1, ids_1T[0, 1:, None]).sum())
            predicted += len(block) - 1
    return sum(divergence_B) / text.tokens, math.exp(entropy / predicted), np.array(divergence_B)


def test_kl_and_perplexity_are_those_of_two_whole_models(material: Material, text: TokenText) -> None:
    layers = len(VariantStore.open(material.store).manifest.layers)
    mixed = np.random.default_rng(1).integers(-1, 3, layers)
    rows_NL = np.stack([np.full(layers, -1), np.full(layers, 0), mixed]).astype(np.int8)
    with LocalPool(material.spec) as pool:
        # Small passes: more of them than are judged together.
        judged = judge(pool, rows_NL, text, shapes=Shapes(40))
        assert len(all_batches(text, 40)) != len(all_batches(text, 400))
        together = judge(pool, rows_NL, text, shapes=Shapes(400))
    assert len(text.blocks) > 3
    for row_L, one, other in zip(rows_NL, judged, together, strict=True):
        kl, perplexity, kl_B = reference(material, text, row_L)
        for judgement in (one, other):
            assert judgement.kl == pytest.approx(kl, rel=1e-4, abs=1e-7)
            assert judgement.perplexity == pytest.approx(perplexity, rel=1e-5)
        assert int(one.tokens_B.sum()) == text.tokens
        # Blocks come in the order of the batches.
        order = [block for batch in all_batches(text, 40) for block in batch.blocks]
        np.testing.assert_allclose(one.kl_B, kl_B[order], rtol=1e-3, atol=1e-5)
    assert judged[0].kl == pytest.approx(0, abs=1e-7)
    assert judged[1].kl > 0.01


def test_more_passes_than_are_judged_together_are_all_judged(
    material: Material, text: TokenText, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_NL = np.zeros((1, len(VariantStore.open(material.store).manifest.layers)), dtype=np.int8)
    shares: list[float] = []
    with LocalPool(material.spec) as pool:
        whole = judge(pool, rows_NL, text, shapes=Shapes(80))[0]
        monkeypatch.setattr("evoray.run.judge.PASSES_TOGETHER", 2)
        parts = judge(pool, rows_NL, text, shapes=Shapes(80), progress=shares.append)[0]
    assert PASSES_TOGETHER > len(shares) > 1
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert (parts.kl, parts.perplexity) == (whole.kl, whole.perplexity)
    assert np.array_equal(parts.kl_B, whole.kl_B)


def judgement(kl_B: np.ndarray, tokens_B: np.ndarray) -> Judgement:
    return Judgement(float(kl_B.sum() / tokens_B.sum()), 1.0, kl_B, tokens_B)


def test_the_interval_is_that_of_a_paired_ratio() -> None:
    draws = np.random.default_rng(5)
    tokens_B = draws.integers(10, 60, 40)
    found_B, other_B = draws.gamma(2.0, 1.0, (2, 40)) * tokens_B
    difference, half = paired_interval(judgement(found_B, tokens_B), judgement(other_B, tokens_B))
    ratio = np.sum(found_B - other_B) / np.sum(tokens_B)
    assert difference == pytest.approx(ratio, rel=1e-12)
    # Cochran (6.13): the standard error of a ratio, from the variance of its residuals with n - 1.
    residual_B = (found_B - other_B) - ratio * tokens_B
    error = math.sqrt(np.var(residual_B, ddof=1) / 40) / tokens_B.mean()
    assert half == pytest.approx(1.96 * error, rel=1e-9)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draws, covered = np.random.default_rng(6), 0
    for _ in range(1000):
        tokens_B = draws.integers(10, 60, 50)
        noise_B = draws.normal(0.1, 1.0, 50) * np.sqrt(tokens_B)
        base_B = draws.gamma(2.0, 1.0, 50) * tokens_B
        # The expected difference per token is 0.1 E[sqrt(t)] / E[t].
        truth = 0.1 * np.mean(np.sqrt(np.arange(10, 60))) / np.mean(np.arange(10, 60))
        difference, half = paired_interval(judgement(base_B + noise_B, tokens_B), judgement(base_B, tokens_B))
        covered += abs(difference - truth) <= half
    assert 0.92 <= covered / 1000 <= 0.97


def test_intervals_at_the_edges() -> None:
    one = judgement(np.array([3.0]), np.array([6]))
    assert paired_interval(one, one) == (0.0, math.inf)
    many = judgement(np.array([3.0, 1.0]), np.array([6, 5]))
    assert paired_interval(many, many) == (0.0, 0.0)
    broken = judgement(np.array([np.inf, 1.0]), np.array([6, 5]))
    difference, half = paired_interval(many, broken)
    assert difference == -math.inf
    assert half == math.inf
    assert paired_interval(broken, broken) == (0.0, math.inf)
