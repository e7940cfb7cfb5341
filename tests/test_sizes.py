import pytest

from evoray.errors import UserError
from evoray.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("3.5GB", 3_500_000_000),
        ("3.2GiB", 3_435_973_836),
        ("900MB", 900_000_000),
        ("1 kib", 1024),
        ("2T", 2 * 10**12),
        ("12345", 12345),
        (12345, 12345),
        ("64b", 64),
        (".5k", 500),
    ],
)
def test_sizes_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "3.5XB", "-3GB", "1e9", "0", "0.5", "GB", "nan"])
def test_what_is_no_size_is_named(text):
    with pytest.raises(UserError, match=r"3\.5GB") as raised:
        parse_size(text)
    assert repr(text) in str(raised.value)
