"""Ask a video LLM about videos, with fewer visual tokens: python -m vtm.ask MODEL video.mp4 --question "What happens?".

Add --compressor dyntok threshold=0.6 to merge similar tokens, --choices to let the model choose one of several answers,
and --picture to see which frames were kept and which tokens were merged.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vtm.cli.errors import concise_errors, interruption, one_sentence

if TYPE_CHECKING:  # slow to import, so only after the arguments are checked
    from vtm.compressors import Clip
    from vtm.video_llm.answering import Answer, Choice
    from vtm.video_llm.loading import VideoLLM

_Result = TypeVar("_Result")

COMPRESSORS = Path(__file__).parents[1] / "conf" / "compressor"
_EPILOG = """\
MODEL is a folder that save_pretrained has written, or a name such as owner/model on the Hugging Face hub, of one of the
families llava_onevision, llava_next_video, qwen2_vl, qwen2_5_vl, qwen3_vl, internvl and smolvlm. Only .safetensors
files are read, no code that comes with a model is run, and nothing is uploaded.

  python -m vtm.ask MODEL video.mp4 --question "What happens?" --compressor dyntok threshold=0.6
  python -m vtm.ask MODEL video.mp4 --question "Who wins?" --choices "the dog" "the cat" --compressor dyto budget=4.0
  python -m vtm.ask MODEL videos/ --calibrate 0.444

What is printed for each video:

  answer       what the model writes, or the option whose letter is the most probable first token
  tokens       visual tokens before → after; newline tokens and text are counted apart
  context      length of the prompt that the language model reads
  frames       frames that were read, and the frames, rows and columns of visual tokens
  encoding     seconds and peak memory from the pixels to the compressed tokens
  prefill      the same, from these tokens to the first logits
  generation   the same, for the tokens of the answer

On a GPU, memory is that of all tensors, weights included; on a CPU, that of the whole process.

The exit status is 1 if a video could not be answered.
"""


def main() -> None:
    """Ask about the videos on the command line; exit with status 1 if one could not be answered."""
    arguments = _arguments()
    for stream in (sys.stdout, sys.stderr):  # file names may contain bytes that cannot be printed
        cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")
    with concise_errors():
        sys.exit(_run(arguments))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vtm.ask",
        description="Ask a video LLM about videos, with fewer visual tokens.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a folder, or a name on the Hugging Face hub")
    parser.add_argument(
        "videos", metavar="VIDEO", nargs="+", help="video files, folders, or quoted patterns: 'videos/*.mp4'"
    )
    parser.add_argument("--question", metavar="TEXT", help="what to ask about each video")
    parser.add_argument(
        "--choices", metavar="TEXT", nargs="+", help="2 to 26 answers, of which the model chooses one; without letters"
    )
    parser.add_argument(
        "--compressor",
        metavar=("NAME", "KEY=VALUE"),
        nargs="+",
        default=["none"],
        help=f"one of {', '.join(sorted(path.stem for path in COMPRESSORS.glob('*.yaml')))} (default: none)",
    )
    parser.add_argument(
        "--frames", metavar="N", type=_count, default=32, help="frames of each video, evenly spaced (default: 32)"
    )
    parser.add_argument(
        "--picture", metavar="FOLDER", type=Path, help="draw the kept frames and merged tokens of each video there"
    )
    parser.add_argument(
        "--calibrate",
        metavar="SHARE",
        type=float,
        help="instead of asking, find the threshold at which dyntok keeps this share of the tokens of these videos",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the weights (auto: as stored)",
    )
    parser.add_argument(
        "--device-map",
        metavar="NAME",
        help="auto to use all GPUs, or a device such as cuda:1 or cpu (default: one GPU if there is one, else cpu)",
    )
    parser.add_argument(
        "--attention", metavar="NAME", help="eager, sdpa, flash_attention_2 (default: that of transformers)"
    )
    parser.add_argument("--prefill", metavar="TEXT", default="", help="how the answer begins, such as '('")
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=_count,
        default=128,
        help="tokens after which an answer is cut off (default: 128)",
    )
    arguments = parser.parse_args()
    if arguments.calibrate is None and not (arguments.question or "").strip():
        parser.error("expected a question: --question TEXT (or --calibrate SHARE)")
    if arguments.choices is not None and not 2 <= len(arguments.choices) <= 26:
        parser.error(f"expected 2 to 26 --choices, got {len(arguments.choices)}")
    if any(not choice.strip() for choice in arguments.choices or ()):
        parser.error("expected a text as each of the --choices, got an empty one")
    if arguments.calibrate is not None and arguments.compressor[0] not in ("none", "dyntok"):
        parser.error(f"--calibrate is for --compressor dyntok, got {arguments.compressor[0]}")
    return arguments


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text}")
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    """Ask about all videos; return the exit status."""
    from vtm.cli.compressor import build_compressor
    from vtm.system.threads import use_threads
    from vtm.video.listing import list_videos

    compressor = build_compressor(arguments.compressor, COMPRESSORS)
    videos = list_videos(arguments.videos)
    if arguments.picture is not None:
        arguments.picture.mkdir(parents=True, exist_ok=True)
    use_threads()

    from vtm.video_llm.loading import load_llm
    from vtm.video_llm.prompts import letter_ids

    llm = load_llm(
        arguments.model, dtype=arguments.dtype, device_map=arguments.device_map, attention=arguments.attention
    )
    if arguments.choices is not None:
        letter_ids(llm.processor, len(arguments.choices), prefill=arguments.prefill)  # raises what all videos would
    each = _Each(videos, "ask" if arguments.calibrate is None else "calibrate")
    try:
        if arguments.calibrate is not None:
            _calibrate(llm, each, arguments, axis=compressor.keywords.get("axis", "row"))
        else:
            for text in each.results(_Asker(llm, compressor, arguments)):
                each.show(text)
    except BaseException as stop:
        if (status := interruption(stop)) is None:
            raise
        _say(f"interrupted after {each.done} of {len(videos)} videos")
        return status
    if each.failed and len(videos) > 1:
        _say(f"{each.failed} of {len(videos)} videos failed")
    return int(each.failed > 0)


class _Each:
    """The videos of the command, one after the other.

    Attributes:
        videos: files.
        done: number of videos that are finished, failed ones included.
        failed: number of videos that failed.
        show: function that prints a text.
    """

    def __init__(self, videos: Sequence[Path], label: str) -> None:
        self.videos, self._label = videos, label
        self.done = self.failed = 0
        self.show: Callable[[str], None] = print

    def results(self, call: Callable[[Path], _Result]) -> Iterator[_Result]:
        """Yield the result of each video; print what is wrong with those that fail."""
        from vtm.inference.prediction import printable
        from vtm.system.progress import Progress

        with Progress(self._label, len(self.videos)) if len(self.videos) > 1 else nullcontext() as progress:
            self.show = print if progress is None else progress.print
            for video in self.videos:
                try:
                    result = call(video)
                except Exception as error:
                    self.failed += 1
                    _say(printable(f"failed: {_explain(video, error)}"))
                else:
                    yield result
                self.done += 1
                if progress is not None:
                    progress.advance(f"{self.failed} failed" if self.failed else "")


class _Asker:
    """A function that asks about a video and describes the answer, and draws a picture if the command line says so."""

    def __init__(self, llm: VideoLLM, compressor: partial[Any], arguments: argparse.Namespace) -> None:
        self._llm, self._compressor, self._given = llm, compressor, arguments
        self._pictures: set[str] = set()

    def __call__(self, video: Path) -> str:
        """Return the lines to print."""
        from vtm.inference.prediction import printable
        from vtm.video_llm.answering import choose_option, generate_answer
        from vtm.video_llm.description import answer_text, describe, tokens_text
        from vtm.video_llm.frames import read_clip
        from vtm.video_llm.picture import draw_compression

        given = self._given
        clip = read_clip(video, given.frames)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"0 of \d+ tokens merged")  # which the description says
            if given.choices is None:
                result: Answer | Choice = generate_answer(
                    self._llm,
                    clip,
                    given.question,
                    self._compressor,
                    prefill=given.prefill,
                    max_new_tokens=given.max_new_tokens,
                )
            else:
                result = choose_option(
                    self._llm, clip, given.question, given.choices, self._compressor, prefill=given.prefill
                )
        options, label = given.choices or (), " ".join(given.compressor)
        lines = [str(video), *describe(clip, result, options=options, compressor=label)]
        if given.picture is not None:
            path = self._file(video)
            answer = answer_text(result, options)
            facts = [f"Question: {given.question}", f"Answer: {answer}", f"Tokens: {tokens_text(result.cost, label)}"]
            draw_compression(path, self._llm, clip, result.compression, lines=[printable(fact) for fact in facts])
            lines.append(f"  {'picture':12} {path}")
        return "\n".join(map(printable, lines))

    def _file(self, video: Path) -> Path:
        """Return a file for the picture of a video that no other video of this command has."""
        number, name = 1, f"{video.name}_{self._given.compressor[0]}"
        while (file := name + (f"_{number}" if number > 1 else "")) in self._pictures:  # of another folder
            number += 1
        self._pictures.add(file)
        path: Path = self._given.picture / f"{file}.png"
        return path


def _calibrate(llm: VideoLLM, each: _Each, arguments: argparse.Namespace, axis: str) -> None:
    """Print the thresholds of dyntok at which a share of the tokens is kept."""
    from vtm.compressors import calibrate
    from vtm.inference.prediction import printable
    from vtm.video_llm.answering import encode_clip
    from vtm.video_llm.frames import read_clip

    used: list[Path] = []

    def encode(video: Path) -> Clip:
        clip = encode_clip(llm, read_clip(video, arguments.frames))
        used.append(video)
        return clip

    found = calibrate(each.results(encode), arguments.calibrate, axis=axis)
    replaced = ("threshold=", "target_ratio=")
    others = "".join(f" {word}" for word in arguments.compressor[1:] if not word.startswith(replaced))
    print(f"thresholds at which dyntok keeps {arguments.calibrate:.1%} of the tokens:")
    for video, threshold, kept in zip(used, found.per_clip, found.kept, strict=True):
        print(f"  {threshold:.6f}  {printable(str(video))} alone; the common threshold keeps {kept:.1%} of it")
    print(f"  {found.pooled:.6f}  common to all: --compressor dyntok threshold={found.pooled:.6f}{others}")


def _explain(video: Path, error: Exception) -> str:
    """Return what is wrong with a video in one sentence."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    if "OutOfMemoryError" in type(error).__name__ or "can't allocate memory" in str(error):
        return f"{video}: out of memory; take fewer --frames, compress more, or set --dtype bfloat16"
    sentence = one_sentence(error)
    if sentence is None:
        sentence = f"{type(error).__name__}: {' '.join(str(error).split())} (HYDRA_FULL_ERROR=1 shows where)"
    return sentence if sentence.startswith(str(video)) else f"{video}: {sentence}"


def _say(text: str) -> None:
    """Write a line in one call, so that lines of several processes do not mix."""
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
