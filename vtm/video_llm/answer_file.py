"""A file of answers that processes on any number of machines can share and continue: one line of JSON per answer.

A process locks each video that it takes with a byte of the file (`ByteLocks`), so it must not open a file twice.
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vtm.system.atomic import write_atomically
from vtm.system.locks import ByteLocks, is_in_place, take
from vtm.system.processes import host_name
from vtm.video_llm.fingerprint import json_sha256

KEYS = (
    "id", "video", "order", "choice", "answer", "correct", "tokens_before", "tokens_after", "frames", "seconds", "hash",
)  # fmt: skip
_PARTS = "hash.json"
_ELSEWHERE = "choose another folder with hydra.run.dir=…"


class AnswerFile:
    """The file `answers.jsonl` of a run folder, created if it does not exist.

    Each line has the keys `KEYS`. `order` is the number of options by which the official order was rotated; `choice`
    and `answer` are indices in the official order, the latter None if it is not public; `hash` is that of `parts`,
    which `hash.json` keeps. Videos with errors are listed in a file of each process, and can be tried again.

    Args:
        folder: run folder.
        parts: what the answers depend on, as `hash_parts` returns it; a folder has the answers of one setting.

    Attributes:
        answers: answers in the part of the file that has been read, by id and order.
        failed: reasons why videos failed in this process, by video.
        hash: hash of `parts`.

    Raises:
        ValueError: if the folder has answers of another setting, or the file is damaged; then it is not changed.
        OSError: if a file cannot be written or no longer exists; the lines in it are complete.
    """

    def __init__(self, folder: Path, parts: Mapping[str, Any]) -> None:
        self.path = folder / "answers.jsonl"
        self.parts = json.loads(json.dumps(parts, default=str))
        self.hash = json_sha256(self.parts)
        self.answers: dict[tuple[str, int], dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self._end = 0  # of the lines that were read, in bytes

    def __enter__(self) -> Self:
        """Open the file."""
        self._check_parts()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._locks = ByteLocks(self._file, self.path)
        try:
            with self._locks.opening() as alone:
                with self._writing():
                    pass  # which reads the file and removes an incomplete line
                if alone:
                    for path in self.path.parent.glob("errors.*.json"):  # of earlier runs; their videos are tried again
                        path.unlink()
        except BaseException:
            os.close(self._file)
            raise
        if self._locks.refusal is not None:
            reason = f"{self.path} is on a file system without locks ({self._locks.refusal.strerror})"
            sys.stderr.write(f"{reason}: only one process at a time may write it\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        os.close(self._file)

    def take(self, videos: list[str], *, is_done: Callable[[str], bool]) -> Iterator[str]:
        """Yield the videos that are not done and that no other process has taken, until none is left.

        Args:
            videos: names of the videos.
            is_done: function that returns whether all questions about a video are answered in `answers`.
        """

        def is_answered(video: str) -> bool:
            if not is_done(video):
                self._read()
            return is_done(video)

        for video in take(deque(videos), self._locks, is_done=is_answered):
            yield video
            self._locks.release(video)
        self._read()

    def add(self, answer: Mapping[str, Any]) -> None:
        """Add an answer, with all keys but `hash`."""
        line = json.dumps({**answer, "hash": self.hash}, ensure_ascii=False) + "\n"
        with self._writing():
            left = line.encode(errors="surrogateescape")
            try:
                while left:
                    left = left[os.write(self._file, left) :]
            except OSError as error:
                raise OSError(
                    f"{self.path}: {error.strerror}; all answers in it are complete; solve the problem and run the "
                    "same command to continue"
                ) from error

    def add_failure(self, video: str, reason: str) -> None:
        """Note that a video has failed, and why."""
        self.failed[video] = " ".join(reason.split())
        path = self.path.with_name(f"errors.{host_name()}.{os.getpid()}.json")
        write_atomically(path, json.dumps(self.failed, indent=1, ensure_ascii=False) + "\n")

    def failures(self) -> dict[str, str]:
        """Return the reasons why videos failed in this and other processes, by video."""
        failed: dict[str, str] = {}
        for path in sorted(self.path.parent.glob("errors.*.json")):
            failed |= json.loads(path.read_text(encoding="utf-8"))
        return failed

    def _check_parts(self) -> None:
        """Check that the folder belongs to this setting, and note the setting in a new folder."""
        path = self.path.with_name(_PARTS)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not (path.is_file() and self.path.is_file() and self.path.stat().st_size):
            write_atomically(path, json.dumps({"hash": self.hash, **self.parts}, indent=1, ensure_ascii=False) + "\n")
            return
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
            different = [name for name, part in self.parts.items() if earlier[name] != part]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} is damaged; delete it if the answers beside it are those of this command"
            ) from error
        if different:
            raise ValueError(
                f"{self.path.parent} has answers with another {' and another '.join(different)} than this command; "
                f"{_ELSEWHERE}"
            )

    def _read(self) -> None:
        """Read the new lines of the file."""
        size = os.fstat(self._file).st_size
        if size < self._end:
            raise ValueError(
                f"{self.path}: expected at least the {self._end} bytes that were read before, found {size}; restore "
                "the file and run the same command to continue"
            )
        content = os.pread(self._file, size - self._end, self._end)
        end = content.rfind(b"\n") + 1  # behind it may be the incomplete line of a killed process
        for line in content[:end].splitlines():
            try:
                answer = json.loads(line)
            except ValueError:
                answer = None
            if not _is_answer(answer):
                raise ValueError(
                    f"{self.path}: expected lines of JSON with the keys {', '.join(KEYS)} and values of their kinds, "
                    f"found {line[:200]!r}; delete this line to answer its question again"
                )
            if answer["hash"] != self.hash:
                raise ValueError(f"{self.path} has answers of another setting, hash {answer['hash'][:8]}; {_ELSEWHERE}")
            self.answers.setdefault((answer["id"], answer["order"]), answer)
        self._end += end

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Lock the file for writing, and remove the incomplete line that a killed process may have left."""
        with self._locks.exclusive():
            if not is_in_place(self._file, self.path):
                raise FileNotFoundError(
                    f"{self.path} was moved, deleted or replaced during writing; put it back to continue with the same "
                    "command, which otherwise starts a new file"
                )
            self._read()
            os.ftruncate(self._file, self._end)
            yield
            self._read()


def _is_answer(answer: Any) -> bool:
    """Return whether a line has all keys, with values that can be scored."""
    if not isinstance(answer, dict) or any(key not in answer for key in KEYS):
        return False
    numbers = [answer[key] for key in ("order", "choice", "tokens_before", "tokens_after", "frames")]
    whole = all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers)
    texts = all(isinstance(answer[key], str) for key in ("id", "video", "hash"))
    return whole and texts and isinstance(answer["seconds"], int | float) and answer["tokens_before"] > 0
