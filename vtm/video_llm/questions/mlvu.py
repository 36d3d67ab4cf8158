"""MLVU-Dev, the seven multiple-choice tasks (Zhou et al., CVPR 2025).

The format is that of `MLVU/data` in the repository `FlagOpen/FlagEmbedding`: a list of questions for each task. The
answer is the text of an option, as in its `MLVU/evaluation/multiple_choice_evaluation/choice_bench.py`, which takes the
last one if two options have the same text. The two other tasks, 8 and 9, are answered in free text.
"""

from __future__ import annotations

from pathlib import Path

from vtm.video_llm.questions.listing import QuestionList, check_questions, read_json, texts
from vtm.video_llm.questions.question import Question

_FILES = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")


class MLVU(QuestionList):
    """List of MLVU-Dev, with videos in `videos/1_plotQA/…`, as they are distributed, or in `videos/plotQA/…`.

    Questions have no ids in the list; theirs are the task and their number, from 0.
    """

    def read(self) -> list[Question]:
        questions, origins = [], []
        for task in _FILES:
            path = self.annotation(f"{task}.json")
            for number, entry in enumerate(read_json(path, list)):
                origin = f"{path}, entry {number + 1}"
                video, text, answer, kind = texts(entry, ["video", "question", "answer", "question_type"], origin)
                options = entry.get("candidates")
                if not isinstance(options, list) or answer not in options:
                    raise ValueError(
                        f"{origin}: expected 'candidates', a list with the answer {answer!r} in it, got {options!r}; "
                        "get the original file"
                    )
                stem = Path(video).with_suffix("").as_posix()
                questions.append(
                    Question(
                        id=f"{task}/{number}",
                        video=f"{task}/{stem}",
                        path=self.videos.find(f"{task}/{stem}", f"{task.partition('_')[2]}/{stem}"),
                        text=text,
                        options=tuple(map(str, options)),
                        answer=len(options) - 1 - options[::-1].index(answer),
                        groups={"type": kind},
                    )
                )
                origins.append(origin)
        return check_questions(questions, origins)
