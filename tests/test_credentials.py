"""Secrets stand in no text."""

import pytest
from calls import Call
from hypothesis import given
from hypothesis import strategies as st

from evoray.credentials import refuse_credentials, without_secrets
from evoray.errors import UserError
from evoray.store import Location

URIS = (
    "s3://AKIAKEY:hidden@bucket/x",
    "s3://bucket/x?secret_key=hidden",
    "s3://bucket/x?X-Amz-Signature=hidden&region=a",
    "s3://bucket/x?endpoint_override=http://user:hidden@127.0.0.1:9",
    "abfs://container:hidden@account/x",
    "gs://token:hidden@bucket/x",
    "gs://bucket/x?access_token=hidden",
    "nonsense://user:hidden@host/x",
)


@pytest.mark.parametrize("uri", URIS)
def test_a_uri_with_credentials_is_refused_without_telling_them(uri: str) -> None:
    for refuse in (refuse_credentials, Location.parse):
        with pytest.raises(UserError, match="holds credentials; give them through the environment") as caught:
            refuse(uri)
        assert "hidden" not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "a/folder",
        "name@host",
        "s3://bucket/with@sign/x",
        "s3://bucket/x?region=a&endpoint_override=http://minio:9000",
        "abfs://container@account/x",
        "token=3",
        "file:///tmp/secret/x",
    ],
)
def test_what_holds_none_is_let_be(text: str) -> None:
    refuse_credentials(text)


@pytest.mark.parametrize("uri", URIS[:2])
@pytest.mark.parametrize("option", ["model", "data", "store", "run", "droppable", "init", "judge-data", "address"])
def test_no_verb_tells_a_secret(call: Call, uri: str, option: str) -> None:
    given = {"model": "embedded", "data": "embedded", "run": "run", "drop-blocks": "1"} | {option: uri}
    told = call("search", *(word for name, value in given.items() for word in (f"--{name}", value)))
    assert told.code == 2
    assert "holds credentials" in told.err
    assert "hidden" not in told.out + told.err


@given(secret=st.text("abcXYZ0189/+", min_size=8))
def test_values_of_secret_variables_are_replaced(secret: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "DB_PASSWORD"):
            patch.setenv(name, secret)
            assert secret not in without_secrets(f"AWS said: [{secret}] and {secret}")
            patch.delenv(name)
    for uri in URIS:
        assert "hidden" not in without_secrets(f"it said {uri}, and more")
