"""The verb export: from a run or a configuration to a checkpoint.

Holds: `run_export`.
"""

import json
from pathlib import Path
from typing import Any

from evoray.errors import UserError
from evoray.export import export_hf
from evoray.run.directory import BEST
from evoray.run.named import configuration_of
from evoray.run.plan import quantized_store
from evoray.settings import ExportSettings
from evoray.store import Location


def run_export(settings: ExportSettings) -> Path:
    """Writes the checkpoint; model, revision and store are those of the run where they are not given.

    Raises:
        UserError: a configuration without a store, or one that does not fit.
    """
    configuration = configuration_of(settings.configuration)
    run = _best(settings.configuration)
    store = settings.store or run.get("store")
    if store is None:
        raise UserError("--store is missing: a configuration file does not say where its variants are")
    manifest = quantized_store(store).manifest
    # Model and revision belong together: a revision of one model says nothing of another.
    model, revision = settings.model, settings.revision
    if model is None:
        model, found = (run["model"], run.get("revision")) if "model" in run else (manifest.model, manifest.revision)
        revision = revision or found
    return export_hf(
        model,
        store,
        configuration,
        settings.out,
        revision=revision,
        trust_remote_code=settings.trust_remote_code,
        allow_partial=settings.allow_partial,
    )


def _best(place: str) -> dict[str, Any]:
    """What the best.json at a place holds; nothing for a plain configuration file."""
    location = Location.parse(place)
    if (location / BEST).exists():
        location = location / BEST
    try:
        found = json.loads(location.read_bytes())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
