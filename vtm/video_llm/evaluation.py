"""Answer the questions of a list, video by video, in any number of processes."""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Sequence

import torch

from vtm.system.progress import Progress
from vtm.video.decoding import VideoError
from vtm.video_llm.answer_file import AnswerFile
from vtm.video_llm.answering import Choice, choose_option
from vtm.video_llm.compress import Compressor
from vtm.video_llm.frames import VideoClip, read_clip
from vtm.video_llm.loading import VideoLLM
from vtm.video_llm.questions.question import Question

_HOPELESS = 3  # videos that fail for the same reason before any question is answered


def answer_questions(
    llm: VideoLLM,
    questions: Sequence[Question],
    file: AnswerFile,
    compressor: Compressor,
    *,
    frames: int,
    prefill: str,
    cyclic: bool,
) -> list[str]:
    """Answer all questions that are not in the file and whose videos no other process has taken.

    A video is decoded once for all its questions. A video that cannot be read, or about which a question cannot be
    answered, is noted in the file with the reason, and does not stop the others.

    Args:
        llm: model and processor.
        questions: questions to answer.
        file: open file, to which the answers are added.
        compressor: function that compresses the tokens of a video.
        frames: number of frames to read of each video.
        prefill: how the answer begins.
        cyclic: whether to answer each question in all rotations of its options too.

    Returns:
        Names of the videos about which questions are left, because of errors or because another process has taken them.

    Raises:
        ValueError: if the first questions fail for the same reason, such as a compressor that does not fit the model,
            or the file has answers to a list with other right options.
    """
    by_video: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_video[question.video].append(question)
    wanted = {
        video: [(question, order) for question in group for order in orders(question, cyclic=cyclic)]
        for video, group in by_video.items()
    }
    keys = {(question.id, order) for pairs in wanted.values() for question, order in pairs}
    _check_right_options(questions, file)

    def left(video: str) -> list[tuple[Question, int]]:
        return [(question, order) for question, order in wanted[video] if (question.id, order) not in file.answers]

    with Progress("answering", len(keys), done=len(keys & file.answers.keys())) as progress:
        refusals: list[str] = []
        for video in file.take(list(wanted), is_done=lambda video: not left(video)):
            clip = _read(by_video[video][0], frames)
            if isinstance(clip, str):
                file.add_failure(video, clip)
                continue
            for question, order in left(video):
                start = time.perf_counter()
                choice = _choose(llm, clip, question, order, compressor, prefill=prefill)
                if not isinstance(choice, str):
                    file.add(_line(question, order, choice, clip, seconds=time.perf_counter() - start))
                elif video not in file.failed:
                    file.add_failure(video, f"{question.id}: {choice}")
                    refusals.append(choice)
                progress.advance(_failures(file), to=len(keys & file.answers.keys()))
            if len(refusals) == _HOPELESS and len(set(refusals)) == 1 and not file.answers:
                raise ValueError(f"the first {_HOPELESS} videos fail for the same reason: {refusals[0]}")
    return [video for video in wanted if left(video)]


def _check_right_options(questions: Sequence[Question], file: AnswerFile) -> None:
    """Check that the right options in the file, by which runs are compared, are those of the list."""
    right = {question.id: question.answer for question in questions}
    for (id, _), answer in file.answers.items():
        if id in right and answer["answer"] != right[id]:
            raise ValueError(
                f"{file.path} has {answer['answer']} as the right option of {id}, but the list has {right[id]}; answer "
                "the corrected list in another folder with hydra.run.dir=…"
            )


def orders(question: Question, *, cyclic: bool) -> range:
    """Return the rotations of the options of a question in which it is answered; 0 is the official order."""
    return range(len(question.options) if cyclic else 1)


def _failures(file: AnswerFile) -> str:
    return f"{count} videos failed" if (count := len(file.failed)) else ""


def _read(question: Question, frames: int) -> VideoClip | str:
    """Return the frames of the video of a question, or why they cannot be read."""
    try:
        return read_clip(question.path, frames)
    except (VideoError, OSError, ValueError) as error:
        return str(error).removeprefix(f"{question.path}: ")


def _choose(
    llm: VideoLLM, clip: VideoClip, question: Question, order: int, compressor: Compressor, *, prefill: str
) -> Choice | str:
    """Answer a question in one order of its options, or return why it cannot be answered."""
    options = [*question.options[order:], *question.options[:order]]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "0 of .* tokens merged")  # reported once, in the results
            choice = choose_option(llm, clip, question.text, options, compressor, prefill=prefill)
    except torch.OutOfMemoryError:
        return "out of memory; take fewer frames, or device_map=auto with several GPUs"
    except ValueError as error:
        return str(error)
    if not bool(choice.logits.isfinite().all()):
        return "the logits of the letters are not finite; try dtype=float32 or dtype=bfloat16"
    return choice


def _line(question: Question, order: int, choice: Choice, clip: VideoClip, *, seconds: float) -> dict[str, object]:
    """Return an answer as a line of the file."""
    chosen = (choice.index + order) % len(question.options)
    return {
        "id": question.id,
        "video": question.video,
        "order": order,
        "choice": chosen,
        "answer": question.answer,
        "correct": None if question.answer is None else chosen == question.answer,
        "tokens_before": choice.cost.tokens_before,
        "tokens_after": choice.cost.tokens_after,
        "frames": len(clip.frames),
        "seconds": seconds,
    }
