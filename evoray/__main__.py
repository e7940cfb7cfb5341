"""`python -m evoray`, and what the command `evoray` runs.

Who is asked to stop while the command line is still being imported stops in order, too.
"""

import sys
from typing import NoReturn

from evoray.stopping import Stopped, stops_by_signal


def main() -> NoReturn:
    """Runs the command line; see `evoray.cli.main`."""
    try:
        with stops_by_signal():
            from evoray import cli

            cli.main()
    except Stopped as asked:
        print(f"stopped by {asked}; nothing is left of it: the same command begins it anew", file=sys.stderr)
        sys.exit(128 + asked.signal)


if __name__ == "__main__":
    main()
