"""Runs of `python -m vtm.qa` in the report, and their comparison."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from vtm.results.comparison import Comparison, compare
from vtm.results.differences import differences_csv, differences_markdown
from vtm.results.markdown import markdown, runs_csv
from vtm.results.record import ids_sha256
from vtm.results.runs import read_runs
from vtm.results.tables import group_runs

Write = Callable[..., Path]
VIDEOS = {"q0": "a", "q1": "a", "q2": "b", "q3": "b"}


@pytest.fixture
def write_qa(tmp_path: Path) -> Write:
    """Write the folder of a run of vtm.qa, given which questions are right in each order of their options."""

    def write_qa(
        name: str,
        right: Mapping[str, list[int]],
        *,
        compressor: Mapping[str, Any] | None = None,
        after: int = 50,
        **facts: Any,
    ) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        compressor = dict(compressor or {"_target_": "vtm.compressors.dyntok", "threshold": 0.6})
        orders = max(map(len, right.values()))
        values = [fmean(row[k % len(row)] for row in right.values()) for k in range(orders)]
        content = {
            "level": "question", "experiment": "nextqa", "seed": 0, "commit": "0123456", "versions": {},
            "task": "multiple choice", "command": "python -m vtm.qa questions=nextqa llm=tiny",
            "config": {"llm": "tiny", "frames": 4, "compressor": compressor, "cyclic": orders > 1},
            "published": {"figures": {}}, "hash": f"hash of {name}", "weights": "w", "prompt": "p" * 64, "frames": 4,
            "compressor": compressor, "metric": "accuracy", "value": fmean(row[0] for row in right.values()),
            "interval": [0.125, 0.875], "n": len(right), "videos": 2, "unscored": 1,
            "floor": {"chance": 0.2, "majority": 0.25, "majority_letter": "B"}, "ids_sha256": ids_sha256(right),
            "groups": {}, "tokens": {"before": 100.0, "after": after, "kept": after / 100, "kept_quantiles": {},
                                     "nothing_merged": after == 100},
            "seconds_per_question": 0.25, "missing": 0, "missing_videos": [], "errors": {}, **facts,
        }  # fmt: skip
        if orders > 1:
            scores = {"mean": fmean(values), "min": min(values), "max": max(values), "all_correct": 0.0}
            content["cyclic"] = {"n": len(right), "orders": orders, "values": values, **scores}
        (folder / "results.json").write_text(json.dumps(content))
        lines = [
            {"id": id, "video": VIDEOS[id], "order": order, "choice": 1 - hit, "answer": 0, "correct": bool(hit),
             "tokens_before": 100, "tokens_after": after, "frames": 4, "seconds": 0.25, "hash": content["hash"]}
            for id, row in right.items() for order, hit in enumerate(row)
        ]  # fmt: skip
        lines.append({**lines[0], "id": "secret", "answer": None, "correct": None})
        text = "".join(f"{json.dumps(line)}\n" for line in reversed(lines))  # in any order
        (folder / "answers.jsonl").write_text(text + '{"id": "q0", "vid')  # the line of a process that was killed
        return folder

    return write_qa


def compared(runs: list[Path], baseline: list[Path]) -> list[Comparison]:
    found, _ = read_runs([*runs, *baseline], checkpoint="best")
    return compare(group_runs(found, baseline=baseline))


def official(*hits: int) -> dict[str, list[int]]:
    return {id: [hit] for id, hit in zip(VIDEOS, hits, strict=True)}


def table_of(text: str) -> list[dict[str, str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_they_have_a_table_with_interval_tokens_and_seconds(write_qa: Write, tmp_path: Path, checkpoint: str) -> None:
    write_qa("dyntok", official(1, 0, 1, 1), errors={"c": "no frames"})
    write_qa("none", official(1, 0, 0, 1), compressor={"_target_": "vtm.compressors.keep_all"}, after=100, missing=3)
    runs, unfinished = read_runs([tmp_path], checkpoint=checkpoint)
    tables = group_runs(runs)
    text = markdown(tables, unfinished, checkpoint=checkpoint)
    dyntok, none = table_of(text)
    assert "## nextqa (multiple choice): accuracy of 4 questions about 2 videos, ids " in text
    assert (dyntok["accuracy"], dyntok["95 % interval"], dyntok["floor"]) == ("0.750", "0.125 to 0.875", "0.250")
    assert (dyntok["chance"], dyntok["s/question"]) == ("0.200", "0.25")
    assert (dyntok["tokens kept %"], none["tokens kept %"]) == ("50", "100 (nothing merged)")
    assert {"clips/s", "peak GB", "worst (seed)", "validation", "mean of orders"}.isdisjoint(dyntok)
    assert "3 of the questions are missing." in text
    assert "Videos with errors in at least one run: 1; their questions are not counted." in text
    heading, first, _ = (line.split(",") for line in runs_csv(tables).splitlines())
    row = dict(zip(heading, first, strict=True))
    assert (row["videos"], row["questions"], row["test"], row["nothing_merged"]) == ("2", "4", "0.75", "False")
    assert (row["tokens_kept_percent"], row["seconds_per_question"], row["hash"]) == ("50.0", "0.25", "hash of dyntok")


def test_one_that_runs_is_unfinished(write_qa: Write, tmp_path: Path) -> None:
    folder = write_qa("dyntok", official(1, 0, 1, 1))
    (folder / "results.json").unlink()
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "hydra.yaml").write_text("hydra:\n  job:\n    name: qa\n")
    assert read_runs([tmp_path], checkpoint="best") == ([], [(folder, "no results.json")])


def test_questions_about_one_video_are_resampled_together(write_qa: Write) -> None:
    base, run = write_qa("base", official(0, 0, 1, 1)), write_qa("run", official(1, 1, 0, 1))
    (one,) = found = compared([run], [base])
    assert one.difference == (0.25, -0.5, 1)  # of two videos, with differences of 1 and -1/2
    assert (one.only_run, one.only_baseline, one.p, one.items, one.clusters) == (2, 1, 1, 4, 2)
    text = differences_markdown(found)
    assert "on the same 4 test questions. Its 95 % interval is a paired bootstrap over the videos of these" in text
    assert table_of(text)[0]["order of options"] == "official"


def test_rotated_options_are_compared_by_their_mean_too(write_qa: Write) -> None:
    base = write_qa("base", {"q0": [1, 0, 0], "q1": [0, 0, 0], "q2": [1, 1, 0], "q3": [1, 0]})
    run = write_qa("run", {"q0": [1, 1, 1], "q1": [0, 1, 0], "q2": [0, 1, 0], "q3": [0, 1]})
    single, mean = found = compared([run], [base])
    assert (single.order, single.value, single.baseline) == ("official", 0.25, 0.75)
    # the question with two options is asked in its first order again
    assert (mean.order, mean.value) == ("mean of all", pytest.approx((1 + 1 / 3 + 1 / 3 + 1 / 3) / 4))
    assert mean.baseline == pytest.approx((1 / 3 + 0 + 2 / 3 + 2 / 3) / 4)
    assert (mean.p, mean.only_run) == (None, None)
    assert [row["order of options"] for row in table_of(differences_markdown(found))] == ["official", "mean of all"]
    assert ",mean of all," in differences_csv(found).splitlines()[2]
    assert len(compared([write_qa("plain", official(1, 0, 1, 1))], [base])) == 1


def test_seeds_of_random_compressors_are_seeds(write_qa: Write) -> None:
    base = write_qa("base", official(1, 0, 0, 0), compressor={"_target_": "vtm.compressors.keep_all"})
    runs = [
        write_qa(f"{seed}", hits, compressor={"_target_": "vtm.compressors.random_tokens", "seed": seed})
        for seed, hits in enumerate((official(1, 1, 0, 0), official(1, 1, 1, 0)))
    ]
    one, two, both = compared(runs, [base])
    assert [each.difference.value for each in (one, two, both)] == [0.25, 0.5, 0.375]
    assert [row["seed"] for row in table_of(differences_markdown([one, two, both]))] == ["0", "1", "mean of 0, 1"]


def test_other_prompts_frames_and_questions_are_refused(write_qa: Write) -> None:
    hits = official(1, 0, 0, 0)
    base = write_qa("base", hits)
    others = {
        "prompt: qqqqqqqq and pppppppp": write_qa("prompt", hits, prompt="q" * 64),
        "frames: 8 and 4": write_qa("frames", hits, frames=8),
        "test items: 3 with the hash": write_qa("ids", {id: hits[id] for id in ("q0", "q1", "q2")}),
    }
    for reason, folder in others.items():
        with pytest.raises(ValueError, match=f"^{folder} and {base} cannot be compared, .* differ in {reason}"):
            compared([folder], [base])


def test_answers_that_are_missing_or_of_another_setting_are_named(write_qa: Write) -> None:
    base, run = write_qa("base", official(1, 0, 0, 0)), write_qa("run", official(1, 0, 0, 0))
    path = run / "answers.jsonl"
    path.write_text(path.read_text().replace("hash of run", "hash of base"))
    with pytest.raises(ValueError, match=f"{path} is damaged, or of another test than results.json"):
        compared([run], [base])
    path.write_text("")
    with pytest.raises(ValueError, match=f"{path} is damaged, or of another test than results.json"):
        compared([run], [base])
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path} does not exist; answer the questions again: python -m vtm.qa"):
        compared([run], [base])
