"""Annotation tables and class names are read and checked."""

import pytest

from vtm.data.datasets.annotations import class_index, finite_number, name_classes, read_rows


def test_name_classes_keeps_the_indices():
    pairs = [(3, "c"), (0, "a"), (3, "c")]
    assert name_classes(pairs, source="list") == ["a", "class 1, without videos", "class 2, without videos", "c"]
    with pytest.raises(ValueError, match=r"list.*c and d for class 3"):
        name_classes([*pairs, (3, "d")], source="list")
    with pytest.raises(ValueError, match=r"list: expected one index per class, got 0 and 4 for class a"):
        name_classes([*pairs, (4, "a")], source="list")


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


HEADER = "expected the columns ['name', 'label'], got "


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", HEADER + "an empty file"),
        (b"\xef\xbb\xbfname,label\na,1\n", "expected no byte order mark"),
        (b"name;label\na;1\n", HEADER + "['name;label'] with semicolons instead of commas"),
        (b"name\tlabel\na\t1\n", "with tabs instead of commas"),
        (b"name label\na 1\n", "with single spaces instead of commas"),
        (b"name, label\na, 1\n", "' label' exists, but the name begins with a space in the header"),
        (b"Name,label\na,1\n", "'Name' exists, but 'n' in the expected name is 'N' in the header"),
        (b'"name","label"\n"a","1"\n', "quotation marks"),
        (b"label,name\n1,a\n", HEADER + "['label', 'name'] in another order"),
        (b",name,label\n0,a,1\n", "with further columns"),
        (b"name,label,label\na,1,1\n", "with further columns"),
        (b"a,1\nb,2\n", "the line with the names of the columns is missing"),
        (b"<!DOCTYPE html>\n", HEADER + "['<!DOCTYPE html>']; get the original file"),
        (b"name,label\na,1\n\nb,2\n", "line 3: expected the 2 fields ['name', 'label'] with commas between them, got"),
        (b"name,label\na,1,2\n", "line 2: expected the 2 fields"),
        (b"name,label\na,1\n\xe9,2\n", "line 3: expected text in UTF-8, got the byte 0xe9"),
        ("name,label\na,1\n".encode("utf-16"), "line 1: expected text in UTF-8"),
        (b"name,label\n" + b"a" * 200_000 + b",1\n", "expected a table with the columns"),
    ],
)  # fmt: skip
def test_each_kind_of_damage_to_a_table_is_named(tmp_path, content, says):
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_rows(path, ("name", "label"), delimiter=",")
    assert str(error.value).startswith(str(path))
    assert says in str(error.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_may_end_as_on_any_system(tmp_path, end):
    path = tmp_path / "list.csv"
    path.write_bytes(end.join(["name,label", "a\x0bb,1", ""]).encode())
    (row,) = read_rows(path, ("name", "label"), delimiter=",")
    assert row == {"name": "a\x0bb", "label": "1"}
    assert row.origin == f"{path}, line 2"


@pytest.mark.parametrize(
    "value", ["nan", "inf", "-inf", "-1", "", "x", "1,5", "1_0", None, True, [1], float("nan"), 10**400]
)
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(ValueError, match=r"^list, line 3: end: expected a finite number of at least 0, got"):
        finite_number(value, "list, line 3: end", minimum=0)


def test_numbers_may_be_text():
    assert [finite_number(value, "", minimum=0) for value in ("1.5", " 2 ", 3, "1e3")] == [1.5, 2.0, 3.0, 1000.0]


@pytest.mark.parametrize("value", ["x", "1.5", 0.5, -1, "nan", 10**9, True])
def test_what_is_no_class_index_is_refused(value):
    with pytest.raises(ValueError, match=r"^list, line 3: class_id: expected a class index, a whole number"):
        class_index(value, "list, line 3: class_id")


def test_class_indices_may_be_text_or_whole_floats():
    assert [class_index(value, "") for value in ("3", 4, 5.0, "6.0")] == [3, 4, 5, 6]


def test_quoted_fields_and_optional_columns_are_read_where_they_are_allowed(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text('"name",label,more\n"a, ""b""",1,x\n"c\nd",2,y\ne,3\n')
    options = {"delimiter": ",", "optional": ("more",), "quoted": True}
    with pytest.raises(ValueError, match=r"list.csv, line 5: expected the 3 fields"):
        read_rows(path, ("name", "label"), **options)
    path.write_text(path.read_text().removesuffix("e,3\n"))
    rows = read_rows(path, ("name", "label"), **options)
    assert rows == [{"name": 'a, "b"', "label": "1", "more": "x"}, {"name": "c\nd", "label": "2", "more": "y"}]
    path.write_text("name,label\na,1\n")
    assert read_rows(path, ("name", "label"), **options) == [{"name": "a", "label": "1"}]
    path.write_text("name,label,more\n")
    with pytest.raises(ValueError, match=r"expected the columns \['name', 'label'\], got \['name', 'label', 'more'\]"):
        read_rows(path, ("name", "label"), delimiter=",")
    path.write_text('name,label\na,"1\n')
    with pytest.raises(ValueError, match=r"list.csv: expected a table with the columns"):
        read_rows(path, ("name", "label"), **options)
