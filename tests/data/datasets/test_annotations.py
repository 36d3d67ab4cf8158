"""Annotation tables and class names are read and checked."""

import pytest

from vtm.data.datasets.annotations import name_classes, read_rows


def test_name_classes_keeps_the_indices():
    pairs = [(3, "c"), (0, "a"), (3, "c")]
    assert name_classes(pairs, source="list") == ["a", "class 1, without videos", "class 2, without videos", "c"]
    with pytest.raises(ValueError, match=r"list.*c and d for class 3"):
        name_classes([*pairs, (3, "d")], source="list")


def test_read_rows_checks_header_and_fields(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text('name label\na 1\n"b 2\n')
    assert read_rows(path, ("name", "label"), delimiter=" ")[1] == {"name": '"b', "label": "2"}
    with pytest.raises(ValueError, match=r"list.csv.*\['name', 'id'\]"):
        read_rows(path, ("name", "id"), delimiter=" ")
    path.write_text("name label\na 1\nb\n")
    with pytest.raises(ValueError, match=r"list.csv, line 3"):
        read_rows(path, ("name", "label"), delimiter=" ")
    path.write_text("")
    with pytest.raises(ValueError, match=r"expected the columns"):
        read_rows(path, ("name", "label"), delimiter=" ")
