"""The verb export: from a run or a configuration to a checkpoint.

Holds: `run_export`.
"""

from pathlib import Path

from evoray.export import export_evopress, export_hf
from evoray.model import checkpoint_facts
from evoray.run.named import configuration_of, with_sources
from evoray.settings import ExportSettings


def run_export(settings: ExportSettings) -> Path:
    """Writes the checkpoint or texts; model, revision and store are those of the run where they are not given.

    Raises:
        UserError: a configuration that needs a store and has none, or one that does not fit.
    """
    configuration = configuration_of(settings.configuration)
    settings = with_sources(settings)
    assert settings.model is not None
    if settings.format == "evopress":
        facts = checkpoint_facts(
            settings.model, settings.revision, settings.trust_remote_code, allow_partial=settings.allow_partial
        )
        return export_evopress(facts, configuration, settings.out)
    return export_hf(
        settings.model,
        settings.store,
        configuration,
        settings.out,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        allow_partial=settings.allow_partial,
    )
