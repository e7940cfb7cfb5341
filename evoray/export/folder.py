"""The folder of an export, which appears whole or not at all.

Holds: `new_folder`, `appearing`.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evoray.errors import EvorayError, UserError
from evoray.store import Location

LAST = "config.json"
"""Of a checkpoint what every loader asks for first; so it is the last to appear on object storage."""


def new_folder(out: str) -> Location:
    """Where an export goes.

    Raises:
        UserError: something is there already, or the place can't be reached.
    """
    target = Location.parse(out)
    path = target.local_path
    if bool(target.list()) if path is None else path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"--out {target} holds something already; give a new folder")
    return target


@contextmanager
def appearing(place: Location) -> Iterator[Path]:
    """A folder to write into, which takes the target's place when all went well, and else is gone.

    On object storage, which has no folders, the files of a checkpoint appear one by one, and its config.json last.

    Raises:
        UserError: nothing can be written there.
        EvorayError: writing failed.
    """
    target = place.local_path
    if target is None:
        with tempfile.TemporaryDirectory(prefix="evoray-") as folder:
            yield Path(folder)
            _upload(Path(folder), place)
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the last step is a rename.
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise UserError(f"--out {target} can't be written: {error.strerror}; give another folder") from None
    try:
        yield stage
        if target.exists():
            target.rmdir()
        # Temporary folders and safetensors files come closed to others; a checkpoint is as open as any new file.
        mask = os.umask(0)
        os.umask(mask)
        stage.chmod(0o777 & ~mask)
        for file in stage.rglob("*"):
            file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)
        stage.rename(target)
    except OSError as error:
        raise EvorayError(f"--out {target} can't be written: {error.strerror}") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _upload(stage: Path, place: Location) -> None:
    files = sorted(str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file())
    files.sort(key=lambda name: name == LAST)
    try:
        for name in files:
            (place / name).upload_file(stage / name)
    except BaseException:
        with contextlib.suppress(EvorayError):
            for name in files:
                (place / name).delete()
        raise
