"""The tasks of the library lm-eval, on a configuration or the base model, in this process and without exporting first.

Holds: `TaskScore`, `Tasks`, `find_tasks`, `run_tasks`.
"""

import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from evoray.applied import apply_configuration
from evoray.cluster.capacity import usable_cores
from evoray.configuration import Configuration
from evoray.errors import EvorayError, UserError
from evoray.model import Facts, ModelAdapter, load_model, load_tokenizer, quiet_transformers
from evoray.run.progress import Progress
from evoray.settings import EvalSettings
from evoray.store import VariantStore

BATCH_SIZE = 8
"""Default requests of a forward pass: a few hundred tokens each, which fits wherever the model fits."""


@dataclass(frozen=True)
class TaskScore:
    """One figure of one task.

    Attributes:
        task: its name, or that of a group.
        metric: what is measured; in brackets which answers were taken, where the task has several ways.
        value: in the metric's own unit.
        stderr: standard error of the value; None where the library gives none.
        samples: questions that were asked; None for groups.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    samples: int | None


@dataclass(frozen=True)
class Tasks:
    """Tasks that are there, with their data.

    Attributes:
        items: name -> the library's own objects.
    """

    items: Mapping[str, list[Any]]


def find_tasks(settings: EvalSettings, progress: Progress | None = None) -> Tasks:
    """Finds tasks and their data, before a model is loaded.

    Args:
        settings: what is asked for; `*` in a name stands for any letters.
        progress: told what happens.

    Raises:
        UserError: the library is missing, a task is unknown, or its data can't be had.
    """
    folder = settings.task_path
    if folder is not None and not Path(folder).expanduser().is_dir():
        raise UserError(f"--task-path {folder}: no such folder; give one with lm-eval's .yaml files")
    try:
        manager_of = import_module("lm_eval.tasks").TaskManager
    except ImportError as error:
        raise UserError(
            f"--tasks needs the library lm-eval ({error}); install it: pip install 'evoray[tasks]'"
        ) from None
    progress = progress or Progress()
    found = progress.step("finding tasks")
    with _quiet():
        manager = manager_of(include_path=None if folder is None else str(Path(folder).expanduser()))
        names = [name for asked in settings.tasks for name in _matching(manager, asked)]
        items = {name: _loaded(manager, name) for name in dict.fromkeys(names)}
    found(1.0)
    return Tasks(items)


def _matching(manager: Any, asked: str) -> list[str]:
    names: list[str] = sorted(manager.match_tasks([asked]))
    if not names:
        near = get_close_matches(asked, manager.all_tasks, n=3)
        remedy = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
        raise UserError(f"--tasks {asked}: lm-eval has no such task; {remedy} (--task-path adds your own)")
    return names


def _loaded(manager: Any, name: str) -> list[Any]:
    try:
        found = manager.load([name])
    except Exception as error:  # data sets, their file systems, templates and tasks' own code raise all kinds
        raise UserError(
            f"--tasks {name}: it can't be loaded ({type(error).__name__}: {_line(error)}); "
            "check the network, HF_TOKEN and its .yaml file"
        ) from error
    group = found.get("groups", {}).get(name)
    return [group] if group is not None else list(found["tasks"].values())


def run_tasks(
    settings: EvalSettings,
    tasks: Tasks,
    facts: Facts,
    store: VariantStore | None,
    configuration: Configuration | None,
    progress: Progress | None = None,
) -> tuple[TaskScore, ...]:
    """Loads the model, applies the configuration and runs the tasks.

    Args:
        settings: of the evaluation; model and revision are settled.
        tasks: as `find_tasks` gives them.
        facts: of the base model.
        store: the variants.
        configuration: what is judged; None for the base model.
        progress: told what happens.

    Raises:
        UserError: the model can't be loaded, or the configuration does not fit.
        EvorayError: a task failed.
    """
    assert settings.model is not None
    progress = progress or Progress()
    # Nothing runs beside, and no bits are compared: all cores, unless said otherwise.
    given = "threads_per_worker" in settings.model_fields_set
    torch.set_num_threads(settings.threads_per_worker if given else usable_cores())
    revision = facts.revision or settings.revision
    loading = progress.step("loading the model")
    model = load_model(
        settings.model,
        revision=revision,
        dtype=settings.dtype.value,
        device=settings.device.value,
        attn_implementation=settings.attn_implementation,
        trust_remote_code=settings.trust_remote_code,
    )
    adapter = None
    if configuration is not None:
        adapter = ModelAdapter(model, allow_partial=settings.allow_partial)
        apply_configuration(adapter, store, configuration, overwrite=True)
    loading(1.0)
    tokenizer = load_tokenizer(settings.model, revision, settings.trust_remote_code)
    share = progress.stage("tasks")
    try:
        scores = tuple(_scores(_answer(settings, tasks, model, tokenizer)))
    finally:
        if adapter is not None:
            adapter.close()
    share(1.0)
    return scores


def _answer(settings: EvalSettings, tasks: Tasks, model: Any, tokenizer: Any) -> Mapping[str, Any]:
    """What lm-eval found. All tasks in one call: the library looks around in the machine for seconds in each."""
    try:
        with _quiet():
            found: Mapping[str, Any] = import_module("lm_eval").simple_evaluate(
                model=import_module("lm_eval.models.huggingface").HFLM(
                    pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size or BATCH_SIZE
                ),
                tasks=[item for items in tasks.items.values() for item in items],
                num_fewshot=settings.num_fewshot,
                limit=settings.task_limit,
                log_samples=False,
            )
    except torch.OutOfMemoryError:
        raise EvorayError("tasks need more memory than the device has free; lower --batch-size") from None
    except Exception as error:  # as in `_loaded`
        raise EvorayError(f"tasks {', '.join(tasks.items)} failed ({type(error).__name__}: {_line(error)})") from error
    return found


def _scores(found: Mapping[str, Any]) -> Iterator[TaskScore]:
    """The figures in lm-eval's answer, whose keys are `metric,filter` and `metric_stderr,filter`."""
    asked = found.get("n-samples", {})
    for task, figures in found["results"].items():
        for key, value in figures.items():
            metric, comma, taken = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, Real):
                continue
            stderr = figures.get(f"{metric}_stderr,{taken}")
            yield TaskScore(
                task=task,
                metric=metric if taken == "none" else f"{metric} ({taken})",
                value=float(value),
                # Where it can't be had, the library writes "N/A".
                stderr=float(stderr) if isinstance(stderr, Real) else None,
                samples=asked[task]["effective"] if task in asked else None,
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the library's bars and remarks out of our output; its errors come as exceptions."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with quiet_transformers(), redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:240]
