"""Files that name what may be dropped.

Holds: `site_list`.
"""

from collections.abc import Sequence

from evoray.configuration import DEPTH_WORDS, DROPPED, parse_configuration
from evoray.errors import UserError
from evoray.model import Droppable
from evoray.run.named import resolve_sites
from evoray.store import Location


def site_list(place: str, droppable: Sequence[Droppable]) -> tuple[str, ...]:
    """The sites that a file names: a name a line, or a depth file of EvoPress, whose droppable parts are meant.

    Args:
        place: of the file.
        droppable: what the model can do without.

    Raises:
        UserError: the file can't be read, names nothing, or something that can't be dropped.
    """
    try:
        text = Location.parse(place).read_bytes().decode("utf-8-sig")
    except UserError as error:
        # A folder, or a place that can't be read; it says which, but not who asked for it.
        raise UserError(f"--droppable: {error}") from None
    except FileNotFoundError:
        raise UserError(f"--droppable {place}: no such file; give one with a site, or none|attn|mlp, a line") from None
    except UnicodeDecodeError:
        raise UserError(f"--droppable {place} is no text; give a file with a site, or none|attn|mlp, a line") from None
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    if not lines:
        raise UserError(f"--droppable {place} names nothing; name sites, one a line, or leave it out")
    if all(line in DEPTH_WORDS for line in lines):
        try:
            found = resolve_sites(parse_configuration(text, place), droppable)
        except UserError as error:
            raise UserError(f"--droppable {place}: {error}") from None
        return tuple(name for name, level in found.items() if level == DROPPED)
    known = {site.name for site in droppable}
    if unknown := [line for line in lines if line not in known]:
        raise UserError(
            f"--droppable {place} names {unknown[0][:80]!r}, which the model can't do without; "
            f"its sites run from {droppable[0].name} to {droppable[-1].name}"
        )
    return tuple(dict.fromkeys(lines))
