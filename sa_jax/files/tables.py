"""Reads .csv tables of samples: one column of labels, numbers in all others."""

import array
import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from sa_jax.types import InputError

# In place of a column's name: all columns are features.
NO_LABELS = "none"
# Characters of a cell, and names of columns, that a message shows.
LONGEST, MOST_NAMES = 40, 10


class Table(NamedTuple):
    """The samples of a table.

    Attributes:
      inputs: the features.
      labels: the labels, numbers as the file has them; None where no column holds labels.
      classes: the names of the classes where labels are text: label `i` stands for `classes[i]`. Else empty.
    """

    inputs: np.ndarray  # float32 [samples, features]
    labels: np.ndarray | None  # int64 [samples]
    classes: tuple[str, ...]


def count_columns(path: Path) -> int:
    """Returns the number of columns of a .csv file, the labels included.

    Raises:
      InputError: as for `read_table`.
    """
    return len(next(_lines(path))[1])


def read_table(path: Path, label: str | None = None) -> Table:
    """Reads a .csv file of cells separated by commas, with or without a header.

    The first line is a header if a feature in it is not a number, or if its features count 0, 1, 2 and so on.

    Args:
      path: the file, text in UTF-8.
      label: name of the column that holds the labels; None for the last column, 'none' for no column. Labels are
        whole numbers or text. Names in text are sorted and numbered from 0.

    Raises:
      InputError: the file cannot be read or holds no samples; lines have different numbers of cells; a cell is
        empty, or a feature is not a finite number; labels are fractions; or there is no such column.
    """
    rows = _lines(path)
    first_line, first = next(rows)
    width = len(first)
    names = _header(path, first_line, first, label)
    label_at = _label_column(path, names, width, label)
    if width == (label_at is not None):
        _refuse(path, first_line, "there is only one cell: cells are separated by commas, one of them the label")
    features = [number for number in range(width) if number != label_at]
    lines, words, numbers = [], [], array.array("d")
    for line, row in rows if names else itertools.chain([(first_line, first)], rows):
        if len(row) != width:
            _refuse(path, line, f"there are {len(row)} cells, but line {first_line} has {width}")
        cells = row
        if label_at is not None:
            cells = row[:label_at] + row[label_at + 1 :]
            words.append(row[label_at].strip())
            if not words[-1]:
                _refuse_cell(path, line, label_at, names, "the label is missing")
        try:
            numbers.extend(map(float, cells))
        except ValueError:
            wrong = next(number for number in features if not _is_number(row[number]))
            cell = row[wrong].strip()[:LONGEST]
            what = (
                f"{cell!r} is not a number; only labels may be text: --label or data.csv#NAME name their column"
                if cell
                else "the cell is empty"
            )
            _refuse_cell(path, line, wrong, names, what)
        lines.append(line)
    if not lines:
        _refuse(path, first_line, "there is no sample below the header")
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        inputs = np.frombuffer(numbers).astype(np.float32).reshape(len(lines), len(features))
    if not (finite := np.isfinite(inputs)).all():
        sample, feature = np.argwhere(~finite)[0]
        _refuse_cell(path, lines[sample], features[feature], names, "it is NaN, infinite or beyond float32")
    if label_at is None:
        return Table(inputs, None, ())
    labels, classes = numbered(words)
    if labels is None:
        fraction = next(number for number, word in enumerate(words) if not _is_whole(word))
        what = f"labels must be whole numbers or text, not {words[fraction]}; name the column of labels, or 'none'"
        _refuse_cell(path, lines[fraction], label_at, names, what)
    return Table(inputs, labels, classes)


def numbered(words: Sequence[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Returns labels as numbers, int64 `[samples]`, and the names of their classes where they are not numbers.

    The labels are None if they are numbers that are not whole.

    >>> numbered(["pear", "apple", "pear"])
    (array([1, 0, 1]), ('apple', 'pear'))
    >>> numbered(["2", "0", "1.0"])
    (array([2, 0, 1]), ())
    """
    if all(map(_is_number, words)):
        whole = all(map(_is_whole, words))
        return (np.array([int(float(word)) for word in words], np.int64) if whole else None), ()
    classes, labels = np.unique(np.array(words), return_inverse=True)
    return labels.astype(np.int64).ravel(), tuple(map(str, classes))


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line that is not empty, and the number of the line; at least one line."""
    line, found = 0, False
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for row in reader:
                line = reader.line_num
                if row:
                    found = True
                    yield line, row
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8") from None
    except csv.Error as error:
        _refuse(path, line + 1, f"it is not a line of a .csv file: {error}")
    if not found:
        raise InputError(f"{path} is empty: it must be a .csv file with one sample in each line")


def _header(path: Path, line: int, first: Sequence[str], label: str | None) -> list[str]:
    """The names of the columns; none where the first line holds a sample."""
    names = [name.strip() for name in first]
    features = names[:-1] if label is None else names
    counted = len(features) > 1 and features == [str(number) for number in range(len(features))]
    if label in (None, NO_LABELS):
        is_header = counted or not all(map(_is_number, features))
    else:
        is_header = label in names or not any(map(_is_number, names))
    if not is_header:
        return []
    if "" in names:
        column = names.index("") + 1
        _refuse(path, line, f"column {column} is empty; pandas needs to_csv(index=False)")
    return names


def _label_column(path: Path, names: Sequence[str], width: int, label: str | None) -> int | None:
    if label is None:
        return width - 1
    if label == NO_LABELS:
        return None
    if not names:
        raise InputError(f"{path} has no header, and so no column {label!r}: its last column holds the labels")
    if names.count(label) != 1:
        known = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
        many = "several columns" if label in names else "no column"
        raise InputError(f"{path} has {many} {label!r}; its columns are {known}")
    return names.index(label)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_whole(text: str) -> bool:
    return abs(float(text)) < 2**31 and float(text).is_integer()


def _refuse(path: Path, line: int, problem: str) -> NoReturn:
    raise InputError(f"{path}, line {line}: {problem}")


def _refuse_cell(path: Path, line: int, column: int, names: Sequence[str], problem: str) -> NoReturn:
    name = f" ({names[column]})" if names else ""
    raise InputError(f"{path}, line {line}, column {column + 1}{name}: {problem}")
