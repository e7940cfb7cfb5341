"""The command line: arguments in, one line out when something is wrong. All work is done in the rooms below.

A verb's flags are the fields of its settings; `--config FILE.yaml` holds the same names, and flags win over it.
Results go to standard output, progress and errors to standard error.
"""

import inspect as signatures
import json
import math
import os
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from evoray.errors import EvorayError, UserError
from evoray.flags import complete_recipes, option_of
from evoray.log_line import json_line
from evoray.settings import (
    BaselineSettings,
    BuildSettings,
    EvalSettings,
    ExportSettings,
    SearchSettings,
    Settings,
    SweepSettings,
    load_settings,
    matching_recipes,
    recipes,
)
from evoray.stopping import Stopped, stops_by_signal

PIPE_WIDTH = 2000
"""Columns where the output is no terminal: no table of ours is wider, so none is cut or wrapped."""

MONOTONICITY = "monotonicity"
"""What `inspect` takes in the place of a place; a run directory follows."""

PIPE_HELP_WIDTH = 110
"""The same for help, which fills its width."""

LAYERS_KEPT = "{} keeps every finished layer: the same command goes on with it"
GENERATIONS_KEPT = "{} keeps every finished generation: the same command goes on with it"
NOT_KEPT = "nothing is kept before it is judged: the same command begins it anew"
NOT_BEGUN = "nothing is left of it: the same command begins it anew"
"""How to go on after a stop."""

# typer brings a click of its own since 0.26 and uses the installed one before; this is right for both.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="evoray",
    help="Evolutionary search for non-uniform compression of language models, on one machine or a Ray cluster.",
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_asked = {"debug": False, "quiet": False, "told": False}
_log_format = {"json": False}
"""Whether progress and the last line are written as JSON."""


def _ask(context: typer.Context, parameter: typer.CallbackParam, value: bool) -> bool:
    """Remembers a switch that may stand before or after the verb."""
    _asked[str(parameter.name)] |= bool(value)
    if _asked["quiet"]:
        # Read when the libraries are imported, which is later.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return value


def _ask_format(value: str | None) -> str | None:
    """Remembers a choice that may stand before or after the verb."""
    if value not in (None, "text", "json"):
        raise typer.BadParameter(f"{value!r} is none of text, json")
    if value is not None:
        _log_format["json"] = value == "json"
    return value


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"evoray {version('evoray')}")
        raise typer.Exit


_Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", callback=_ask)]
_Quiet = Annotated[bool, typer.Option("--quiet", help="Show results only.", callback=_ask)]
_LogFormat = Annotated[
    str | None,
    typer.Option(
        "--log-format",
        metavar="CHOICE",
        help="Progress and errors: text, or json, a line each. Default: text.",
        callback=_ask_format,
        autocompletion=lambda incomplete: [name for name in ("text", "json") if name.startswith(incomplete)],
        show_default=False,
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.callback()
def _common(
    debug: _Debug = False,
    quiet: _Quiet = False,
    log_format: _LogFormat = None,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and stop.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    pass


def _progress(made: str) -> Any:
    from evoray.run.json_lines import JsonProgress
    from evoray.run.progress import Progress, RichProgress

    if _asked["quiet"]:
        return Progress()
    return JsonProgress(made) if _log_format["json"] else RichProgress()


@contextmanager
def _working(made: str, kept: str, run: bool = False) -> Iterator[Any]:
    """A progress for what may be stopped by Ctrl-C or SIGTERM, and then says as its last line what is kept of it.

    Args:
        made: place of what is made.
        kept: how to go on; the place is put in.
        run: it is a run. Log lines name it as those of workers do, from wherever this is called.
    """
    from evoray.store import Location

    try:
        with _progress(str(Location.parse(made)) if run else made) as progress:
            yield progress
    except (KeyboardInterrupt, Stopped) as asked:
        _tell_stopped(asked, kept.format(made))
        raise


def _tell_stopped(asked: BaseException, kept: str) -> None:
    """Says as the last line by what it was stopped, and how to go on; once."""
    if not _asked["told"]:
        _asked["told"] = True
        by = f" by {asked}" if isinstance(asked, Stopped) else ""
        _tell("stopped", f"stopped{by}; {kept}", "warning")


def _tell(event: str, line: str, level: str = "info") -> None:
    """Writes a last line to standard error."""
    if _log_format["json"]:
        line = json_line(event, level, text=line)
    print(line, file=sys.stderr)


def _show(renderable: Any) -> None:
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    Console(width=width, markup=False, highlight=False).print(renderable)


def _show_json(found: Any) -> None:
    typer.echo(json.dumps(_finite(found), indent=1, ensure_ascii=False))


def _show_either(found: tuple[Any, Any], as_json: bool) -> None:
    """A table for people, or the same for programs."""
    _show_json(found[1]) if as_json else _show(found[0])


def _show_outcome(line: str, as_json: bool) -> None:
    """The last line. Where programs read what stands before it, it goes to standard error."""
    if not as_json and not _log_format["json"]:
        _show(line)
        return
    sys.stdout.flush()
    if not _asked["quiet"]:
        _tell("done", line)


def _show_result(result: Any, as_json: bool) -> None:
    """What a search or a baseline found."""
    from evoray.report.outcome import result_outcome
    from evoray.report.tables import certificate

    if as_json:
        _show_json({"run": result.run, "reason": result.reason, **result.best})
    else:
        _show(certificate(result.best["held_out"]))
    _show_outcome(result_outcome(result), as_json)


def _finite(found: Any) -> Any:
    """The same with null for NaN and infinities, which JSON lacks."""
    if isinstance(found, dict):
        return {key: _finite(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_finite(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found


def _verb(kind: type[Settings], name: str, example: str) -> Callable[..., None]:
    """Makes a verb whose flags are the fields of `kind`."""

    def decorate(run: Callable[..., None]) -> None:
        def parameter(called: str, annotation: Any, default: Any) -> signatures.Parameter:
            return signatures.Parameter(
                called, signatures.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
            )

        parameters = [
            parameter(
                "config",
                str | None,
                typer.Option(
                    None, "--config", metavar="FILE", help="YAML file with the same names; flags win over it."
                ),
            ),
            parameter("as_json", _Json, False),
            parameter("debug", _Debug, False),
            parameter("quiet", _Quiet, False),
            parameter("log_format", _LogFormat, None),
        ]
        # What a verb has of its own stands first in its help.
        for field in sorted(kind.model_fields, key=lambda field: field not in vars(kind).get("__annotations__", {})):
            parsed = bool if kind.model_fields[field].annotation in (bool, bool | None) else str
            parameters.append(parameter(field, parsed | None, option_of(kind, field)))

        def command(**given: Any) -> None:
            file = given.pop("config")
            run(load_settings(kind, {key: given[key] for key in kind.model_fields}, file), given["as_json"])

        command.__signature__ = signatures.Signature(parameters)  # type: ignore[attr-defined]
        command.__doc__ = f"{run.__doc__}\n\n    Example: {example}"
        app.command(name)(command)

    return decorate


@_verb(
    BuildSettings,
    "build",
    "evoray build --model meta-llama/Llama-3.1-8B --data fineweb-edu --store variants",
)
def _build(settings: BuildSettings, as_json: bool) -> None:
    """Make the variants of every layer: quantized, sparse, or both, at each of several levels."""
    from evoray.report.dry_run import build_estimate
    from evoray.report.outcome import build_outcome
    from evoray.report.tables import inspect
    from evoray.run.build import run_build

    if settings.dry_run:
        _show_either(build_estimate(settings), as_json)
        return
    with _working(settings.store, LAYERS_KEPT) as progress:
        manifest = run_build(settings, progress)
    _show_either(inspect(settings.store), as_json)
    _show_outcome(build_outcome(manifest, settings.store), as_json)


@_verb(
    SearchSettings,
    "search",
    "evoray search --model meta-llama/Llama-3.1-8B --store variants --data my-text.jsonl --run run --target-bits 3",
)
def _search(settings: SearchSettings, as_json: bool) -> None:
    """Find the level of every layer, and what to drop, for a budget: bits, size, sparsity, or sublayers."""
    from evoray.report.dry_run import search_estimate
    from evoray.run.search import search

    if settings.dry_run:
        _show_either(search_estimate(settings), as_json)
        return
    with _working(settings.run, GENERATIONS_KEPT, run=True) as progress:
        result = search(settings, progress)
    _show_result(result, as_json)


@_verb(
    SweepSettings,
    "sweep",
    "evoray sweep --model meta-llama/Llama-3.1-8B --store variants --data my-text.jsonl --run sweep "
    "--target-bits 2.25,2.5,3,4",
)
def _sweep(settings: SweepSettings, as_json: bool) -> None:
    """Search for several budgets in one job, each seeding the next: one table, one picture of size against loss."""
    from evoray.report.outcome import sweep_outcome
    from evoray.report.sweep import sweep_estimate, sweep_table
    from evoray.run.report import report_if_possible
    from evoray.run.sweep import sweep

    if settings.dry_run:
        _show_either(sweep_estimate(settings), as_json)
        return
    with _working(settings.run, GENERATIONS_KEPT, run=True) as progress:
        found = sweep(settings, progress)
    report = report_if_possible([result.run for result in found.results.values()], f"{found.run}/report")
    if as_json:
        _show_json({**found.as_dict(), "report": report})
    else:
        _show(sweep_table(found))
        _show(
            f"size against loss: {report}" if report else "size against loss is drawn by: pip install 'evoray[plots]'"
        )
    _show_outcome(sweep_outcome(found), as_json)


@_verb(
    BaselineSettings,
    "baseline",
    "evoray baseline --method dp --model meta-llama/Llama-3.1-8B --store variants --data my-text.jsonl --run run-dp "
    "--target-bits 3",
)
def _baseline(settings: BaselineSettings, as_json: bool) -> None:
    """What a search has to beat, for the same budget and in the same form: uniform, random, dp, owl, scores, ..."""
    from evoray.run.baseline import run_baseline

    with _working(settings.run, NOT_KEPT, run=True) as progress:
        result = run_baseline(settings, progress)
    _show_result(result, as_json)


@_verb(
    EvalSettings,
    "eval",
    "evoray eval --configuration run --data held-out.txt",
)
def _eval(settings: EvalSettings, as_json: bool) -> None:
    """Judge a configuration, or the base model: perplexity and KL on any text, scores of lm-eval's tasks."""
    from evoray.report.tables import evaluation_table
    from evoray.report.tasks import task_table
    from evoray.run.evaluate import evaluate

    with _working(settings.configuration or settings.model or "", NOT_KEPT) as progress:
        found = evaluate(settings, progress)
    if as_json:
        _show_json(found.as_dict())
        return
    if found.perplexity is not None:
        _show(evaluation_table(found))
    if found.tasks:
        _show(task_table(found.tasks))


@_verb(ExportSettings, "export", "evoray export --configuration run --out model-3bit")
def _export(settings: ExportSettings, as_json: bool) -> None:
    """Write a checkpoint of a configuration, or the texts that EvoPress reads."""
    from evoray.run.export import run_export

    out = str(run_export(settings))
    _show_either((f"wrote {out}", {"out": out, "format": settings.format}), as_json)


@app.command("inspect")
def _inspect(
    place: Annotated[
        str,
        typer.Argument(
            help="A store, a run directory, a sweep, or a file of `layer: level` lines; or the word monotonicity."
        ),
    ],
    run: Annotated[
        str | None,
        typer.Argument(help="Run whose layer errors are compared with losses.", show_default=False),
    ] = None,
    plot: Annotated[str | None, typer.Option(help="Draws what monotonicity found: a .png, .svg or .pdf.")] = None,
    store: Annotated[str | None, typer.Option(help="Prices a configuration by the variants of this store.")] = None,
    model: Annotated[str | None, typer.Option(help="Prices what a configuration drops of this model.")] = None,
    as_json: _Json = False,
    debug: _Debug = False,
    quiet: _Quiet = False,
) -> None:
    """Show what is in a store, a run, a sweep or a configuration.

    `inspect monotonicity RUN` counts pairs of candidates of which one has less error in its layers and more loss.

    Example: evoray inspect run
    """
    if place == MONOTONICITY:
        if run is None:
            raise UserError(
                f"{MONOTONICITY} of which run? give evoray inspect {MONOTONICITY} RUN; a place of that name is "
                f"./{MONOTONICITY}"
            )
        for flag_name, value in (("--store", store), ("--model", model)):
            if value is not None:
                raise UserError(f"{flag_name} {value}: {MONOTONICITY} takes it from the run; leave it out")
        _monotonicity(run, plot, as_json)
        return
    if run is not None or plot is not None:
        given = run if run is not None else "--plot"
        raise UserError(f"{given} goes with evoray inspect {MONOTONICITY} RUN; leave it out, or write that")
    from evoray.report.tables import inspect

    _show_either(inspect(place, store, model), as_json)


def _monotonicity(run: str, plot: str | None, as_json: bool) -> None:
    from evoray.report.monotonicity import check_plot, monotonicity_figures, monotonicity_plot, monotonicity_table

    if plot is not None:
        check_plot(plot)
    # Here, because it loads torch, and a mistake in the name of the picture is told at once.
    from evoray.run.monotonicity import monotonicity

    found = monotonicity(run)
    drawn = monotonicity_plot(found, plot) if plot is not None else None
    if as_json:
        _show_json(monotonicity_figures(found) | {"plot": str(drawn) if drawn is not None else None})
        return
    _show(monotonicity_table(found))
    if drawn is not None:
        _show(f"drawn: {drawn}")


@app.command("report")
def _report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Run directories of searches, baselines, sweeps."),
    ],
    out: Annotated[
        str | None,
        typer.Option(help="Folder or URI to write to. Default: report in the first place.", show_default=False),
    ] = None,
    as_json: _Json = False,
    debug: _Debug = False,
    quiet: _Quiet = False,
) -> None:
    """Write one HTML page and PNG files of a run, or of several side by side.

    Example: evoray report run run-dp --out compared
    """
    from evoray.run.report import write_report

    report = write_report(runs, out)
    if as_json:
        _show_json(report.as_dict())
        return
    _show(f"page:     {report.page}\npictures: {len(report.pictures)} PNG files beside it")


@app.command("recipes")
def _recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A recipe, or a family of them, or a family's model.",
            show_default=False,
            autocompletion=complete_recipes,
        ),
    ] = None,
    as_json: _Json = False,
    debug: _Debug = False,
    quiet: _Quiet = False,
) -> None:
    """List settings of known experiments, or show one and the commands that run it.

    Example: evoray recipes evopress-bits/llama-3-8b/3
    """
    from evoray.report.recipes import recipe_list, recipe_page

    found = matching_recipes(name) if name is not None else recipes()
    if len(found) == 1 and found[0].name == name:
        _show_either(recipe_page(found[0]), as_json)
        return
    _show_either(recipe_list(found), as_json)


@app.command("demo")
def _demo(
    folder: Annotated[str, typer.Option(help="Where store and run go.")] = "evoray-demo",
    workers: Annotated[int | None, typer.Option(min=0, help="Workers. 0: this process, without Ray.")] = None,
    as_json: _Json = False,
    debug: _Debug = False,
    quiet: _Quiet = False,
    log_format: _LogFormat = None,
) -> None:
    """The whole job on the embedded model, in a few minutes on a laptop.

    Example: evoray demo
    """
    from evoray.report.tables import certificate
    from evoray.run.demo import run_demo

    with _working(folder, "{} keeps what is finished: the same command goes on with it") as progress:
        result = run_demo(folder, workers, progress)
    if as_json:
        _show_result(result, as_json)
        return
    _show(certificate(result.best["held_out"]))
    _show(f"variants: {folder}/store\nrun:      {result.run}\nresult:   {result.run}/best.json")
    program, place = _program(), shlex.quote(folder)
    _show(f"look:     {program} inspect {place}/run")
    _show(f"report:   {program} report {place}/run")
    _show(f"export:   {program} export --configuration {place}/run --out {place}/model")


def _program() -> str:
    """How this program was called, as a shell takes it again."""
    called, found = Path(sys.argv[0]), shutil.which("evoray")
    if called.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m evoray"
    if called.name != "evoray" or (found is not None and called.exists() and called.samefile(found)):
        return "evoray"
    return shlex.quote(sys.argv[0])


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line. Exit code 2 for a user's mistake, 1 for a failure, 130 for Ctrl-C, 143 for SIGTERM.

    Args:
        arguments: what stands behind the program's name; by default those of this process.
    """
    _asked.update(debug=False, quiet=False, told=False)
    _log_format.update(json=False)
    if not sys.stdout.isatty():
        os.environ.setdefault("TERMINAL_WIDTH", str(PIPE_HELP_WIDTH))  # read by typer when it shows help
    try:
        with stops_by_signal():
            code = app(args=arguments, prog_name="evoray", standalone_mode=False)
            sys.stdout.flush()
    except EvorayError as error:
        _fail(str(error), error.exit_code)
    except _UsageError as error:
        place = getattr(getattr(error, "ctx", None), "command_path", "evoray")
        _fail(f"{error.format_message().rstrip('.')}; see {place} --help", 2)
    except Stopped as asked:
        _tell_stopped(asked, NOT_BEGUN)
        sys.exit(128 + asked.signal)  # as shells tell the end of a process by a signal
    except (KeyboardInterrupt, typer.Abort) as asked:
        _tell_stopped(asked, NOT_BEGUN)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # Whoever read us has seen enough. What is still buffered must not fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error}{'' if _asked['debug'] else ' (--debug shows the traceback)'}", 1)
    # typer returns the code of an early exit, and what the verb returned otherwise: nothing.
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    if _asked["debug"]:
        traceback.print_exc()
    _tell("error", f"error: {' '.join(message.split())}", "error")
    sys.exit(code)
