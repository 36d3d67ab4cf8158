"""Processes share names with locks that end with their process, and continue on file systems without locks."""

import errno
import fcntl
import os
import select
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vtm.system.locks import ByteLocks, Locks, MarkerLocks, is_in_place, locked_folder, take

ROOT = Path(__file__).parents[2]


def marker_locks(folder: Path) -> MarkerLocks:
    return MarkerLocks(lambda name: folder / "markers" / f".{name}.lock")


def byte_locks(folder: Path) -> ByteLocks:
    path = folder / "table"
    return ByteLocks(os.open(path, os.O_RDWR | os.O_CREAT), path)


KINDS = {"marker files": marker_locks, "bytes": byte_locks}


# functions that run in other processes, which wait for a line on stdin to continue


def do_names(kind: str, folder: str, *names: str) -> None:
    """Take and print names and log them as done; wait for a line after each, or only after the first if it is "run"."""
    locks, log = KINDS[kind](Path(folder)), Path(folder) / "log"
    log.touch()
    running = False
    for name in take(deque(names), locks, is_done=lambda name: name in log.read_text().split()):
        print(name, flush=True)
        running = running or sys.stdin.readline() == "run\n"
        with log.open("a") as file:
            file.write(f"{name}\n")
        locks.release(name)


def open_file(folder: str) -> None:
    """Open the file of byte locks; print whether no other process has it open, then its content."""
    with byte_locks(Path(folder)).opening() as alone:
        print(alone, flush=True)
    print((Path(folder) / "content").read_text(), flush=True)


def enter_exclusive(folder: str) -> None:
    print("ready", flush=True)
    with byte_locks(Path(folder)).exclusive():
        print("inside", flush=True)


def enter_folder(folder: str) -> None:
    print("ready", flush=True)
    with locked_folder(Path(folder)):
        print("inside", flush=True)


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """A function that calls one of the functions above in another process."""
    with ExitStack() as stack:

        def start(function: Callable[..., None], *arguments: str | Path) -> "subprocess.Popen[str]":
            name = function.__name__
            code = f"import sys; from tests.system.test_locks import {name}; {name}(*sys.argv[1:])"
            process = subprocess.Popen(
                [sys.executable, "-c", code, *map(str, arguments)],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def is_silent(process: "subprocess.Popen[str]") -> bool:
    return not select.select([process.stdout], [], [], 0.2)[0]


def never(name: str) -> bool:
    return False


class MemoryLocks(Locks):
    """Locks within one process, in which the names of the other party are set by hand."""

    def __init__(self, *others: str) -> None:
        self.others = set(others)
        self.ours: set[str] = set()
        self.asked = Counter[str]()

    def acquire(self, name):
        self.asked[name] += 1
        if name not in self.others:
            self.ours.add(name)
        return name in self.ours

    def release(self, name):
        self.ours.remove(name)


def test_names_are_taken_in_order_and_stay_locked():
    locks = MemoryLocks("b")
    assert list(take(deque("abcd"), locks, is_done=lambda name: name == "c")) == ["a", "d"]
    assert locks.ours == {"a", "d"}


def test_what_is_held_is_looked_at_again_as_long_as_there_was_something_to_take():
    locks = MemoryLocks("a", "c")
    names = take(deque("abc"), locks, is_done=never)
    assert next(names) == "b"
    locks.others.remove("a")
    assert list(names) == ["a"]
    assert locks.asked == {"a": 2, "b": 1, "c": 3}
    assert list(take(deque("c"), locks, is_done=never)) == []
    assert locks.asked["c"] == 4


def test_what_another_has_done_before_the_lock_is_let_go():
    locks = MemoryLocks()
    looks = iter([False, True])
    assert list(take(deque("a"), locks, is_done=lambda name: next(looks))) == []
    assert locks.asked == {"a": 1}
    assert not locks.ours


def test_the_names_ahead_may_be_rearranged():
    ahead = deque("abc")
    names = take(ahead, MemoryLocks(), is_done=never)
    assert next(names) == "a"
    ahead.reverse()
    assert list(names) == ["c", "b"]


@pytest.mark.parametrize("kind", KINDS)
def test_processes_do_everything_once(start, tmp_path, kind):
    names = [f"{number:03}" for number in range(300)]
    processes = [start(do_names, kind, tmp_path, *names) for _ in range(2)]
    assert {process.stdout.readline() for process in processes} == {"000\n", "001\n"}
    for process in processes:
        process.stdin.write("run\n")
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert sorted((tmp_path / "log").read_text().split()) == names


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_killed_process_held_is_taken(start, tmp_path, kind):
    other = start(do_names, kind, tmp_path, "a")
    assert other.stdout.readline() == "a\n"
    names = take(deque("ab"), KINDS[kind](tmp_path), is_done=never)
    assert next(names) == "b"
    other.kill()
    other.wait()
    assert list(names) == ["a"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_released_is_free_to_others(start, tmp_path, kind):
    locks = KINDS[kind](tmp_path)
    assert locks.acquire("a")
    other = start(do_names, kind, tmp_path, "a", "b")
    assert other.stdout.readline() == "b\n"
    locks.release("a")
    other.stdin.write("\n")
    assert other.stdout.readline() == "a\n"
    assert not locks.acquire("a")


def test_marker_files_are_there_while_names_are_held(tmp_path):
    ours, theirs = marker_locks(tmp_path), marker_locks(tmp_path)
    assert ours.acquire("a")
    assert not theirs.acquire("a")
    assert theirs.acquire("b")
    assert sorted(path.name for path in (tmp_path / "markers").iterdir()) == [".a.lock", ".b.lock"]
    assert (set(ours.held), set(theirs.held)) == ({"a"}, {"b"})
    ours.release("a")
    theirs.release("b")
    assert not list((tmp_path / "markers").iterdir())
    assert not ours.held


def test_a_marker_file_that_is_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    ours, theirs, third = (marker_locks(tmp_path) for _ in range(3))
    assert ours.acquire("a")
    right = fcntl.flock

    def flock(*arguments):
        monkeypatch.undo()
        ours.release("a")  # after they have opened it
        right(*arguments)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert not theirs.acquire("a")
    assert third.acquire("a")
    assert not theirs.acquire("a")


def test_byte_locks_leave_nothing_behind(tmp_path):
    locks = byte_locks(tmp_path)
    assert locks.acquire("a")
    locks.release("a")
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("table", 0)]


def test_the_first_to_open_a_file_is_alone_and_the_others_wait_for_it(start, tmp_path):
    (tmp_path / "content").touch()
    with byte_locks(tmp_path).opening() as alone:
        assert alone
        other = start(open_file, tmp_path)
        assert other.stdout.readline() == "False\n"
        assert is_silent(other)
        (tmp_path / "content").write_text("ours")
    assert other.stdout.readline() == "ours\n"
    assert start(open_file, tmp_path).communicate()[0] == "False\nours\n"  # as long as one has it open


@pytest.mark.parametrize(
    ("block", "function"),
    [(lambda folder: byte_locks(folder).exclusive(), enter_exclusive), (locked_folder, enter_folder)],
    ids=["exclusive", "locked_folder"],
)
def test_one_process_at_a_time_is_in_a_block(start, tmp_path, block, function):
    with block(tmp_path):
        other = start(function, tmp_path)
        assert other.stdout.readline() == "ready\n"
        assert is_silent(other)
    assert other.stdout.readline() == "inside\n"


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)


def test_without_locks_every_name_is_free_to_every_process(tmp_path, no_locks):
    for locks in (marker_locks(tmp_path), marker_locks(tmp_path)):
        assert locks.acquire("a")
        assert locks.refusal.strerror == "No locks available"
    locks.release("a")
    assert not list((tmp_path / "markers").iterdir())


def test_without_locks_a_process_seems_alone_with_a_file(tmp_path, no_locks):
    locks = byte_locks(tmp_path)
    with locks.opening() as alone:
        assert alone
    assert locks.refusal.strerror == "No locks available"
    with locks.exclusive():
        assert list(take(deque("ab"), locks, is_done=never)) == ["a", "b"]
    locks.release("a")


def test_without_locks_a_block_runs_all_the_same(tmp_path, no_locks):
    with locked_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_where_there_are_locks_nothing_goes_on_without_one(tmp_path, request):
    locks = byte_locks(tmp_path)
    with locks.opening():
        assert locks.refusal is None
    request.getfixturevalue("no_locks")
    with pytest.raises(OSError, match=r"table cannot be locked \(No locks available\)"):
        locks.acquire("a")
    with pytest.raises(OSError, match=r"table cannot be locked \(No locks available\)"), locks.exclusive():
        pytest.fail("entered without a lock")


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EACCES])
def test_a_byte_is_held_whichever_way_the_system_says_so(tmp_path, monkeypatch, code):
    def lockf(*_):
        raise OSError(code, "held")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    assert not byte_locks(tmp_path).acquire("a")


def test_a_file_is_in_place_until_it_is_moved_replaced_or_removed(tmp_path):
    path, other = tmp_path / "file", tmp_path / "other"
    with path.open("wb") as file:
        assert is_in_place(file.fileno(), path)
        path.rename(other)
        assert not is_in_place(file.fileno(), path)
        path.touch()
        assert not is_in_place(file.fileno(), path)
        other.replace(path)
        assert is_in_place(file.fileno(), path)
        path.unlink()
        assert not is_in_place(file.fileno(), path)
