"""EgoSchema (Mangalam et al., NeurIPS 2023).

The format is that of the repository `egoschema/EgoSchema`: `questions.json` has the keys that its
`benchmarking/mPLUG-Owl/run_mplug.py` reads, `subset_answers.json` the answers of 500 questions, and its README has the
format of submissions, `{q_uid: index of the option}`.
"""

from __future__ import annotations

from typing import Any

from vtm.video_llm.questions.listing import QuestionList, check_questions, read_json, texts, whole_number
from vtm.video_llm.questions.question import Question

_OPTIONS = [f"option {number}" for number in range(5)]


class EgoSchema(QuestionList):
    """List of EgoSchema, with one question about each video, in `videos/<q_uid>.<suffix>`.

    Questions whose answer is not public are answered for the submission file, and not scored.

    Args:
        public_only: read only the questions whose answer is public.
        options: see `QuestionList`.
    """

    def __init__(self, *, public_only: bool, **options: Any) -> None:
        super().__init__(**options)
        self._public_only = public_only

    def read(self) -> list[Question]:
        path, answers_path = self.annotation("questions.json"), self.annotation("subset_answers.json")
        answers = read_json(answers_path, dict)
        questions, origins = [], []
        for number, entry in enumerate(read_json(path, list), start=1):
            origin = f"{path}, entry {number}"
            uid, text, *options = texts(entry, ["q_uid", "question", *_OPTIONS], origin)
            answer = answers.get(uid)
            questions.append(
                Question(
                    id=uid,
                    video=uid,
                    path=self.videos.find(uid),
                    text=text,
                    options=tuple(options),
                    answer=None if answer is None else whole_number(answer, f"{answers_path}, {uid}"),
                )
            )
            origins.append(origin)
        check_questions(questions, origins)
        if unknown := answers.keys() - {question.id for question in questions}:
            raise ValueError(
                f"{answers_path}: expected answers to questions of {path.name}, got {min(unknown)}; get the original "
                "files"
            )
        return [question for question in questions if not self._public_only or question.answer is not None]
