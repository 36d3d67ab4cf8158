"""Text in CSV files is never a formula, and is read as it was."""

import pytest

from vtm.system.cells import as_cell, from_cell

FORMULAS = ["=1+1", "+1+1", "-a.mp4", "@SUM(1)", "\t=1", "\r=1", "=cmd|' /C calc'!A0", "-1-1", "+", "=", "-1.5.mp4"]


@pytest.mark.parametrize("text", [*FORMULAS, *(f"'{text}" for text in FORMULAS), *(f"''{text}" for text in FORMULAS)])
def test_a_formula_begins_with_an_apostrophe_and_is_read_as_it_was(text):
    assert as_cell(text) == f"'{text}"
    assert from_cell(as_cell(text)) == text


@pytest.mark.parametrize(
    "text", ["", "a.mp4", "a=b", "'tis", "-1.5", "+3", "-2.5e-07", "-inf", "nan", " =1", "'", "1-1"]
)
def test_other_text_and_numbers_stay(text):
    assert as_cell(text) == text
    assert from_cell(text) == text
