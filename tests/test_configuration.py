"""Configurations as text: round trips, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoray.configuration import alias, alias_of, configuration_text, parse_configuration
from evoray.errors import UserError

NAMES = st.from_regex(r"[a-z_0-9]{1,6}(\.[a-z_0-9:]{1,6}){0,3}", fullmatch=True).filter(
    lambda name: not name.startswith(":")
)
LEVELS = st.from_regex(r"[a-z0-9.]{1,5}", fullmatch=True)


@given(st.dictionaries(NAMES, LEVELS, min_size=1))
def test_what_is_written_is_read(configuration: dict[str, str]) -> None:
    assert parse_configuration(configuration_text(configuration)) == configuration
    assert parse_configuration(json.dumps(configuration)) == configuration
    assert parse_configuration(json.dumps({"configuration": configuration, "bits": 3})) == configuration


def test_comments_blank_lines_and_a_byte_order_mark() -> None:
    assert parse_configuration("\ufeff# found\n\na.b : 3 \n  c: base\n") == {"a.b": "3", "c": "base"}
    assert parse_configuration('\ufeff{"a": 3}') == {"a": "3"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no layer"),
        ("# nothing\n", "names no layer"),
        ("a: 3\nhello world\n", "line 2: 'hello world' is not `layer: level`"),
        ("a: 3\na: 4\n", "line 2: a is named twice"),
        ("a:\n", "is not `layer: level`"),
        ('{"a": 3, "a": 4}', "a is named twice"),
        ("{nope", "begins like JSON but is none"),
        ("{}", "holds no configuration"),
        ('{"configuration": 3}', "holds no configuration"),
        ('{"a": null}', "the level of a is None"),
        ('{"a": true}', "the level of a is True"),
        ("[1, 2]", "is not `layer: level`"),
    ],
)
def test_what_is_no_configuration(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_configuration(text, "here")
    assert said in str(caught.value)
    assert str(caught.value).startswith("here")


@given(st.lists(st.sampled_from(["none", "attn", "mlp", "attn+mlp"]), min_size=1))
def test_depth_files_of_evopress(lines: list[str]) -> None:
    found = parse_configuration("".join(f"{line}\n" for line in lines))
    assert found == {
        f"blocks.{block}.{kind}": "dropped" if kind in line.split("+") else "kept"
        for block, line in enumerate(lines)
        for kind in ("attn", "mlp")
    }
    assert parse_configuration(configuration_text(found)) == found


def test_negative_levels_and_aliases() -> None:
    assert parse_configuration("a.b: -3\na.c: 0\n") == {"a.b": "-3", "a.c": "0"}
    assert alias_of(alias(12, "mlp")) == (12, "mlp")
    assert [alias_of(name) for name in ("x.blocks.1.mlp", "blocks.01.mlp", "blocks.1.norm")] == [None] * 3
    with pytest.raises(UserError, match="line 2: 'attn-mlp' is not"):
        parse_configuration("a: none\nattn-mlp\n")
