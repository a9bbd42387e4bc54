"""Several labels a row as scikit-learn has them: an indicator matrix, a frame of one, or a list of lists of labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from iai_hf import values
from iai_hf.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence


class LabelSets(NamedTuple):
    """Labels of rows.

    Attributes:
        rows: a tuple of `classes` a row.
        classes: of a matrix its columns, in order; of lists the labels that occur, ascending.
        matrix: whether they came as one.
    """

    rows: list[tuple[Any, ...]]
    classes: list[Any]
    matrix: bool

    def named(self, classes: Any) -> LabelSets:
        """The same with classes that are known ahead: names of a matrix's columns, or more than those that occur.

        Raises:
            DataError: not one for each column, or a label that occurs is not among them.
        """
        given = list(dict.fromkeys(numpy.asarray(classes).tolist()))
        if self.matrix:
            if len(given) != len(self.classes):
                raise DataError(f"y has {len(self.classes)} columns and classes {len(given)} names; expected as many")
            name = dict(zip(self.classes, given, strict=True))
            return LabelSets([tuple(name[label] for label in row) for row in self.rows], given, True)
        if unknown := [label for label in self.classes if label not in given]:
            raise DataError(f"y has {unknown[:5]}, which classes does not name; name all labels, or none")
        return self._replace(classes=given)


def are_sets(y: Any) -> bool:
    """Whether `y` has any number of labels a row: a matrix of two columns or more, or rows that are lists."""
    if len(getattr(y, "shape", ())) == 2:
        return bool(y.shape[1] > 1)
    try:
        return any(map(values.is_set, y)) and not _is_column(y)
    except TypeError:
        return False


def label_sets(y: Any, name: str) -> LabelSets:
    """The labels of rows that `are_sets`.

    Raises:
        DataError: a matrix of other values than 0 and 1, columns that are called alike, or a row that is no list of
            labels.
    """
    columns = [*y.columns] if hasattr(y, "columns") else None
    matrix = _matrix(y)
    if matrix is None:
        rows = [values.label_set(row, f"{name}[{number}]") for number, row in enumerate(y)]
        return LabelSets([*rows], sorted({label for row in rows for label in row}), False)
    if not numpy.isin(matrix, (0, 1)).all():
        odd = matrix[~numpy.isin(matrix, (0, 1))][0]
        raise DataError(
            f"{name} has {odd!r} in a matrix of {matrix.shape[1]} columns; expected an indicator matrix, 1 where a "
            "label applies and 0 where not, one label a row, or lists of labels' names"
        )
    classes = columns if columns is not None else list(range(matrix.shape[1]))
    if len(set(map(str, classes))) < len(classes):
        raise DataError(f"{name} has columns that are called alike; expected one for each label")
    return LabelSets([tuple(classes[i] for i in row.nonzero()[0].tolist()) for row in matrix], classes, True)


def indicators(rows: Sequence[Sequence[Any]], classes: Sequence[Any]) -> numpy.ndarray:
    """Which of the classes each row has, int64 `[n, C]`."""
    place = {label: number for number, label in enumerate(classes)}
    found = numpy.zeros((len(rows), len(place)), dtype=numpy.int64)
    for number, row in enumerate(rows):
        found[number, [place[label] for label in row]] = 1
    return found


def _is_column(y: Any) -> bool:
    """Whether it is one label a row, in lists of one: numbers alone, since a text in a list is a set of one label."""
    return all(len(row) == 1 and not isinstance(row[0], str) for row in map(list, y))


def _matrix(y: Any) -> Any:
    """`y` as an array `[n, columns]`, None where it is lists of names, or of different lengths."""
    if hasattr(y, "toarray"):
        return y.toarray()
    if len(getattr(y, "shape", ())) == 2:
        made = numpy.asarray(y)
    else:
        rows = [*y]
        if len({len(row) if values.is_set(row) and hasattr(row, "__len__") else -1 for row in rows}) != 1:
            return None
        if any(isinstance(row, (set, frozenset)) for row in rows):
            return None
        made = numpy.asarray([[*row] for row in rows], dtype=object)
        if made.ndim != 2 or not made.size or any(isinstance(value, str) for value in made.ravel()):
            return None
    if made.dtype == object:
        plain = [value.item() if hasattr(value, "item") else value for value in made.ravel().tolist()]
        if any(isinstance(value, str) or values.missing(value) for value in plain):
            missing = next(value for value in plain if isinstance(value, str) or values.missing(value))
            raise DataError(
                f"y has {missing!r} in a matrix of {made.shape[1]} columns; expected 0 and 1, or lists of labels"
            )
        made = numpy.asarray(plain).reshape(made.shape)
    return made
