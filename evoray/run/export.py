"""The verb export: from a run or a configuration to a checkpoint.

Holds: `run_export`.
"""

from pathlib import Path

from evoray.export import Depth, ExportOptions, ExportSource, export
from evoray.run.named import configuration_of, run_of, with_sources
from evoray.settings import ExportSettings
from evoray.store import Location


def run_export(settings: ExportSettings) -> Path | Location:
    """Writes the checkpoint or texts; model, revision and store are those of the run where they are not given.

    Returns:
        Where it is.

    Raises:
        UserError: a configuration that needs a store and has none, or one that does not fit.
    """
    configuration = configuration_of(settings.configuration)
    settings = with_sources(settings)
    assert settings.model is not None
    source = ExportSource.open(
        settings.model,
        settings.store,
        configuration,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        allow_partial=settings.allow_partial,
        options=ExportOptions(depth=Depth(settings.depth), allow_dense=settings.allow_dense),
        best=run_of(settings.configuration),
    )
    return export(settings.format, source, settings.out)
