"""KL divergence and cross entropy against float64 softmaxes over full logits."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import tiny_ids, tiny_model
from torch import Tensor

from evoray.errors import EvorayError
from evoray.fitness import Fitness, TeacherBlock, TeacherForm, loss_head, place
from evoray.fitness.head import LinearHead
from evoray.fitness.losses import _LinearLosses
from evoray.fitness.teacher import blocks_of_table, teacher_table
from evoray.model import ModelAdapter

pytestmark = pytest.mark.usefixtures("same_products")

CPU = torch.device("cpu")
V, D = 1000, 64
HALF = (torch.bfloat16, torch.float16)
SCALES = (7e-4, 2e-3, 7e-3, 2e-2, 7e-2, 0.2, 0.7)
# How far one token's log-sum-exp in float32 may be off: two units in the last place of logits between 8 and 16.
TOKEN = 2e-6
# Under, at and over the vocabulary, most of them no divisor of it.
CHUNKS = (1, 7, 333, 999, 1000, 1001, 16384)


def logits(weight_VD: Tensor, bias_V: Tensor | None, hidden: Tensor) -> Tensor:
    """The reference: float64, the whole vocabulary at once."""
    product = hidden.double() @ weight_VD.double().T
    return product if bias_V is None else product + bias_V.double()


def full_kl(teacher_NV: Tensor, student_NV: Tensor) -> Tensor:
    teacher, student = teacher_NV.double().log_softmax(-1), student_NV.double().log_softmax(-1)
    return (teacher.exp() * (teacher - student)).sum(-1)


def a_head(dtype: torch.dtype, bias: bool = True, seed: int = 0) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    weight_VD = (0.4 * torch.randn(V, D, generator=generator)).to(dtype)
    return weight_VD, (1.5 * torch.randn(V, generator=generator)).to(dtype) if bias else None


def a_state(dtype: torch.dtype, *shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(seed)).to(dtype)


def moved(hidden: Tensor, by: float, seed: int = 2) -> Tensor:
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (hidden.double() + by * noise).to(hidden.dtype)


def linear(weight_VD: Tensor, bias_V: Tensor | None, chunk: int = 333) -> _LinearLosses:
    return _LinearLosses(LinearHead(weight_VD, bias_V, chunk))


def kl_of(losses, teacher_BTD: Tensor, student_BTD: Tensor, cuts: tuple[int, ...]) -> np.ndarray:
    return losses.kl(student_BTD, cuts, place(losses.teach(teacher_BTD, cuts), cuts, CPU))


# KL from (c, scalar)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_kl_of_the_mean_token_over_five_decades(dtype, bias):
    """Means over 512 tokens, at KL from 1e-5 to 1.

    float32: the log-sum-exp of a token is off by about 1e-6, its mean by 1e-7. Half precision: what rounding c to
    float16 costs grows with the distance of the hidden states, that is, with the root of the KL. Together at most
    0.2% (float32) or 0.6% (half) at a KL of 6e-5.
    """
    head = a_head(dtype, bias)
    teacher_BTD = a_state(dtype, 1, 512)
    reached = []
    for scale in SCALES:
        student_BTD = moved(teacher_BTD, scale)
        wanted = float(full_kl(logits(*head, teacher_BTD), logits(*head, student_BTD)).mean())
        found = kl_of(linear(*head), teacher_BTD, student_BTD, (512,))[0] / 512
        allowed = 1e-7 + (5e-6 * wanted if dtype == torch.float32 else 3e-5 * wanted**0.5)
        assert abs(found - wanted) <= allowed, (scale, wanted, found / wanted - 1)
        reached.append(wanted)
    assert min(reached) < 1.5e-5
    assert max(reached) > 1


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_kl_under_a_changed_student_far_away(dtype):
    """KL of many nats, and states so large that a naive softmax overflows."""
    head = a_head(dtype)
    teacher_BTD = a_state(dtype, 1, 64)
    for student_BTD in (a_state(dtype, 1, 64, seed=9), 30 * a_state(dtype, 1, 64, seed=9)):
        wanted = full_kl(logits(*head, teacher_BTD), logits(*head, student_BTD)).sum()
        found = kl_of(linear(*head), teacher_BTD, student_BTD, (64,))
        np.testing.assert_allclose(found, [float(wanted)], rtol=1e-4 if dtype in HALF else 1e-6)


@pytest.mark.parametrize("dtype", HALF)
def test_the_scalar_belongs_to_the_rounded_mean_weight_row(dtype):
    """At a KL of 6e-5 within 0.4%. With a scalar from the exact c the error is many times that."""
    head = a_head(dtype)
    teacher_BTD = a_state(dtype, 1, 512)
    student_BTD = moved(teacher_BTD, 4e-3)
    losses = linear(*head)
    (block,) = losses.teach(teacher_BTD, (512,))
    assert block.vectors.dtype == np.float16
    wanted = float(full_kl(logits(*head, teacher_BTD), logits(*head, student_BTD)).mean())
    assert 4e-5 < wanted < 8e-5
    lse_N = losses.head.summary(teacher_BTD[0]).lse_N
    exact_ND = losses.head.expected_weight(teacher_BTD[0], lse_N)
    careless_N = lse_N.numpy() - (exact_ND.double() * teacher_BTD[0].double()).sum(1).numpy()
    error, careless = (
        abs(losses.kl(student_BTD, (512,), place([taught], (512,), CPU))[0] / 512 / wanted - 1)
        for taught in (block, TeacherBlock(block.vectors, careless_N))
    )
    assert error < 4e-3
    assert careless > 10 * error


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_the_mean_weight_row(dtype):
    weight_VD, bias_V = a_head(dtype)
    hidden_ND = a_state(dtype, 40)
    wanted = logits(weight_VD, bias_V, hidden_ND).softmax(-1) @ weight_VD.double()
    for chunk in CHUNKS:
        head = LinearHead(weight_VD, bias_V, chunk)
        lse_N = head.summary(hidden_ND).lse_N
        found = head.expected_weight(hidden_ND, lse_N)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_chunks_need_not_divide_the_vocabulary(dtype):
    head = a_head(dtype)
    teacher_BTD, targets_N = a_state(dtype, 1, 40), torch.arange(40) * 25
    student_BTD = moved(teacher_BTD, 0.1)
    wanted = logits(*head, student_BTD[0])
    for chunk in CHUNKS:
        losses = linear(*head, chunk=chunk)
        summary = losses.head.summary(student_BTD[0], targets_N)
        assert summary.lse_N.dtype == torch.float64
        np.testing.assert_allclose(summary.lse_N, wanted.logsumexp(-1), rtol=0, atol=4e-6)
        np.testing.assert_allclose(summary.target_N, wanted.gather(1, targets_N[:, None])[:, 0], rtol=0, atol=4e-6)
        found = kl_of(losses, teacher_BTD, student_BTD, (40,))
        wanted_kl = full_kl(logits(*head, teacher_BTD), logits(*head, student_BTD)).sum()
        np.testing.assert_allclose(found, [float(wanted_kl)], rtol=1e-4 if dtype == torch.float32 else 5e-4)


def test_half_precision_logits_are_not_rounded():
    """Logits of bfloat16 states and weights keep float32; rounded to bfloat16 they would be off by up to 0.06."""
    head = a_head(torch.bfloat16, bias=False)
    hidden_ND = a_state(torch.bfloat16, 64)
    exact = logits(*head, hidden_ND).logsumexp(-1)
    rounded = (hidden_ND @ head[0].T).double().logsumexp(-1)
    assert float((rounded - exact).abs().max()) > 1e-2
    assert float((LinearHead(*head, 333).summary(hidden_ND).lse_N - exact).abs().max()) < 4e-6


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_nothing_is_clamped(dtype):
    """A model does not diverge from itself, and what rounding leaves falls on both sides of zero."""
    head = a_head(dtype)
    teacher_BTD = a_state(dtype, 16, 8)
    cuts = (8,) * 16
    same = kl_of(linear(*head), teacher_BTD, teacher_BTD, cuts)
    assert np.all(np.abs(same) < 1e-11)
    # Another chunk size stands for any other rounding of the same student.
    taught = place(linear(*head).teach(teacher_BTD, cuts), cuts, CPU)
    rounded = linear(*head, chunk=77).kl(teacher_BTD, cuts, taught)
    assert np.all(np.abs(rounded) < 8 * 4e-6)
    assert rounded.min() < 0 < rounded.max()


# Blocks, cuts and padding


@pytest.mark.parametrize("cuts", [(9, 9, 9), (9, 4, 2), (2, 9, 5)])
def test_each_block_has_the_sum_of_its_own_tokens(cuts):
    head = a_head(torch.float32)
    teacher_BTD = a_state(torch.float32, 3, 9)
    student_BTD = moved(teacher_BTD, 0.1)
    ids_BT = tiny_ids(3, 9, vocabulary=V)
    losses = linear(*head)
    kl_BT = full_kl(logits(*head, teacher_BTD), logits(*head, student_BTD))
    log_p_BTV = logits(*head, student_BTD).log_softmax(-1)
    wanted_kl = [float(kl_BT[row, :cut].sum()) for row, cut in enumerate(cuts)]
    wanted_entropy = [
        -sum(float(log_p_BTV[row, place_, ids_BT[row, place_ + 1]]) for place_ in range(cut - 1))
        for row, cut in enumerate(cuts)
    ]
    taught = losses.teach(teacher_BTD, cuts)
    assert [block.vectors.shape for block in taught] == [(cut, D) for cut in cuts]
    np.testing.assert_allclose(
        losses.kl(student_BTD, cuts, place(taught, cuts, CPU)), wanted_kl, rtol=1e-6, atol=9 * TOKEN
    )
    np.testing.assert_allclose(losses.cross_entropy(student_BTD, cuts, ids_BT), wanted_entropy, rtol=1e-6)


def test_a_cut_block_takes_the_first_tokens_of_its_teacher():
    head = a_head(torch.float32)
    teacher_BTD = a_state(torch.float32, 2, 9)
    student_BTD = moved(teacher_BTD, 0.1)
    losses = linear(*head)
    whole = losses.teach(teacher_BTD, (9, 9))
    cut = [block.cut(tokens) for block, tokens in zip(whole, (6, 2), strict=True)]
    found = losses.kl(student_BTD, (6, 2), place(cut, (6, 2), CPU))
    kl_BT = full_kl(logits(*head, teacher_BTD), logits(*head, student_BTD))
    np.testing.assert_allclose(found, [float(kl_BT[0, :6].sum()), float(kl_BT[1, :2].sum())], rtol=1e-6, atol=6 * TOKEN)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_padding_never_reaches_a_loss(family):
    adapter = ModelAdapter(tiny_model(family))
    losses = loss_head(adapter, 40)
    cuts = (3, 9, 5)
    teacher_BTD = a_state(torch.float32, 3, 9)
    student_BTD, ids_BT = moved(teacher_BTD, 0.1), tiny_ids(3, 9)
    found = []
    for filling in (0.0, 1e30, torch.nan):
        for row, cut in enumerate(cuts):
            teacher_BTD[row, cut:] = filling
            student_BTD[row, cut:] = filling
            ids_BT[row, cut:] = 5
        found.append([kl_of(losses, teacher_BTD, student_BTD, cuts), losses.cross_entropy(student_BTD, cuts, ids_BT)])
    assert np.isfinite(found[0]).all()
    for other in found[1:]:
        assert np.array_equal(other, found[0])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_one_block_of_two_tokens(family):
    """The shortest cut: one token is predicted."""
    losses = loss_head(ModelAdapter(tiny_model(family)), 40)
    hidden_BTD = a_state(torch.float32, 1, 4)
    assert losses.cross_entropy(hidden_BTD, (2,), tiny_ids(1, 4)).shape == (1,)
    assert Fitness.kl.counted((2, 5)).tolist() == [2, 5]
    assert Fitness.perplexity.counted((2, 5)).tolist() == [1, 4]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_cross_entropy_is_that_of_torch(dtype):
    head = a_head(dtype)
    hidden_BTD, ids_BT = a_state(dtype, 2, 30), tiny_ids(2, 30, vocabulary=V)
    found = linear(*head).cross_entropy(hidden_BTD, (30, 11), ids_BT)
    for row, cut in enumerate((30, 11)):
        wanted = torch.nn.functional.cross_entropy(
            logits(*head, hidden_BTD[row, : cut - 1]), ids_BT[row, 1:cut], reduction="sum"
        )
        np.testing.assert_allclose(found[row], float(wanted), rtol=5e-7)


def test_a_teacher_of_other_blocks_is_refused():
    taught = linear(*a_head(torch.float32)).teach(a_state(torch.float32, 2, 9), (9, 4))
    for cuts in ((4, 9), (9, 3), (9,), (9, 4, 4)):
        with pytest.raises(EvorayError, match="tokens per block"):
            place(taught, cuts, CPU)


def test_a_batch_longer_than_one_piece_in_float64(monkeypatch):
    head = a_head(torch.float32)
    teacher_BTD = a_state(torch.float32, 1, 50)
    student_BTD = moved(teacher_BTD, 0.1)
    whole = kl_of(linear(*head), teacher_BTD, student_BTD, (50,))
    monkeypatch.setattr("evoray.fitness.losses._DOUBLE_ROWS", 7)
    np.testing.assert_allclose(kl_of(linear(*head), teacher_BTD, student_BTD, (50,)), whole, rtol=1e-12)


# The model's own output path


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite"])
def test_own_output_paths(family):
    """Soft caps and scales: against float64 softmaxes of the model's own logits, at KL from 1e-5 to 1."""
    adapter = ModelAdapter(tiny_model(family))
    assert not adapter.head_is_linear
    losses = loss_head(adapter, 40)
    assert losses.form is TeacherForm.hidden
    cuts = (40, 17, 2)
    ids_BT = tiny_ids(3, 40)
    teacher_BTD = adapter.hidden(ids_BT)
    reached = []
    for scale in (2e-3, 1e-2, 5e-2, 0.3, 2.0):
        student_BTD = moved(teacher_BTD, scale)
        teacher_BTV, student_BTV = adapter.logits(ids_BT), adapter.logits_from_hidden(student_BTD)
        kl_BT = full_kl(teacher_BTV, student_BTV)
        wanted_kl = np.array([float(kl_BT[row, :cut].sum()) for row, cut in enumerate(cuts)])
        log_p_BTV = student_BTV.double().log_softmax(-1)
        wanted_entropy = [
            float(torch.nn.functional.nll_loss(log_p_BTV[row, : cut - 1], ids_BT[row, 1:cut], reduction="sum"))
            for row, cut in enumerate(cuts)
        ]
        # Logits come from products of other shapes, in float32; from there on all is float64.
        allowed = 1e-6 * np.array(cuts) * wanted_kl**0.5 + 1e-5 * wanted_kl
        assert np.all(np.abs(kl_of(losses, teacher_BTD, student_BTD, cuts) - wanted_kl) <= allowed)
        np.testing.assert_allclose(losses.cross_entropy(student_BTD, cuts, ids_BT), wanted_entropy, rtol=1e-6)
        reached.append(wanted_kl[0] / cuts[0])
    assert min(reached) < 1e-4
    assert max(reached) > 0.1
    assert np.all(kl_of(losses, teacher_BTD, teacher_BTD, cuts) == 0)


@pytest.mark.parametrize("family", ["gemma2", "cohere"])
@pytest.mark.parametrize("dtype", HALF)
def test_own_output_paths_in_half_precision(family, dtype):
    """The teacher's states are kept exactly, so the model does not diverge from itself."""
    adapter = ModelAdapter(tiny_model(family).to(dtype))
    losses = loss_head(adapter, 40)
    ids_BT = tiny_ids(2, 10)
    hidden_BTD = adapter.hidden(ids_BT)
    taught = losses.teach(hidden_BTD, (10, 6))
    assert torch.equal(torch.from_numpy(taught[1].vectors).to(dtype), hidden_BTD[1, :6])
    assert np.all(losses.kl(hidden_BTD, (10, 6), place(taught, (10, 6), CPU)) == 0)


def test_which_way_a_model_goes():
    for family, form in (("llama", TeacherForm.linear), ("gpt2", TeacherForm.linear), ("granite", TeacherForm.hidden)):
        assert loss_head(ModelAdapter(tiny_model(family)), 40).form is form


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "granite"])
def test_whole_models(family):
    """From token ids on: the KL of a model with changed weights, against its logits in full."""
    model = tiny_model(family)
    adapter = ModelAdapter(model)
    losses = loss_head(adapter, 40)
    ids_BT, cuts = tiny_ids(2, 20), (20, 13)
    taught = place(losses.teach(adapter.hidden(ids_BT), cuts), cuts, CPU)
    teacher_BTV = adapter.logits(ids_BT)
    generator = torch.Generator().manual_seed(5)
    for scale, name in itertools.product((3e-3, 0.03, 0.3), [list(adapter.layers)[end] for end in (0, -1)]):
        base_OI = adapter.weight_OI(name)
        noise_OI = torch.randn(base_OI.shape, generator=generator) * base_OI.std()
        adapter.swap(name, adapter.ready(name, base_OI + scale * noise_OI))
        kl_BT = full_kl(teacher_BTV, adapter.logits(ids_BT))
        wanted = np.array([float(kl_BT[row, :cut].sum()) for row, cut in enumerate(cuts)])
        found = losses.kl(adapter.hidden(ids_BT), cuts, taught)
        adapter.restore(name)
        assert np.all(np.abs(found - wanted) <= 4e-7 * np.array(cuts) + 1e-5 * wanted)


# The table


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_table_gives_back_every_bit(dtype, tmp_path):
    rng = np.random.default_rng(0)
    blocks = [
        TeacherBlock(rng.standard_normal((tokens, D)).astype(dtype), rng.standard_normal(tokens))
        for tokens in (5, 1, 8)
    ]
    table = teacher_table(blocks)
    with pa.ipc.new_file(str(tmp_path / "teacher.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    with pa.memory_map(str(tmp_path / "teacher.arrow")) as source:
        for read in (table, pa.ipc.open_file(source).read_all()):
            for found, wanted in zip(blocks_of_table(read), blocks, strict=True):
                assert found.vectors.dtype == dtype
                assert found.scalars.dtype == np.float64
                assert np.array_equal(found.vectors, wanted.vectors)
                assert np.array_equal(found.scalars, wanted.scalars)
                assert np.array_equal(found.cut(1).vectors, wanted.vectors[:1])
    assert blocks_of_table(teacher_table([])) == []


def test_losses_from_a_table_are_the_same_bits():
    head = a_head(torch.bfloat16)
    teacher_BTD = a_state(torch.bfloat16, 2, 9)
    student_BTD = moved(teacher_BTD, 0.1)
    losses = linear(*head)
    taught = losses.teach(teacher_BTD, (9, 5))
    again = blocks_of_table(teacher_table(taught))
    found = [losses.kl(student_BTD, (9, 5), place(blocks, (9, 5), CPU)) for blocks in (taught, again)]
    assert np.array_equal(*found)
