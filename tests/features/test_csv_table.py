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
