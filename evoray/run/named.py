"""Which configuration a user's path names. Imports nothing heavy, so that `evoray inspect` answers at once.

Holds: `configuration_of`.
"""

from evoray.configuration import Configuration, parse_configuration
from evoray.errors import UserError
from evoray.run.directory import BEST
from evoray.store import Location


def configuration_of(place: str) -> Configuration:
    """The configuration in a file of `layer: level` lines, a best.json, or a run directory.

    Raises:
        UserError: there is none.
    """
    location = Location.parse(place)
    if (location / BEST).exists():
        location = location / BEST
    elif location.local_path is not None and location.local_path.is_dir():
        raise UserError(
            f"{place} has no {BEST}; give a run directory with a finished generation, or a configuration file"
        )
    try:
        # Some editors put a byte order mark first.
        return parse_configuration(location.read_bytes().decode("utf-8-sig"), str(location))
    except FileNotFoundError:
        raise UserError(
            f"no configuration at {place}; give a file of `layer: level` lines or a run directory"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"the configuration {place} is no text; give a file of `layer: level` lines") from None
