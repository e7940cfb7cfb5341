"""Settings: what is refused and how it is said, and who wins over whom."""

from pathlib import Path
from typing import Any

import pytest

from evoray.errors import UserError
from evoray.settings import BaselineSettings, BuildSettings, EvalSettings, SearchSettings, load_settings, read_yaml

NEEDED = {"model": "m", "store": "s", "data": "d", "run": "r", "target_bits": 3}


def search(file: Path | None = None, **given: Any) -> SearchSettings:
    return load_settings(SearchSettings, NEEDED | given, file)


def written(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("value", ["8,2,1", "8 2 1", "8, 2, 1", [8, 2, 1], (8, 2, 1)])
def test_lists_are_written_in_several_ways(value: object) -> None:
    assert search(survivors=value).survivors == (8, 2, 1)


def test_levels_are_words_however_they_are_written() -> None:
    assert search(levels="2, 3").levels == search(levels=[2, "3"]).levels == ("2", "3")
    assert search(levels=3).levels == ("3",)


def test_sizes_are_read_from_text_and_numbers() -> None:
    assert search(variant_memory="1GiB").variant_memory == 1 << 30
    sized = NEEDED | {"target_bits": None}
    assert {
        load_settings(SearchSettings, sized | {"target_size": size}).target_size for size in ("3.5GB", 3500000000)
    } == {3500000000}


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = written(tmp_path, "preset: evopress\noffspring: 64\nsearch-tokens: 1000\ngenerations: 7\n")
    settings = search(file, generations=9)
    assert (settings.tie, settings.offspring, settings.search_tokens, settings.generations) == ("none", 64, 1000, 9)
    assert settings.survivors == (16, 4, 1)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"target_bits": 3}, (150, 128, (16, 4, 1), (2048, 16384, 131072), "none")),
        ({"target_sparsity": 0.5}, (400, 64, (8, 2, 1), (2048, 16384, 65536), None)),
        ({"drop_blocks": 2, "store": None}, (None, 32, (2, 1), (2048, 32768), None)),
        # Of two budgets the one of the levels decides.
        ({"target_bits": 3, "drop_blocks": 2}, (150, 128, (16, 4, 1), (2048, 16384, 131072), "none")),
    ],
)
def test_the_papers_preset_depends_on_the_budget(budget: dict[str, Any], expected: tuple[Any, ...]) -> None:
    found = load_settings(SearchSettings, NEEDED | {"target_bits": None, "preset": "evopress"} | budget)
    assert (found.generations, found.offspring, found.survivors, found.tokens, found.tie) == expected
    if "drop_blocks" in budget and found.target is None:
        assert (found.initial_candidates, found.initial_tokens) == (64, 2048)


def test_baselines_take_the_budgets_of_searches() -> None:
    found = load_settings(BaselineSettings, NEEDED | {"method": "dp"})
    assert (found.method, found.target, found.tokens, found.candidates) == ("dp", "target_bits", 16384, None)
    with pytest.raises(UserError, match="unknown key 'offspring'"):
        load_settings(BaselineSettings, NEEDED | {"method": "dp", "offspring": 3})


def test_dashes_and_underscores_are_the_same_key(tmp_path: Path) -> None:
    assert read_yaml(written(tmp_path, "target-bits: 3\nsearch_tokens: 5\n")) == {"target_bits": 3, "search_tokens": 5}


def test_python_may_give_paths(tmp_path: Path) -> None:
    assert search(store=tmp_path).store == str(tmp_path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"target_bits": "nan"}, "--target-bits 'nan': should be a finite number"),
        ({"target_bits": float("inf")}, "should be a finite number"),
        ({"target_bits": -3}, "--target-bits -3: should be greater than 0"),
        ({"target_bits": "three"}, "--target-bits 'three': should be a valid number"),
        ({"target_bpw": 3}, "--target-bits and --target-bpw given; give"),
        (
            {"preset": "evopress", "target_bits": None, "target_bpw": 3},
            "--preset evopress is the paper's, whose budget is --target-bits",
        ),
        ({"preset": "evopress", "target_bits": None, "target_size": "1GB"}, "whose budget is --target-bits"),
        ({"target_size": "big", "target_bits": None}, "--target-size 'big': not a size; write bytes"),
        ({"generations": -1}, "--generations -1: should be greater than or equal to 0"),
        ({"generations": 1.5}, "--generations 1.5"),
        ({"generations": 10**30}, "--generations"),
        ({"offspring": True}, "--offspring True: this is no switch; give a value"),
        ({"survivors": "8,x,1"}, "--survivors 'x': should be a valid integer"),
        ({"survivors": {"a": 1}}, "--survivors {'a': 1}: should be a list, like 16,4,1"),
        ({"levels": {"2": 3}}, "--levels {'2': 3}: should be a list"),
        ({"workers": -1}, "--workers -1"),
        ({"tie": "loose"}, "--tie 'loose': should be 'fused' or 'none'"),
        ({"preset": "evopres"}, "--preset 'evopres': should be 'evopress'"),
        ({"dtype": "int8"}, "--dtype 'int8': should be 'auto', 'float32', 'float16' or 'bfloat16'"),
        ({"max_hours": "nan"}, "--max-hours 'nan'"),
        ({"race": "halving", "merge": True}, "--merge needs --race sequential, not halving; leave out one of them"),
        ({"sequence_length": 3}, "--sequence-length 3"),
        ({"model": 3}, "--model 3: should be a valid string"),
        ({"run": " "}, "--run ' ': it is empty; give a value"),
        ({"target_bitz": 3}, "unknown key 'target_bitz'; did you mean target_bits?"),
        ({"xyzzy": 3}, "unknown key 'xyzzy'; known are address, "),
        ({"store": None}, "--store is missing; without one a search can only drop: --drop-blocks or --allow-drops"),
        (
            {"store": None, "drop_blocks": 2},
            "--target-bits needs a --store, or --allow-drops to reach it by dropping alone",
        ),
        ({"target_bits": None, "drop_blocks": 2}, "the levels of --store need a budget beside --drop-blocks"),
        ({"allow_drops": True, "drop_blocks": 2}, "leave out it or --drop-blocks"),
        ({"drop_entire_block": True}, "--drop-entire-block needs --drop-blocks or --allow-drops"),
        ({"droppable": "f"}, "--droppable needs --drop-blocks or --allow-drops"),
        ({"target_sparsity": 1.5, "target_bits": None}, "--target-sparsity 1.5: should be less than 1"),
        ({"fitness": "top"}, "--fitness 'top'"),
        ({"top_k": 0}, "--top-k 0"),
        ({"preset": "evopress", "allow_drops": True}, "--preset evopress is the paper's"),
    ],
)
def test_mistakes_name_the_value_and_the_limit(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        search(**given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_mistakes_stand_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^--run is missing; --seed -1: .*; --generations -1: "):
        load_settings(SearchSettings, NEEDED | {"run": None, "generations": -1, "seed": -1})


def test_no_budget() -> None:
    with pytest.raises(UserError, match=r"^one budget is needed, none given; give one of --target-bits"):
        load_settings(SearchSettings, {**NEEDED, "target_bits": None})


def test_gptq_needs_text() -> None:
    with pytest.raises(UserError, match="method gptq needs Hessian text: give --data, or use --method rtn"):
        load_settings(BuildSettings, {"model": "m", "store": "s"})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "wanda"}, "method wanda makes no variants of kind quantization; choose one of gptq, rtn"),
        ({"kind": "sparsity", "method": "gptq"}, "of kind sparsity; choose one of sparsegpt, wanda, magnitude"),
        ({"kind": "joint", "method": "wanda"}, "of kind joint; choose one of sparsegpt, magnitude"),
        ({"kind": "sparsity"}, "method sparsegpt needs Hessian text: give --data, or use --method magnitude"),
        ({"kind": "joint"}, "method sparsegpt needs Hessian text: give --data, or use --method magnitude"),
        ({"kind": "depth"}, "--kind 'depth': should be 'quantization', 'sparsity' or 'joint'"),
        ({"target_sparsity": 0.5, "data": "d"}, "--target-sparsity does not go with --kind quantization: steps are"),
        ({"kind": "joint", "steps": 3, "data": "d"}, "--steps does not go with --kind joint: steps are for --kind spa"),
        (
            {"kind": "sparsity", "levels": "0.5", "steps": 3, "data": "d"},
            "--steps does not go with --levels: give sparsities or steps; leave out one of them",
        ),
        (
            {"kind": "sparsity", "step_weights": 3, "data": "d"},
            "--step-weights needs a --target-sparsity for the steps",
        ),
        ({"kind": "sparsity", "target_sparsity": 1, "data": "d"}, "--target-sparsity 1: should be less than 1"),
        ({"kind": "sparsity", "target_sparsity": 0.5, "steps": 64, "data": "d"}, "--steps 64: should be less than or"),
        ({"kind": "sparsity", "group_size": 64, "data": "d"}, "--group-size does not go with --kind sparsity: it is"),
        ({"kind": "sparsity", "cost_format": "tight", "data": "d"}, "--cost-format does not go with --kind sparsity"),
        ({"from_evopress": "f", "levels": "2,3"}, "--levels does not go with --from-evopress: the folder decides them"),
        ({"from_evopress": "f", "data": "d"}, "--data does not go with --from-evopress"),
        ({"from_evopress": "f", "kind": "joint"}, "EvoPress makes no joint variants; give --kind quantization or spar"),
        ({"from_evopress": "f", "kind": "sparsity", "group_size": 64}, "--group-size does not go with --kind sparsity"),
        ({"from_evopress": "f", "workers": 2}, "--workers does not go with --from-evopress: nothing is computed"),
        ({"method": "rtn", "address": "a:1"}, "--address needs workers on that cluster: give --workers auto or a num"),
        ({"method": "rtn", "workers": "many"}, "--workers 'many': should be auto, a number, or a range such as 4..16"),
    ],
)
def test_what_does_not_go_together_in_a_build(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_settings(BuildSettings, {"model": "m", "store": "s", **given})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_build_may_be() -> None:
    for given in (
        {"data": "d"},
        {"method": "rtn", "hessian_level": 3},
        {"kind": "sparsity", "method": "magnitude", "target_sparsity": "0.5", "steps": "4"},
        {"kind": "joint", "data": "d", "group_size": 64, "hessian_level": "4x0.5"},
        {"from_evopress": "f", "group_size": 64, "cost_format": "tight"},
        {"data": "d", "workers": "auto", "threads": 2, "address": "a:1"},
        {"data": "d", "workers": "2..4", "wait": 60},
    ):
        settings = load_settings(BuildSettings, {"model": "m", "store": "s", **given})
        assert settings.levels is None
        assert settings.hessian_level in (None, "3", "4x0.5")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", "must hold `key: value` lines, it holds a list"),
        ("hello\n", "it holds a str"),
        ("seed: 1\nseed: 2\n", "seed is named twice"),
        ("eval-tokens: 100\neval_tokens: 200\n", "eval_tokens is named twice"),
        ("a: [1\n", "is no YAML that can be read"),
        ("a:\n\t- b\n", "is no YAML that can be read"),
        ("seed: 1\n---\nseed: 2\n", "is no YAML that can be read"),
        ("a: !!python/object/apply:os.getcwd []\n", "is no YAML that can be read"),
        ("model: m\ndata: d\nnested:\n  seed: 1\n", "unknown key 'nested' in "),
        ("model: m\ndata: d\nseed: many\n", "settings.yaml: should be a valid integer"),
        ("model: m\ndata: d\nworkers: true\n", "this is no switch"),
        ("", "--data is missing"),
    ],
)
def test_settings_files_that_do_not_fit(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_settings(EvalSettings, {}, written(tmp_path, text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no settings file at"):
        read_yaml(tmp_path / "nope.yaml")
    with pytest.raises(UserError, match="can't be read: Is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x9f")
    with pytest.raises(UserError, match="is no text"):
        read_yaml(tmp_path / "binary")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "--data is missing; give text to judge on, or --tasks"),
        ({"tasks": ""}, "--data is missing"),
        ({"data": "d", "num_fewshot": 3}, "--num-fewshot is for tasks; give --tasks"),
        ({"data": "d", "batch_size": 3}, "--batch-size is for tasks; give --tasks"),
        ({"tasks": "a", "workers": 2}, "--workers 2 is for text, and tasks run in this process"),
        ({"tasks": "a", "address": "auto"}, "--address auto is for text, and tasks run in this process"),
        ({"tasks": "a", "task_limit": 0}, "--task-limit 0: should be greater than or equal to 1"),
    ],
)
def test_what_eval_needs(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_settings(EvalSettings, given)


def test_tasks_are_a_list_with_or_without_text() -> None:
    assert load_settings(EvalSettings, {"tasks": "arc_easy,hellaswag", "workers": 0}).tasks == ("arc_easy", "hellaswag")
    assert load_settings(EvalSettings, {"tasks": ["a"], "data": "d", "workers": 2, "address": "auto"}).tasks == ("a",)


@pytest.mark.parametrize("kind", [SearchSettings, BaselineSettings, EvalSettings])
def test_a_model_is_spread_over_gpus_alone(kind: Any) -> None:
    given: dict[str, Any] = dict(NEEDED) if kind is not EvalSettings else {"model": "m", "data": "d"}
    given |= {"method": "dp"} if kind is BaselineSettings else {}
    said = r"^--gpus-per-worker 2 spreads a model over GPUs, and --device cpu uses none; leave out one of them"
    with pytest.raises(UserError, match=said):
        load_settings(kind, given | {"gpus_per_worker": 2, "device": "cpu"})
    assert load_settings(kind, given | {"gpus_per_worker": 2}).gpus_per_worker == 2
    assert load_settings(kind, given | {"device": "cpu"}).gpus_per_worker == 1
