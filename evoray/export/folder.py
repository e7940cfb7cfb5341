"""The folder of an export, which appears whole or not at all.

Holds: `new_folder`, `appearing`.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evoray.errors import EvorayError, UserError
from evoray.store import Location


def new_folder(out: str) -> Path:
    """Where an export goes.

    Raises:
        UserError: something is there already, or it is on object storage.
    """
    # Written as a path, a URI would be a folder of that name in the present one.
    # Asked for before it is parsed, which would look for the bucket.
    target = None if "://" in out and not out.lower().startswith("file:") else Location.parse(out).local_path
    if target is None:
        raise UserError(f"--out {out} is on object storage, and an export is a folder; give one, and copy it there")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--out {out} holds something already; give a new folder")
    return target


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A folder to write into, which takes the target's place when all went well, and else is gone.

    Raises:
        UserError: nothing can be written there.
        EvorayError: writing failed.
    """
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
