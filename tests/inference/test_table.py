"""A table of predictions is shared by processes and continued, and other files are never overwritten."""

import csv
import errno
import fcntl
import os
import select
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from vtm.inference.prediction import Prediction, Segment
from vtm.inference.table import COLUMNS, PredictionTable

HEADER = ",".join(COLUMNS) + "\n"
OTHER = """
import sys
from pathlib import Path
from vtm.inference.prediction import Prediction, Segment
from vtm.inference.table import PredictionTable

with PredictionTable(Path(sys.argv[1]), "abc", classes=1) as table:
    for video in table.take(map(Path, sys.argv[2:])):
        print(video, flush=True)
        if sys.stdin.readline() == "fail\\n":
            table.add_failure(video, "broken there")
        else:
            table.add(Prediction(str(video), 4.5, None, [1.5], [Segment(0.0, 4.5, [1.5])], short=False, damaged=False))
"""


def prediction(video: str, labels: list[str] | None = None) -> Prediction:
    scores = [3.5] if labels is None else [0.25, 0.6, 0.15]
    return Prediction(video, 4.5, labels, scores, [Segment(0.0, 4.5, scores)], short=True, damaged=False)


def rows(path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table_of(path, classes=1, again=()) -> PredictionTable:
    return PredictionTable(path, "abc", classes=classes, again=[Path(video) for video in again])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "table.csv"


@pytest.fixture
def other(path):
    """Another process that takes videos; a line on its stdin tells it whether the video succeeds or fails."""
    path.parent.mkdir()
    command = [sys.executable, "-c", OTHER, str(path), "a.mp4", "b.mp4", "c.mp4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, bufsize=1
    ) as process:
        yield process
        process.kill()


def test_rows_are_there_at_once(path):
    with table_of(path) as table:
        table.add(prediction("a.mp4"))
        first = path.read_text()
        table.add(prediction("b.mp4"))
    assert first == HEADER + "a.mp4,3.5,,1,4.500,1,0,,abc\n"
    assert path.read_text() == first + "b.mp4,3.5,,1,4.500,1,0,,abc\n"


def test_the_other_classes_stand_in_columns_behind(path):
    with table_of(path, classes=2) as table:
        table.add(prediction("a.mp4", ["x", "y", "z"]))
        table.add_failure(Path("b.mp4"), "has no\nvideo stream")
    assert path.read_text() == (
        HEADER[:-1] + ",prediction_2,probability_2\n"
        "a.mp4,y,0.600000,1,4.500,1,0,,abc,x,0.250000\n"
        "b.mp4,,,,,,,has no video stream,abc,,\n"
    )


def test_another_number_of_classes_is_refused(path):
    with table_of(path, classes=2):
        pass
    content = path.read_bytes()
    with (
        pytest.raises(ValueError, match="or, for a table of predictions, the --top that it was written with"),
        table_of(path),
    ):
        pass
    assert path.read_bytes() == content


def test_a_failed_video_is_retried_and_has_one_row(path):
    with table_of(path) as table:
        table.add_failure(Path("a\n.mp4"), "broken")
        table.add(prediction("b.mp4"))
        table.add_failure(Path("c.mp4"), "broken")
        assert not list(table.take([Path("a\n.mp4"), Path("c.mp4")]))  # not in the same run
    (path.parent / "link.csv").symlink_to(path.name)
    with table_of(path.parent / "link.csv", again=["a\n.mp4", "c.mp4"]) as table:
        assert [row["video"] for row in rows(path)] == ["b.mp4"]
        assert list(table.take([Path("b.mp4"), Path("c.mp4")])) == [Path("c.mp4")]
        table.add(prediction("c.mp4"))
    assert [row["video"] for row in rows(path)] == ["b.mp4", "c.mp4"]
    assert (path.parent / "link.csv").is_symlink()


def test_failures_of_other_videos_are_kept(path):
    with table_of(path) as table:
        table.add_failure(Path("A/x.mp4"), "broken")
        table.add_failure(Path("B/x.mp4"), "broken")
    with table_of(path, again=["B/x.mp4", "B/y.mp4"]):
        pass
    assert [(row["video"], row["error"]) for row in rows(path)] == [("A/x.mp4", "broken")]


def test_a_retry_keeps_the_permissions(path):
    with table_of(path) as table:
        table.add_failure(Path("a.mp4"), "broken")
    for mode in (0o660, 0o600):
        path.chmod(mode)
        with table_of(path, again=["a.mp4"]) as table:
            assert rows(path) == []
            table.add_failure(Path("a.mp4"), "broken")
        assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("how", ["moved", "deleted", "replaced"])
def test_a_table_that_is_taken_away_is_missed(path, how):
    with table_of(path) as table:
        table.add(prediction("a.mp4"))
        match how:
            case "moved":
                path.rename(path.with_name("other.csv"))
            case "deleted":
                path.unlink()
            case "replaced":
                path.with_name("other.csv").write_bytes(path.read_bytes())
                path.with_name("other.csv").replace(path)
        with pytest.raises(FileNotFoundError, match=r"table\.csv was moved, deleted or replaced .* put it back"):
            table.add(prediction("b.mp4"))
    if how == "moved":
        path.with_name("other.csv").rename(path)
    with table_of(path) as table:
        assert table.videos == (set() if how == "deleted" else {"a.mp4"})


def test_a_table_that_has_become_shorter_is_refused(path):
    with table_of(path) as table:
        table.add(prediction("a.mp4"))
        size = path.stat().st_size
        os.truncate(path, size - 3)
        reason = rf"table\.csv: expected at least the {size} bytes that were read before, found {size - 3}"
        with pytest.raises(ValueError, match=reason):
            table.add(prediction("b.mp4"))
        with pytest.raises(ValueError, match=reason):  # before a long video is predicted
            next(table.take([Path("b.mp4")]))
    assert path.stat().st_size == size - 3


def test_a_row_is_written_alone(path, other, monkeypatch):
    assert other.stdout.readline() == "a.mp4\n"
    right = os.write

    def write(file, content):
        if not content.startswith(b"x.mp4"):
            return right(file, content)
        written = right(file, content[:3])
        other.stdin.write("\n")  # the other process would remove half a row
        assert not select.select([other.stdout], [], [], 0.2)[0]
        return written

    with table_of(path) as table:
        monkeypatch.setattr(os, "write", write)
        table.add(prediction("x.mp4"))
        monkeypatch.undo()
        assert other.stdout.readline() == "b.mp4\n"
    assert [row["video"] for row in rows(path)] == ["x.mp4", "a.mp4"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOLCK])
def test_nothing_is_written_without_its_lock(path, monkeypatch, code):
    original = fcntl.lockf

    def lockf(file, kind, *area):
        if kind == fcntl.LOCK_EX:
            raise OSError(code, "refused")
        return original(file, kind, *area)

    with table_of(path) as table:
        content = path.read_bytes()
        monkeypatch.setattr(fcntl, "lockf", lockf)
        with pytest.raises(OSError, match=r"table\.csv cannot be locked \(refused\)"):
            table.add(prediction("a.mp4"))
    assert path.read_bytes() == content


def test_a_video_is_let_go_after_its_turn(path, other):
    assert other.stdout.readline() == "a.mp4\n"
    with table_of(path) as table:
        ours = table.take([Path("b.mp4"), Path("c.mp4")])
        assert next(ours) == Path("b.mp4")
        assert next(ours) == Path("c.mp4")
        other.stdin.write("\n")
        assert other.stdout.readline() == "b.mp4\n"


def test_rows_added_by_others_are_known_at_the_end(path, other):
    assert other.stdout.readline() == "a.mp4\n"
    with table_of(path) as table:
        for _ in table.take([Path("b.mp4")]):
            other.stdin.write("\n")
            assert other.stdout.readline() == "c.mp4\n"
        assert table.videos == {"a.mp4"}


def test_processes_share_the_videos(path, other):
    assert other.stdout.readline() == "a.mp4\n"
    with table_of(path) as table:
        ours = table.take(map(Path, ("a.mp4", "b.mp4", "c.mp4")))
        video = next(ours)
        assert video == Path("b.mp4")
        other.stdin.write("fail\n")
        assert other.stdout.readline() == "c.mp4\n"  # b.mp4 is taken by this process
        other.stdin.write("\n")
        assert other.stdout.readline() == ""
        table.add(prediction(str(video)))
        assert list(ours) == []
        assert table.videos == {"a.mp4", "b.mp4", "c.mp4"}
    assert [(row["video"], row["prediction"], row["error"]) for row in rows(path)] == [
        ("a.mp4", "", "broken there"),
        ("c.mp4", "1.5", ""),
        ("b.mp4", "3.5", ""),
    ]


def test_a_video_in_hand_is_let_go_with_the_table(path):
    with table_of(path) as table:
        taken = table.take([Path("a.mp4")])
        assert next(taken) == Path("a.mp4")
    taken.close()  # after the file and its lock were closed
    with table_of(path) as table:
        assert list(table.take([Path("a.mp4")])) == [Path("a.mp4")]


def test_what_another_process_has_added_is_not_taken(path, other):
    assert other.stdout.readline() == "a.mp4\n"
    with table_of(path) as table:
        other.stdin.write("\n")
        assert other.stdout.readline() == "b.mp4\n"
        assert list(table.take([Path("a.mp4")])) == []


def test_what_a_killed_process_held_is_taken_and_its_half_row_goes(path, other):
    assert other.stdout.readline() == "a.mp4\n"
    with table_of(path) as table:
        taken = []
        for video in table.take(map(Path, ("a.mp4", "b.mp4"))):
            taken.append(str(video))
            if other.poll() is None:
                other.kill()
                other.wait()
                with subprocess.Popen(["sh", "-c", 'printf \'"c\n.mp4\' >> "$0"', str(path)]):  # half a row
                    pass
            table.add(prediction(str(video)))
    assert taken == ["b.mp4", "a.mp4"]
    assert [row["video"] for row in rows(path)] == taken


def test_failures_of_a_run_that_goes_on_are_left_alone(path, other):
    assert other.stdout.readline() == "a.mp4\n"
    other.stdin.write("fail\n")
    assert other.stdout.readline() == "b.mp4\n"
    with table_of(path) as table:
        assert list(table.take([Path("a.mp4")])) == []
    assert [row["error"] for row in rows(path)] == ["broken there"]


def test_without_locks_one_process_goes_on(path, monkeypatch, capsys):
    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    for _ in range(2):
        with table_of(path) as table:
            assert not table.locked
            for video in table.take([Path("a.mp4")]):
                table.add(prediction(str(video)))
    assert [row["video"] for row in rows(path)] == ["a.mp4"]
    assert "table.csv is on a file system without locks (No locks available)" in capsys.readouterr().err


def test_a_full_disk_leaves_whole_rows(path, monkeypatch):
    right = os.write

    def write(file, content):
        if content.startswith(b"b.mp4"):
            return right(file, content[:3])
        if content.startswith(b"p4,"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return right(file, content)

    with table_of(path) as table:
        table.add(prediction("a.mp4"))
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(OSError, match=r"table\.csv: No space left on device; all rows in it are complete"):
            table.add(prediction("b.mp4"))
    assert path.read_text().endswith("\nb.m")
    monkeypatch.undo()
    with table_of(path) as table:
        assert table.videos == {"a.mp4"}
    assert [row["video"] for row in rows(path)] == ["a.mp4"]


@pytest.mark.parametrize(
    "name", ["a\nb.mp4", "a\rb.mp4", "a\r\nb.mp4\r", "a,'\"b.mp4", "a\u2028b\x85c\x0c.mp4", "ü.mp4", "\udcff.mp4"]
)
def test_whatever_a_video_is_called_it_is_known_again(path, name):
    with table_of(path) as table:
        table.add(prediction(name))
        table.add_failure(Path("broken.mp4"), "broken")
        table.add(prediction("next.mp4"))
    with table_of(path, again=["broken.mp4"]) as table:
        assert table.videos == {name, "next.mp4"}
    with table_of(path) as table:  # after it was rewritten
        assert table.videos == {name, "next.mp4"}


@pytest.mark.parametrize("torn", ["b.mp4", "b.mp4,3.5,,1,4.500,0,0,,ab", '"b\n', '"b""\n.mp4",3.5', HEADER[:20]])
def test_half_a_row_is_taken_away(path, torn):
    path.parent.mkdir()
    whole = "" if HEADER.startswith(torn) else f'{HEADER}"a\n.mp4",3.5,,1,4.500,0,0,,abc\n'
    path.write_text(whole + torn, encoding="utf-8")
    with table_of(path) as table:
        assert table.videos == ({"a\n.mp4"} if whole else set())
        table.add(prediction("c.mp4"))
    assert [row["video"] for row in rows(path)] == (["a\n.mp4", "c.mp4"] if whole else ["c.mp4"])


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"notes without an end", b"\x00\xff\xfe" * 50, b"\n"])
def test_a_file_that_is_something_else_is_left_alone(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with (
        pytest.raises(ValueError, match=r"table\.csv: expected a table with the columns video, prediction"),
        table_of(path),
    ):
        pass
    assert path.read_bytes() == content


def test_a_folder_or_a_device_is_refused(tmp_path):
    for path in (tmp_path, Path(os.devnull)):
        with (
            pytest.raises(ValueError, match=f"{path}: expected a file, but it is a folder or a device"),
            table_of(path),
        ):
            pass


def test_a_row_that_is_none_is_named(path):
    path.parent.mkdir()
    path.write_text(f"{HEADER}a.mp4,x,0.5\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"expected rows of 9 columns, found \['a.mp4', 'x', '0.5'\]"), table_of(path):
        pass


@pytest.mark.parametrize("torn", ["", "b.mp4"])
def test_the_table_of_another_model_is_left_alone(path, torn):
    path.parent.mkdir()
    content = f"{HEADER}a.mp4,3.5,,1,4.500,0,0,,other\n{torn}"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="has predictions of the model other, but this model is abc"), table_of(path):
        pass
    assert path.read_text(encoding="utf-8") == content


@pytest.mark.parametrize("name", ["=1+1.mp4", "-a.mp4", "+.mp4", "@a.mp4", "'=a.mp4", "\ta.mp4", '\r,"=a.mp4'])
def test_names_that_look_like_formulas_are_text_and_are_known_again(path, name):
    with table_of(path, classes=2) as table:
        assert list(table.take([Path(name)])) == [Path(name)]
        table.add(prediction(name, ["=cmd()", "-x", "+y"]))
        table.add_failure(Path("b.mp4"), "@broken")
    (first, second) = rows(path)
    assert (first["video"], second["error"]) == (f"'{name}", "'@broken")
    assert (first["prediction"], first["prediction_2"]) == ("'-x", "'=cmd()")
    with table_of(path, classes=2, again=[name, "b.mp4"]) as table:
        assert (table.known, table.videos) == (1, {name})
        assert list(table.take([Path(name)])) == []
    assert rows(path) == [first]


def test_negative_values_are_numbers(path):
    with table_of(path) as table:
        table.add(Prediction("a.mp4", 4.5, None, [-1.5], [Segment(0.0, 4.5, [-1.5])], short=False, damaged=False))
    assert rows(path)[0]["prediction"] == "-1.5"


def test_names_of_earlier_versions_are_known(path):
    path.parent.mkdir()
    path.write_text(HEADER + "-a.mp4,3.5,,1,4.500,1,0,,abc\n")
    with table_of(path, again=["-a.mp4"]) as table:
        assert (table.known, list(table.take([Path("-a.mp4")]))) == (1, [])


def test_the_time_of_a_video_does_not_grow_with_their_number(path):
    names = [f"videos/{number}.mp4" for number in range(20_000)]

    def seconds(names: list[str]) -> float:
        start = time.process_time()
        for name in names:
            assert list(islice(table.take([Path(name)]), 1)) == [Path(name)]
            table.add_failure(Path(name), "broken")
            assert table.known == len(table.videos)
        return time.process_time() - start

    with table_of(path, again=names) as table:
        first = seconds(names[:300])
        with path.open("a") as file:
            file.writelines(f"{name},,,,,,,broken,abc\n" for name in names[300:19_700])
        assert list(table.take([Path(names[300])])) == []
        last = seconds(names[19_700:])
    assert table.known == 20_000
    assert last < 5 * first + 0.1  # it was 20 times
