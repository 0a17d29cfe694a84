"""Reading CSV files: cells by column name, and errors that name the file and the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from features._common.csv_table import read_csv_table
from features.errors import DataError


def write(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "t.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_rows_have_cells_by_column_and_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeffa, b\r\n1,"x, y"\r\n\r\n"two\nlines", \r\n')
    table = read_csv_table(path, required=("b",))
    assert table.columns == ("a", "b")
    assert [row.cells for row in table.rows] == [{"a": "1", "b": "x, y"}, {"a": "two\nlines", "b": ""}]
    assert [row.where for row in table.rows] == [f"{path}, line 2", f"{path}, line 5"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bad header; expected a different name for each column; got nothing"),
        (b"a,c\n", "no column b, d; expected the columns a, b, d; got a, c"),
        (b"a,b,d,a\n", "bad header"),
        (b"a,b,d,\n", "bad header"),
        (b"a,b,d\n\xff,1,2\n", "not a CSV file"),
        (b'a,b,d\n"1"2,3,4\n', "not a CSV file"),
    ],
)
def test_malformed_file_is_refused_with_a_hint(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_csv_table(path, required=("a", "b", "d"), hint="write it again")
    assert str(caught.value).startswith(f"{path}: {message}") and str(caught.value).endswith("Try: write it again")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.csv: no such file"):
        read_csv_table(tmp_path / "t.csv")


def test_row_with_wrong_number_of_cells_is_an_error_or_a_fault(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b\n1\n2,3\n4,5,6\n")
    with pytest.raises(DataError, match=r"t\.csv, line 2: wrong number of cells; expected 2; got 1\. Try: edit "):
        read_csv_table(path)
    faults: list[str] = []
    table = read_csv_table(path, faults=faults)
    assert [row.cells["a"] for row in table.rows] == ["2"]
    assert faults == [f"{path}, line {n}: wrong number of cells; expected 2; got {got}." for n, got in ((2, 1), (4, 3))]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
@pytest.mark.parametrize("text", ["a\tb\r\nü\t2\r\n", "sep=;\r\na;b\r\nü;2\r\n", "sep=|\na|b\nü|2\n"])
def test_tables_saved_by_a_spreadsheet_are_read(tmp_path: Path, encoding: str, text: str) -> None:
    table = read_csv_table(write(tmp_path, text.encode(encoding)))
    assert [row.cells for row in table.rows] == [{"a": "ü", "b": "2"}]
    assert table.rows[0].where.endswith(f"line {text.count(chr(10))}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id;v\n1,2.png;10,5\n2;11\n3;-1,25e3", ["10.5", "11", "-1.25e3"]),
        ("id;v\na;1,234", ["1.234"]),  # where semicolons separate, commas are decimal
        ("id\tv\na\t0,05\nb\t1,234", ["0.05", "1.234"]),
        ("id\tv\na\t1,234\nb\t12,345", ["1,234", "12,345"]),  # these may be thousands
        ("id;v;w\na;1,5;2.5", ["1,5"]),
        ('id,v\na,"1,5"', ["1,5"]),
        ("id;v\na;1,5\nb;x", ["1,5", "x"]),
    ],
)
def test_decimal_commas_are_read_where_they_can_be_nothing_else(tmp_path: Path, text: str, expected: list[str]) -> None:
    table = read_csv_table(write(tmp_path, text))
    assert [row.cells["v"] for row in table.rows] == expected
