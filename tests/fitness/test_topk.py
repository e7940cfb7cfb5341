"""KL over top tokens against float64 full logits: k + 1 buckets, and the renormalised form of EvoPress."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCABULARY, tiny_ids, tiny_model
from torch import Tensor

from evoray.errors import EvorayError
from evoray.fitness import Fitness, TeacherBlock, TeacherForm, TopLosses, loss_head, place
from evoray.fitness.head import LinearHead
from evoray.fitness.teacher import blocks_of_table, teacher_table
from evoray.model import ModelAdapter

CPU = torch.device("cpu")
V, D = 1000, 64
HALF = (torch.bfloat16, torch.float16)
SCALES = (7e-4, 2e-3, 7e-3, 2e-2, 7e-2, 0.2, 0.7)
CHUNKS = (1, 7, 333, 999, 1000, 1001)


def a_head(dtype: torch.dtype, bias: bool = True) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    weight_VD = (0.4 * torch.randn(V, D, generator=generator)).to(dtype)
    return weight_VD, (1.5 * torch.randn(V, generator=generator)).to(dtype) if bias else None


def a_state(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(1)).to(dtype)


def moved(hidden: Tensor, by: float) -> Tensor:
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return (hidden.double() + by * noise).to(hidden.dtype)


def logits(head: tuple[Tensor, Tensor | None], hidden: Tensor) -> Tensor:
    product = hidden.double() @ head[0].double().T
    return product if head[1] is None else product + head[1].double()


def full_kl(teacher: Tensor, student: Tensor) -> Tensor:
    teacher, student = teacher.log_softmax(-1), student.log_softmax(-1)
    return (teacher.exp() * (teacher - student)).sum(-1)


def bucket_kl(teacher: Tensor, student: Tensor, k: int) -> Tensor:
    """The slow way: probabilities of the top k, and those of all others added up, with the two logarithms at the end.

    Of differences of log-probabilities, so that a small KL keeps its digits.
    """
    ids = teacher.topk(k, -1).indices
    outside = torch.ones_like(teacher, dtype=torch.bool).scatter(-1, ids, False)
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    inside = (log_p.exp() * (log_p - log_q)).masked_fill(outside, 0).sum(-1)
    if k == teacher.shape[-1]:
        return inside
    rest_p = (log_p.exp() * outside).sum(-1)
    rest_q = (log_q.exp() * outside).sum(-1)
    return inside + rest_p * (rest_p.log() - rest_q.log())


def sparse_kl(teacher: Tensor, student: Tensor, k: int) -> Tensor:
    """As EvoPress measures it, with torch's own KL."""
    ids = teacher.topk(k, -1).indices
    inside = [logits.gather(-1, ids).log_softmax(-1) for logits in (student, teacher)]
    return torch.nn.functional.kl_div(*inside, log_target=True, reduction="none").sum(-1)


Reference = Callable[[Tensor, Tensor, int], Tensor]
MEASURES: list[tuple[str, Reference]] = [("kl", bucket_kl), ("kl_renormalised", sparse_kl)]


def found(losses: TopLosses, measure: str, teacher: Tensor, student: Tensor, cuts: tuple[int, ...]) -> np.ndarray:
    taught = place(losses.teach(teacher, cuts), cuts, CPU)
    return getattr(losses, measure)(student, cuts, taught)


@pytest.mark.parametrize(
    ("dtype", "k"), [(dtype, k) for dtype in (torch.float32, *HALF) for k in (1, 10)] + [(torch.float32, V)]
)
@pytest.mark.parametrize(("measure", "reference"), MEASURES)
def test_the_mean_token_over_five_decades(measure: str, reference: Reference, dtype: torch.dtype, k: int) -> None:
    """Means over 512 tokens, at whole KLs from 1e-5 to 1: half precision loses no more than float32.

    What is off is the rounding of logits, and it costs in proportion to the difference of logits, the root of the KL.
    Together at most 0.005% at a KL of 1e-5.
    """
    head = a_head(dtype)
    losses = TopLosses(LinearHead(*head, 333), k)
    teacher_BTD = a_state(dtype, 1, 512)
    reached = []
    for scale in SCALES:
        student_BTD = moved(teacher_BTD, scale)
        whole = logits(head, teacher_BTD), logits(head, student_BTD)
        wanted = float(reference(*whole, k).mean())
        value = found(losses, measure, teacher_BTD, student_BTD, (512,))[0] / 512
        assert abs(value - wanted) <= 1e-7 * wanted**0.5 + 1e-5 * wanted, (scale, wanted, value / wanted - 1)
        reached.append(float(full_kl(*whole).mean()))
        if k == V:
            assert wanted == pytest.approx(reached[-1], rel=1e-9)
        elif measure == "kl":
            assert wanted < reached[-1]
    assert min(reached) < 1.5e-5
    assert max(reached) > 1


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    k=st.integers(1, 30),
    chunk=st.integers(1, 40),
    scale=st.sampled_from([1e-3, 0.1, 1.0, 10.0]),
)
def test_never_more_than_the_whole_and_never_less_than_nothing(seed: int, k: int, chunk: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    head = LinearHead(torch.randn(30, 8, generator=generator), torch.randn(30, generator=generator), chunk)
    teacher_BTD = torch.randn(1, 6, 8, generator=generator)
    student_BTD = teacher_BTD + scale * torch.randn(1, 6, 8, generator=generator)
    whole = [logits((head.weight_VD, head.bias_V), hidden) for hidden in (teacher_BTD, student_BTD)]
    bound = float(full_kl(*whole).sum())
    one, more = (found(TopLosses(head, count), "kl", teacher_BTD, student_BTD, (6,))[0] for count in (k, k + 3))
    # Rounding of logits, to be compared with the differences that make the KL.
    slack = 1e-5 * bound**0.5 + 1e-14
    assert -1e-14 <= one <= more + slack
    assert more <= bound + slack


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_chunks_need_not_divide_the_vocabulary(dtype: torch.dtype) -> None:
    head = a_head(dtype)
    hidden_ND = a_state(dtype, 40)
    exact = logits(head, hidden_ND)
    ids_NK = exact.topk(12).indices
    outside = exact.scatter(1, ids_NK, -torch.inf).logsumexp(1)
    for chunk in CHUNKS:
        linear = LinearHead(*head, chunk)
        assert torch.equal(linear.top(hidden_ND, 12), ids_NK)
        buckets_NM = linear.buckets(hidden_ND, ids_NK)
        assert buckets_NM.dtype == torch.float64
        # Eight units in the last place of logits between 8 and 16: products of 64 terms in float32.
        np.testing.assert_allclose(buckets_NM[:, :-1], exact.gather(1, ids_NK), rtol=0, atol=8e-6)
        np.testing.assert_allclose(buckets_NM[:, -1], outside, rtol=0, atol=4e-6)


def test_logits_are_the_bits_of_the_products_that_the_whole_is_summed_of() -> None:
    head = LinearHead(*a_head(torch.float32), 333)
    hidden_ND = a_state(torch.float32, 40)
    ids_NK = head.top(hidden_ND, 5)
    buckets_NM = head.buckets(hidden_ND, ids_NK)
    for rank in range(5):
        assert torch.equal(buckets_NM[:, rank], head.summary(hidden_ND, ids_NK[:, rank]).target_N)
    np.testing.assert_allclose(buckets_NM.logsumexp(1), head.summary(hidden_ND).lse_N, rtol=0, atol=1e-6)


def test_a_rest_of_next_to_nothing_keeps_its_digits() -> None:
    """One token has all the mass but 1e-30 of it: 1 - p would be 0."""
    weight_VD = torch.zeros(50, D)
    weight_VD[7, 0] = 1.0
    head = LinearHead(weight_VD, None, 20)
    teacher_BTD, student_BTD = torch.zeros(1, 1, D), torch.zeros(1, 1, D)
    teacher_BTD[0, 0, 0], student_BTD[0, 0, 0] = 70.0, 3.0
    losses = TopLosses(head, 1)
    (block,) = losses.teach(teacher_BTD, (1,))
    assert block.ids is not None
    assert block.ids.tolist() == [[7]]
    assert block.scalars[0] == pytest.approx(np.log(49) - 70, rel=1e-6)
    wanted = full_kl(*(hidden.double() @ weight_VD.double().T for hidden in (teacher_BTD, student_BTD)))
    np.testing.assert_allclose(found(losses, "kl", teacher_BTD, student_BTD, (1,)), wanted[0], rtol=1e-6)


@pytest.mark.parametrize("measure", ["kl", "kl_renormalised"])
def test_a_model_does_not_diverge_from_itself(measure: str) -> None:
    losses = TopLosses(LinearHead(*a_head(torch.float32), 333), 10)
    teacher_BTD = a_state(torch.float32, 3, 9)
    assert np.all(np.abs(found(losses, measure, teacher_BTD, teacher_BTD, (9, 4, 2))) < 1e-13)


def test_more_top_tokens_than_there_are_is_the_whole_vocabulary() -> None:
    head = LinearHead(*a_head(torch.float32), 333)
    assert head.top(a_state(torch.float32, 3), V + 5).shape == (3, V)


def test_mass_that_leaves_the_top_is_seen_by_the_buckets_alone() -> None:
    """A student that gives each top token half as much, and the others the rest."""
    weight_VD = torch.eye(6)
    teacher_BTD = torch.tensor([[[0.45, 0.45, 0.025, 0.025, 0.025, 0.025]]]).log()
    student_BTD = torch.tensor([[[0.225, 0.225, 0.1375, 0.1375, 0.1375, 0.1375]]]).log()
    losses = TopLosses(LinearHead(weight_VD, None, 4), 2)
    assert found(losses, "kl_renormalised", teacher_BTD, student_BTD, (1,))[0] == pytest.approx(0, abs=1e-12)
    wanted = 0.9 * np.log(2) + 0.1 * np.log(0.1 / 0.55)
    assert found(losses, "kl", teacher_BTD, student_BTD, (1,))[0] == pytest.approx(wanted, rel=1e-6)


# The model's own output path


@pytest.mark.parametrize("k", [1, 10, VOCABULARY])
@pytest.mark.parametrize("family", ["gemma2", "cohere"])
@pytest.mark.parametrize(("measure", "reference"), MEASURES)
def test_own_output_paths(
    measure: str, reference: Reference, family: str, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evoray.fitness.head.OWN_PATH_TOKENS", 16)
    adapter = ModelAdapter(tiny_model(family))
    head = loss_head(adapter, 40, k)
    assert head.form is TeacherForm.hidden
    ids_BT, cuts = tiny_ids(3, 40), (40, 17, 2)
    teacher_BTD = adapter.hidden(ids_BT)
    reached = []
    for scale in (5e-4, 2e-3, 1e-2, 5e-2, 0.3, 2.0):
        student_BTD = moved(teacher_BTD, scale)
        whole = [adapter.logits_from_hidden(hidden).double() for hidden in (teacher_BTD, student_BTD)]
        kl_BT = reference(*whole, k)
        wanted = np.array([float(kl_BT[row, :cut].sum()) for row, cut in enumerate(cuts)])
        allowed = 1e-6 * np.array(cuts) * wanted**0.5 + 1e-5 * wanted + 1e-14
        assert np.all(np.abs(found(head.top, measure, teacher_BTD, student_BTD, cuts) - wanted) <= allowed)
        reached.append(float(full_kl(*whole)[0].mean()))
    assert min(reached) < 1e-5
    assert max(reached) > 0.1


# Blocks, cuts, padding, tables


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("measure", ["kl", "kl_renormalised"])
def test_cuts_and_padding(family: str, measure: str) -> None:
    adapter = ModelAdapter(tiny_model(family))
    losses = loss_head(adapter, 40, 5).top
    teacher_BTD = adapter.hidden(tiny_ids(2, 9))
    student_BTD = moved(teacher_BTD, 0.1)
    whole = losses.teach(teacher_BTD, (9, 9))
    assert [block.vectors.shape for block in whole] == [(9, 5)] * 2
    assert [block.cut(4).ids.shape for block in whole if block.ids is not None] == [(4, 5)] * 2
    taught = place([block.cut(cut) for block, cut in zip(whole, (6, 2), strict=True)], (6, 2), CPU)
    values = getattr(losses, measure)(student_BTD, (6, 2), taught)
    # Token by token, each in a batch of its own.
    for row, cut in enumerate((6, 2)):
        single = [
            found(losses, measure, teacher_BTD[row : row + 1, t : t + 1], student_BTD[row : row + 1, t : t + 1], (1,))
            for t in range(cut)
        ]
        np.testing.assert_allclose(values[row], np.sum(single), rtol=1e-4)
    student_BTD[0, 6:], student_BTD[1, 2:] = torch.nan, torch.inf
    assert np.array_equal(getattr(losses, measure)(student_BTD, (6, 2), taught), values)


def test_the_table_gives_back_every_bit(tmp_path) -> None:
    losses = TopLosses(LinearHead(*a_head(torch.bfloat16), 333), 10)
    teacher_BTD = a_state(torch.bfloat16, 3, 8)
    # A block of another form between them: whatever a table holds, it gives back.
    blocks = [*losses.teach(teacher_BTD, (8, 1, 5)), TeacherBlock(np.ones((2, 4), np.float16), np.zeros(2))]
    table = teacher_table(blocks)
    with pa.ipc.new_file(str(tmp_path / "teacher.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    with pa.memory_map(str(tmp_path / "teacher.arrow")) as source:
        again = blocks_of_table(pa.ipc.open_file(source).read_all())
        for read, block in zip(again, blocks, strict=True):
            for name in ("vectors", "scalars", "ids"):
                mine, theirs = getattr(read, name), getattr(block, name)
                assert (mine is None) == (theirs is None)
                if mine is not None:
                    assert mine.dtype == theirs.dtype
                    assert np.array_equal(mine, theirs)
        student_BTD = moved(teacher_BTD, 0.1)
        values = [losses.kl(student_BTD, (8, 1, 5), place(part[:3], (8, 1, 5), CPU)) for part in (again, blocks)]
        assert np.array_equal(*values)
    assert blocks[0].ids is not None
    assert blocks[0].ids.dtype == np.int32


def test_a_teacher_of_another_form_is_refused() -> None:
    for family in ("llama", "gemma2"):
        adapter = ModelAdapter(tiny_model(family))
        head = loss_head(adapter, 40, 5)
        hidden_BTD = adapter.hidden(tiny_ids(1, 6))
        with pytest.raises(EvorayError, match="over the whole vocabulary"):
            head.kl(hidden_BTD, (6,), place(head.top.teach(hidden_BTD, (6,)), (6,), CPU))
        for measure in ("kl", "kl_renormalised"):
            with pytest.raises(EvorayError, match="over top tokens"):
                getattr(head.top, measure)(hidden_BTD, (6,), place(head.teach(hidden_BTD, (6,)), (6,), CPU))


def test_what_each_fitness_needs() -> None:
    assert [fitness.value for fitness in Fitness if not fitness.needs_teacher] == ["perplexity"]
    assert [fitness.value for fitness in Fitness if fitness.of_top_tokens] == ["kl-topk", "kl-topk-renormalised"]
    for fitness in Fitness:
        assert fitness.counted((2, 5)).tolist() == ([1, 4] if fitness is Fitness.perplexity else [2, 5])
