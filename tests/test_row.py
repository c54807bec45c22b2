"""results.tsv as other people's programs read it."""

import csv

import pandas
import pytest
from loop_helpers import make_row

from autoresearch.row import HEADER, row_line

ODD = [
    '"',
    '"quoted" at first',
    '"never closed',
    'in the "middle"',
    '"" twice',
    "'",
    "a\tb\nc\r\x0b\u2028d\x85e",
    "=1+1",
    "\ufeff",
]


def test_a_table_is_read_whole_whatever_its_cells_hold(tmp_path):
    rows = [make_row(number=n, description=text, reason=text, hypothesis=text) for n, text in enumerate(ODD)]
    path = tmp_path / "results.tsv"
    path.write_text(HEADER + "".join(map(row_line, rows)))
    expected = ['"', '"quoted" at first', '"never closed', 'in the "middle"', '"" twice', "'", "a b c d e", "=1+1", ""]
    with open(path, newline="") as file:
        read = list(csv.DictReader(file, delimiter="\t", strict=True))
    assert [row["description"] for row in read] == [row["hypothesis"] for row in read] == expected
    table = pandas.read_csv(path, sep="\t", keep_default_na=False)
    assert list(table["description"]) == expected and list(table["number"]) == list(range(len(ODD)))
    recipe = path.read_text().splitlines()
    assert len(recipe) == len(ODD) + 1 and {line.count("\t") for line in recipe} == {HEADER.count("\t")}


@pytest.mark.parametrize("form", ["excel-tab", "unix"])
def test_a_reader_of_any_dialect_counts_the_same_cells(tmp_path, form):
    path = tmp_path / "results.tsv"
    path.write_text(HEADER + "".join(row_line(make_row(number=n, description=text)) for n, text in enumerate(ODD)))
    with open(path, newline="") as file:
        assert {len(row) for row in csv.reader(file, form, delimiter="\t")} == {HEADER.count("\t") + 1}
