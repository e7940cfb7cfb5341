"""URIs of places: what they may say, and the file system behind them.

Holds: `open_uri`, `is_users`, `lacks_token`.

Credentials come from the environment or the object store's usual chain, never from the URI.
"""

from __future__ import annotations

import datetime
import functools
import os
import re
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from evoray.credentials import refuse_credentials, without_secrets
from evoray.errors import UserError

CONNECT_SECONDS = 10.0
"""For a connection to object storage."""

STALLED_SECONDS = 60.0
"""After so long without a byte a request counts as failed. Storage under load takes seconds to begin an answer."""

S3_OPTIONS = ("endpoint_override", "region", "scheme")
"""What may stand behind the question mark of an `s3://` URI."""

GS_OPTIONS = ("endpoint_override", "scheme", "project_id")
"""What may stand behind the question mark of a `gs://` URI."""

GS_TRIES = datetime.timedelta(seconds=1)
"""How long Google's client makes a request again by itself, the least it can be told: tries are made, and counted, in
one place for all kinds of storage. By itself it would go on for 15 minutes where there is no network."""

# What object stores say when it is the user who has to act: no credentials, wrong ones, no rights, no bucket.
_USERS = re.compile(
    r"credential|access.?denied|forbidden|unauthori[sz]ed|no.?such.?bucket|bucket.{0,40}(not found|does not exist)"
    r"|invalid.?access.?key|signature|permission|could not resolve region|HTTP status 30[17]|\b40[13]\b",
    re.IGNORECASE,
)


def is_users(text: str) -> bool:
    """Whether an error of an object store asks the user to act; trying again would not help."""
    return bool(_USERS.search(text))


def lacks_token(text: str) -> bool:
    """Whether an error says that Google gave no access token. Trying again helps where its server was away for a
    moment, and else it is the user who has to act."""
    return "access token to authenticate" in text


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """File system and path behind a URI of anything but this machine.

    Raises:
        UserError: an unknown scheme, credentials in the URI, no bucket, or a file system that cannot be reached.
    """
    refuse_credentials(uri)
    parts = urlsplit(uri)
    scheme = parts.scheme.lower()
    if scheme in ("s3", "gs", "gcs") and not parts.netloc:
        raise UserError(f"{uri} names no bucket; write {scheme}://bucket/folder")
    try:
        if scheme == "s3":
            return _s3(parts), f"{parts.netloc}{unquote(parts.path)}".rstrip("/")
        if scheme in ("gs", "gcs"):
            return _gs(parts), f"{parts.netloc}{unquote(parts.path)}".rstrip("/")
        filesystem, path = _any(uri)
        return filesystem, path.rstrip("/")
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        raise UserError(
            f"cannot use {without_secrets(uri)}: {without_secrets(str(error))}; give a folder, or a URI that "
            "pyarrow.fs knows (s3://, gs://, file://) with credentials in the environment"
        ) from None


def _options(parts: SplitResult, known: tuple[str, ...]) -> dict[str, str]:
    """What stands behind the question mark.

    Raises:
        UserError: something that is not known.
    """
    options = dict(parse_qsl(parts.query))
    if unknown := [name for name in options if name not in known]:
        place = f"{parts.scheme}://{parts.netloc}"
        raise UserError(f"the URI of {place} says '{unknown[0]}'; it may say {', '.join(known)}")
    return options


def _s3(parts: SplitResult) -> pafs.FileSystem:
    options = _options(parts, S3_OPTIONS)
    endpoint = options.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL")
    region = options.get("region")
    if region is None and endpoint is None:
        region = _s3_region(parts.netloc)
    return _s3_client(endpoint, region, options.get("scheme"))


def _gs(parts: SplitResult) -> pafs.FileSystem:
    options = _options(parts, GS_OPTIONS)
    return _gs_client(options.get("endpoint_override"), options.get("scheme"), options.get("project_id"))


# Kept, because making a client takes longer than using it.


@functools.lru_cache(maxsize=16)
def _s3_client(endpoint: str | None, region: str | None, scheme: str | None) -> pafs.FileSystem:
    return pafs.S3FileSystem(
        endpoint_override=endpoint,
        region=region,
        scheme=scheme,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=STALLED_SECONDS,
        # A small file is one request instead of three.
        allow_delayed_open=True,
        # Tries are made, and counted, in one place for all kinds of storage.
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),
    )


@functools.lru_cache(maxsize=16)
def _gs_client(endpoint: str | None, scheme: str | None, project: str | None) -> pafs.FileSystem:
    return pafs.GcsFileSystem(endpoint_override=endpoint, scheme=scheme, project_id=project, retry_time_limit=GS_TRIES)


@functools.lru_cache(maxsize=64)
def _s3_region(bucket: str) -> str:
    return str(pafs.resolve_s3_region(bucket))


@functools.lru_cache(maxsize=64)
def _any(uri: str) -> tuple[pafs.FileSystem, str]:
    filesystem, path = pafs.FileSystem.from_uri(uri)
    return filesystem, path
