"""Evaluate a video LLM on questions: python -m vtm.qa questions=nextqa llm=<folder or name> compressor=dyntok.

Any number of processes, on one or more machines that share the folder, can run it at the same time: each takes videos
that no other has taken. After an interruption the same command continues, and no question is answered twice.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vtm.cli.errors import concise_errors
from vtm.cli.launch import keep_configuration
from vtm.cli.overrides import check_overrides
from vtm.results.record import describe_run
from vtm.system.atomic import write_atomically
from vtm.video_llm.answer_file import AnswerFile
from vtm.video_llm.compress import Compressor
from vtm.video_llm.evaluation import answer_questions
from vtm.video_llm.fingerprint import hash_parts, json_sha256
from vtm.video_llm.loading import VideoLLM, load_llm
from vtm.video_llm.prompts import letter_ids
from vtm.video_llm.questions.listing import Selection
from vtm.video_llm.questions.question import Question
from vtm.video_llm.scores import score_answers
from vtm.video_llm.summary import NOTE, results_summary

CONF = Path(__file__).parents[1] / "conf"
# settings that change neither the questions nor their answers; cyclic adds to them
_NOT_OF_THE_FOLDER = ("cyclic", "device_map", "attention", "published", "run_dir", "hydra")


def setting_folder(*, _root_: DictConfig) -> str:
    """Return the name of the run folder of a setting, so that the same command continues there."""
    cfg = OmegaConf.to_container(_root_, resolve=False)
    assert isinstance(cfg, dict)
    setting = {key: value for key, value in cfg.items() if key not in _NOT_OF_THE_FOLDER}
    setting["questions"] = {k: v for k, v in cfg["questions"].items() if k not in ("root", "allow_missing")}
    choices = _root_.hydra.runtime.choices
    model = re.sub(r"[^\w.-]", "_", Path(str(cfg["llm"])).name)
    return f"{choices.questions}/{model}_{choices.compressor}_{json_sha256(setting)[:8]}"


OmegaConf.register_new_resolver("setting_folder", setting_folder)


@check_overrides(CONF, "qa")
@hydra.main(version_base="1.3", config_path=str(CONF), config_name="qa")
@concise_errors()
def main(cfg: DictConfig) -> None:
    """Answer the questions that are not answered yet, and score them once all are."""
    run_dir = Path(os.path.relpath(cfg.run_dir))
    with _no_empty_folder(run_dir):
        selection, llm, compressor, parts = _prepare(cfg)
    with AnswerFile(run_dir, parts) as file:
        keep_configuration(cfg)
        earlier = f", {len(file.answers)} answers are there already" if file.answers else ""
        print(f"{len(selection.questions)} questions, in the folder {run_dir}{earlier}", flush=True)
        try:
            left = answer_questions(
                llm,
                selection.questions,
                file,
                compressor,
                frames=cfg.frames,
                prefill=cfg.prefill,
                cyclic=cfg.cyclic,
            )
        except KeyboardInterrupt:
            answers = f"{len(file.answers)} answers in {file.path}"
            print(f"interrupted with {answers}; run the same command again to continue", file=sys.stderr)
            sys.exit(130)
    failures = file.failures()
    errors = {video: failures[video] for video in left if video in failures}
    if len(errors) < len(left):
        print(
            f"{len(left) - len(errors)} videos are held by other processes, the last of which writes the results; if "
            "one is killed, the same command continues"
        )
        return
    if not any((question.id, 0) in file.answers for question in selection.questions):
        sys.exit(f"no question was answered; the first error is: {next(iter(errors.values()))}")
    _write_submission(run_dir, selection.questions, file)
    results = _results(cfg, file, selection, errors)
    write_atomically(run_dir / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print(results_summary(results))
    if errors:
        videos = len({question.video for question in selection.questions})
        sys.exit(
            f"{len(errors)} of {videos} videos have errors, see {run_dir}/results.json; the same command tries again"
        )


@contextmanager
def _no_empty_folder(folder: Path) -> Iterator[None]:
    """Remove the folder, which Hydra has made, and its parents as far as they are empty, if the start fails."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            os.removedirs(folder)
        raise


def _prepare(cfg: DictConfig) -> tuple[Selection, VideoLLM, Compressor, dict[str, Any]]:
    """Return the questions to answer, the model, the compressor, and what the answers depend on."""
    name = str(cfg.llm)  # raises before anything is read if there is none
    if cfg.frames < 1:
        raise ValueError(f"expected frames of at least 1, got frames={cfg.frames}")
    if not isinstance(cfg.prefill, str):
        raise ValueError(f"expected a text as prefill, got prefill={cfg.prefill}; quote it twice: 'prefill=\"…\"'")
    listing = instantiate(cfg.questions)
    listed = listing.read()
    selection = listing.select(listed, cfg.limit)
    compressor = instantiate(cfg.compressor)
    llm = load_llm(name, dtype=cfg.dtype, device_map=cfg.device_map, attention=cfg.attention)
    letter_ids(llm.processor, max(len(question.options) for question in listed), prefill=cfg.prefill)
    parts = hash_parts(
        llm.model,
        llm.processor,
        listed,
        prefill=cfg.prefill,
        frames=cfg.frames,
        compressor=OmegaConf.to_container(cfg.compressor, resolve=True),  # type: ignore[arg-type]
    )
    return selection, llm, compressor, parts


def _results(cfg: DictConfig, file: AnswerFile, selection: Selection, errors: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of `results.json`."""
    published = OmegaConf.to_container(cfg.published, resolve=True)
    hydra_config = HydraConfig.get()
    name = str(hydra_config.runtime.choices["questions"])
    run = describe_run(experiment=name, seed=0, published={}, source=Path(__file__))
    for package in ("transformers", "tokenizers"):
        run["versions"][package] = __import__(package).__version__
    return {
        "level": "question",
        **run,
        "task": "multiple choice",
        "command": shlex.join(["python", "-m", "vtm.qa", *hydra_config.overrides.task]),
        "config": OmegaConf.to_container(cfg, resolve=True),
        "published": {"note": NOTE, "figures": published} if published else {"figures": {}},
        "hash": file.hash,
        **file.parts,
        **score_answers(selection.questions, file.answers, cyclic=cfg.cyclic),
        "missing": selection.missing_questions,
        "missing_videos": selection.missing,
        "errors": dict(errors),
    }


def _write_submission(run_dir: Path, questions: Sequence[Question], file: AnswerFile) -> None:
    """Write `{id: index}` for the server of a list that keeps some of its answers secret, which EgoSchema does."""
    if any(question.answer is None for question in questions):
        chosen = {q.id: file.answers[q.id, 0]["choice"] for q in questions if (q.id, 0) in file.answers}
        write_atomically(run_dir / "submission.json", json.dumps(chosen, indent=0) + "\n")


if __name__ == "__main__":
    main()
