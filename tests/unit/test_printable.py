"""Text from strangers, made safe for terminals and for formats by line."""

from __future__ import annotations

import json

import pytest

from pipeline.codec.printable import in_one_line

LINE_ENDS = "\u2028\u2029\x85"


@pytest.mark.parametrize(
    "text", ['{"a": "x\u2028y\u2029z\x85"}', '{"\u2028": "\x85 ä \U0001f600"}', "{}", '{"a": "ä"}']
)
def test_json_in_one_line_is_one_line_to_every_reader_and_means_the_same(text: str) -> None:
    line = in_one_line(text.replace("{", "{\n\r\n\t", 1).encode()).decode()
    assert line.splitlines() == [line]
    assert json.loads(line) == json.loads(text)
    assert not set(line) & set(LINE_ENDS)
