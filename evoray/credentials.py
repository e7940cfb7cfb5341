"""Credentials come from the environment, and stand in no text: settings, logs, errors and run directories are read by
many.

Holds: `refuse_credentials`, `without_secrets`.
"""

import os
import re
from urllib.parse import urlsplit

from evoray.errors import UserError

_URI = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]*://")
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SECRET_PARAMETER = re.compile(
    r"([\w.\-]*(?:secret|password|token|access_?key|credential|signature|\bsig)[\w.\-]*=)[^&\s'\"]+", re.IGNORECASE
)
_USER = re.compile(r"//[^/@\s]+@")


def without_secrets(text: str) -> str:
    """The first line of a text, without values of secret environment variables and without credentials of URIs."""
    line = (text.splitlines() or [""])[0]
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET_NAME.search(name):
            line = line.replace(value, "***")
    return _SECRET_PARAMETER.sub(r"\1***", _USER.sub("//***@", line))[:300]


def refuse_credentials(text: str) -> None:
    """Sees that a text is no URI with credentials; any other text is let be.

    Raises:
        UserError: it is one. The message does not hold them.
    """
    if not _URI.match(text):
        return
    parts = urlsplit(text)
    shown = f"{parts.scheme}://{parts.netloc}{parts.path}"
    # Azure writes the container before the @.
    if "@" in parts.netloc and not (parts.scheme.lower().startswith("abfs") and ":" not in parts.netloc):
        shown = f"{parts.scheme}://***@{parts.netloc.rpartition('@')[2]}{parts.path}"
    elif _SECRET_PARAMETER.search(f"?{parts.query}") or "@" in parts.query:
        shown = f"{shown}?***"
    else:
        return
    raise UserError(f"the URI {shown} holds credentials; give them through the environment instead")
