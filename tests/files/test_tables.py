"""Tables of samples: headers, labels, and what is said of a bad line."""

import numpy as np
import pytest

from sa_jax.files import tables
from sa_jax.files.tables import read_table
from tests.conftest import refusal


def save(folder, text, encoding="utf-8"):
    path = folder / "own.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("text", "label", "inputs", "labels", "classes"),
    [
        ("1,2,0\n3,4,1\n", None, [[1, 2], [3, 4]], [0, 1], ()),
        ("a,b,c\n1,2,0\n3,4.5,1.0\n", None, [[1, 2], [3, 4.5]], [0, 1], ()),
        ("1,2,pear\r\n3,4,apple\r\n", None, [[1, 2], [3, 4]], [1, 0], ("apple", "pear")),
        ("kind,a,b\n7,1,2\n5,3,4\n", "kind", [[1, 2], [3, 4]], [7, 5], ()),
        ("1,kind,2\n1,x,2\n3,y,4\n", "kind", [[1, 2], [3, 4]], [0, 1], ("x", "y")),
        ("0,1,label\n8,9,x\n8,7,x\n", None, [[8, 9], [8, 7]], [0, 0], ("x",)),  # as pandas names columns
        ("1.5,2\n3,4\n", "none", [[1.5, 2], [3, 4]], None, ()),
        ('"a, b",c\n\n" 1 ",2\n\n3,"4"\n', "none", [[1, 2], [3, 4]], None, ()),
        ("1,2,1\n3,4,x\n", None, [[1, 2], [3, 4]], [0, 1], ("1", "x")),
    ],
)
def test_samples_and_labels_are_read(tmp_path, text, label, inputs, labels, classes):
    found = read_table(save(tmp_path, text), label)
    np.testing.assert_array_equal(found.inputs, np.float32(inputs), strict=True)
    assert (found.labels is None) == (labels is None) and found.classes == classes
    if labels is not None:
        np.testing.assert_array_equal(found.labels, np.array(labels), strict=True)


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = save(tmp_path, "a,b\n1,2\n", "utf-8-sig")
    assert read_table(path, "a").inputs.tolist() == [[2]] and tables.count_columns(path) == 2


@pytest.mark.parametrize(
    ("text", "label", "problem"),
    [
        ("", None, "is empty: it must be a .csv file"),
        ("\n\n", None, "is empty: it must be a .csv file"),
        ("a,b,c\n", None, "line 1: there is no sample below the header"),
        ("1,2,0\n1,2\n", None, "line 2: there are 2 cells, but line 1 has 3"),
        ("a,b,c\n\n1,2,0\n1,2,3,0\n", None, "line 4: there are 4 cells, but line 1 has 3"),
        ("1,2,0\n1,,0\n", None, "line 2, column 2: the cell is empty"),
        ("a,b,c\n1,2,0\n1,2,\n", None, "line 3, column 3 (c): the label is missing"),
        ("a,b,c\n1,two,0\n", None, "line 2, column 2 (b): 'two' is not a number; only labels may be text"),
        ("c,a,b\n0,1,2\n0,1,two\n", "c", "line 3, column 3 (b): 'two' is not a number"),
        ("1,2,0\n1,nan,0\n", None, "line 2, column 2: it is NaN, infinite or beyond float32"),
        ("c,a,b\n0,1,1e39\n", "c", "line 2, column 3 (b): it is NaN"),
        ("1,2,0\n1,2,0.5\n", None, "line 2, column 3: labels must be whole numbers or text, not 0.5"),
        ("1,2,0\n1,2,9e20\n", None, "line 2, column 3: labels must be whole numbers or text, not 9e20"),
        ("1;2;0\n", None, "line 1: there is only one cell: cells are separated by commas"),
        (",a,b\n0,1,2\n", None, "line 1: column 1 is empty; pandas needs to_csv(index=False)"),
        ("a,b,c\n1,2,0\n", "d", "has no column 'd'; its columns are a, b, c"),
        ("a,b,a\n1,2,0\n", "a", "has several columns 'a'; its columns are a, b, a"),
        ("1,2,0\n", "c", "has no header, and so no column 'c'"),
        (f"1,2,0\n1,{'9' * 200_000},0\n", None, "line 2: it is not a line of a .csv file: field larger than"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, label, problem):
    path = save(tmp_path, text)
    with refusal(str(path), problem):
        read_table(path, label)


def test_other_files_are_refused(tmp_path):
    with refusal("is not a text file in UTF-8"):
        read_table(save(tmp_path, "a,b\n1,ä\n", "latin-1"))
    with refusal("cannot be read: No such file or directory"):
        tables.count_columns(tmp_path / "missing.csv")


def test_numbered_labels_must_be_whole():
    assert tables.numbered(["1", "0.5"]) == (None, ())
