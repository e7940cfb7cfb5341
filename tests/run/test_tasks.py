"""Tasks: what lm-eval is handed is the model asked for, and its answer is read right.

lm-eval brings 300 MB of libraries, so a stand-in of a few lines takes its place; where it is installed, it runs, too.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from searches import Material

from evoray.cli import main
from evoray.errors import EvorayError, UserError
from evoray.formats import dense_weight
from evoray.model import load_model, load_tokenizer
from evoray.run.evaluate import evaluate
from evoray.settings import EvalSettings
from evoray.store import VariantStore

QUESTIONS = [("The old man walked", " home"), ("In the morning", " the sun rose"), ("She", " said")]


def log_likelihood(model: Any, tokenizer: Any, context: str, answer: str) -> float:
    """Slow and obvious: nats of the answer's tokens behind the context."""
    ids = tokenizer(context + answer)["input_ids"]
    with torch.no_grad():
        logits_TV = model(torch.tensor([ids])).logits[0]
    first = len(tokenizer(context)["input_ids"])
    return sum(float(torch.log_softmax(logits_TV[t - 1].double(), -1)[ids[t]]) for t in range(first, len(ids)))


class Library:
    """Stands in for lm-eval: two tasks and a group of both; a score is a log likelihood."""

    def __init__(self) -> None:
        self.include_path: str | None = None
        self.called: dict[str, Any] = {}
        self.error: Exception | None = None

    @property
    def all_tasks(self) -> list[str]:
        return ["hay", "hay_stack", "heap"]

    def manager(self, include_path: str | None = None) -> "Library":
        self.include_path = include_path
        return self

    def match_tasks(self, names: list[str]) -> list[str]:
        return [task for task in self.all_tasks if task in names or (names[0] == "hay*" and task.startswith("hay"))]

    def load(self, names: list[str]) -> dict[str, Any]:
        if self.error:
            raise self.error
        if names == ["heap"]:
            return {"tasks": {"hay": "<hay>", "hay_stack": "<hay_stack>"}, "groups": {"heap": "<heap>"}}
        return {"tasks": {names[0]: f"<{names[0]}>"}}

    def hflm(self, pretrained: Any, tokenizer: Any, batch_size: int) -> tuple[Any, Any, int]:
        return pretrained, tokenizer, batch_size

    def simple_evaluate(self, model: tuple[Any, Any, int], **called: Any) -> dict[str, Any]:
        print("much ado", file=sys.stderr)
        if self.error:
            raise self.error
        self.called = {"batch_size": model[2], **called}
        found = [log_likelihood(*model[:2], *question) for question in QUESTIONS]
        figures = {
            "alias": "hay",
            "loglik,none": sum(found),
            "loglik_stderr,none": 0.5,
            "first,strict-match": found[0],
            "first_stderr,strict-match": "N/A",
        }
        return {
            "results": {"hay": figures, "heap": {"loglik,none": 1.0}},
            "n-samples": {"hay": {"original": 9, "effective": 3}},
        }


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library()
    modules: dict[str, dict[str, Callable[..., Any]]] = {
        "lm_eval": {"simple_evaluate": found.simple_evaluate},
        "lm_eval.tasks": {"TaskManager": found.manager},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": found.hflm},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("evoray.run.tasks.usable_cores", lambda: 1)
    return found


@pytest.fixture
def two_bits(material: Material, tmp_path: Path) -> Path:
    """A configuration: the first five layers at two bits."""
    layers = VariantStore.open(material.store).manifest.layers[:5]
    path = tmp_path / "configuration.txt"
    path.write_text("".join(f"{layer.name}: 2\n" for layer in layers))
    return path


def test_the_base_model_is_handed_over(library: Library, material: Material, capfd: pytest.CaptureFixture[str]) -> None:
    found = evaluate(EvalSettings(model=material.model, tasks="hay,heap,hay", num_fewshot=2, task_limit=3))
    expected = [
        log_likelihood(load_model(material.model), load_tokenizer(material.model), *question) for question in QUESTIONS
    ]
    assert [vars(score) for score in found.tasks] == [
        {"task": "hay", "metric": "loglik", "value": sum(expected), "stderr": 0.5, "samples": 3},
        {"task": "hay", "metric": "first (strict-match)", "value": expected[0], "stderr": None, "samples": 3},
        {"task": "heap", "metric": "loglik", "value": 1.0, "stderr": None, "samples": None},
    ]
    assert (found.perplexity, found.kl, found.tokens, found.costs) == (None, None, 0, None)
    assert library.called == {
        "batch_size": 8,
        "tasks": ["<hay>", "<heap>"],
        "num_fewshot": 2,
        "limit": 3,
        "log_samples": False,
    }
    assert "ado" not in "".join(capfd.readouterr())


def test_a_configuration_is_handed_over_as_it_is(library: Library, material: Material, two_bits: Path) -> None:
    store = VariantStore.open(material.store)
    reference = load_model(material.model)
    with torch.no_grad():
        for layer in store.manifest.layers[:5]:
            weight = reference.get_submodule(layer.name).weight
            weight.copy_(dense_weight(store.read(layer.name, "2"), weight.dtype))
    tokenizer = load_tokenizer(material.model)
    expected = sum(log_likelihood(reference, tokenizer, *question) for question in QUESTIONS)
    base = sum(log_likelihood(load_model(material.model), tokenizer, *question) for question in QUESTIONS)
    settings = EvalSettings(configuration=str(two_bits), store=material.store, tasks="hay*", batch_size=3)
    found = evaluate(settings)
    assert library.called["tasks"] == ["<hay>", "<hay_stack>"]
    assert library.called["batch_size"] == 3
    assert found.tasks[0].value == expected != base
    assert found.costs is not None
    # With text, both are there.
    both = evaluate(
        settings.model_copy(
            update={"data": material.text, "eval_tokens": 128, "sequence_length": 64, "workers": 0, "task_limit": 1}
        )
    )
    assert both.tasks == found.tasks
    assert both.tokens == 128
    assert both.kl is not None
    assert both.kl > 0


def test_mistakes_are_found_before_the_model_is_loaded(
    library: Library, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evoray.run.tasks.load_model", None)

    def refused(said: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=said) as caught:
            evaluate(EvalSettings(**{"model": material.model, "tasks": "hay"} | changes))
        assert "\n" not in str(caught.value)

    refused(r"--tasks hya: lm-eval has no such task; did you mean hay", tasks="hya")
    refused(r"--tasks qqq: lm-eval has no such task; `lm-eval ls tasks` lists them", tasks="qqq")
    refused(r"--task-path /nope: no such folder", task_path="/nope")
    library.error = ConnectionError("no hub\nno anything")
    refused(r"--tasks hay: it can't be loaded \(ConnectionError: no hub\); check the network", task_path=str(tmp_path))
    assert library.include_path == str(tmp_path)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    refused(r"--tasks needs the library lm-eval .*pip install 'evoray\[tasks\]'")


def test_tasks_that_fail_are_a_failure(library: Library, material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> None:
        raise ValueError("a task's own code\nfell over")

    monkeypatch.setattr(sys.modules["lm_eval"], "simple_evaluate", broken)
    with pytest.raises(EvorayError, match=r"^tasks hay failed \(ValueError: a task's own code\)$") as caught:
        evaluate(EvalSettings(model=material.model, tasks="hay"))
    assert caught.value.exit_code == 1


@pytest.mark.usefixtures("library")
def test_the_command_line_shows_what_was_asked_for(material: Material, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit) as leaving:
            main(["--quiet", "eval", "--model", material.model, "--tasks", "hay", *arguments])
        assert leaving.value.code == 0
        return capsys.readouterr().out

    found = json.loads(said("--json"))["tasks"]
    table = said()
    assert "perplexity" not in table
    assert [f"{score['value']:.4f}" in table for score in found] == [True] * 3
    text = ("--data", material.text, "--workers", "0", "--eval-tokens", "128", "--sequence-length", "64")
    assert "perplexity" in said(*text)
    assert said(*text).endswith(table)


def test_lm_eval_itself(material: Material, two_bits: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'evoray[tasks]'")
    rows = [{"question": context, "choices": [answer, " xq"], "answer": 0} for context, answer in QUESTIONS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        "task: mine\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        "doc_to_text: '{{question}}'\n"
        "doc_to_choice: '{{choices}}'\n"
        "doc_to_target: answer\n"
        "target_delimiter: ''\n"
        "metric_list: [{metric: acc}]\n"
    )
    store = VariantStore.open(material.store)
    reference, tokenizer = load_model(material.model), load_tokenizer(material.model)
    with torch.no_grad():
        for layer in store.manifest.layers[:5]:
            weight = reference.get_submodule(layer.name).weight
            weight.copy_(dense_weight(store.read(layer.name, "2"), weight.dtype))
    right = [
        log_likelihood(reference, tokenizer, context, answer) > log_likelihood(reference, tokenizer, context, " xq")
        for context, answer in QUESTIONS
    ]
    found = evaluate(
        EvalSettings(configuration=str(two_bits), store=material.store, tasks="mine", task_path=str(tmp_path))
    )
    assert [(score.task, score.metric, score.samples) for score in found.tasks] == [("mine", "acc", 3)]
    assert found.tasks[0].value == pytest.approx(sum(right) / 3)
