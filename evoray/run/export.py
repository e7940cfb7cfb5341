"""The verb export: from a run or a configuration to a checkpoint.

Holds: `run_export`.
"""

import json
from pathlib import Path

from evoray.errors import UserError
from evoray.export import export_hf
from evoray.run.directory import BEST
from evoray.run.evaluate import configuration_of
from evoray.settings import ExportSettings
from evoray.store import Location, VariantStore


def run_export(settings: ExportSettings) -> Path:
    """Writes the checkpoint; model and store are those of the run where they are not given.

    Raises:
        UserError: a configuration without a store, or one that does not fit.
    """
    configuration = configuration_of(settings.configuration)
    store = settings.store or _of_run(settings.configuration, "store")
    if store is None:
        raise UserError("--store is missing: a configuration file does not say where its variants are")
    model = settings.model or _of_run(settings.configuration, "model") or VariantStore.open(store).manifest.model
    return export_hf(
        model,
        store,
        configuration,
        settings.out,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        allow_partial=settings.allow_partial,
    )


def _of_run(place: str, key: str) -> str | None:
    location = Location.parse(place)
    if (location / BEST).exists():
        location = location / BEST
    try:
        return str(json.loads(location.read_bytes())[key])
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        return None
