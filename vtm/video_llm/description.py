"""Describe an answer and its cost in lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from vtm.video_llm.answering import Answer, Choice, Cost, Phase
from vtm.video_llm.frames import VideoClip

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def answer_text(result: Answer | Choice, options: Sequence[str]) -> str:
    """Return the answer; for a choice, its letter, the option and its probability among the letters."""
    if isinstance(result, Answer):
        return result.text
    probability = float(result.probabilities[result.index])
    return f"{_LETTERS[result.index]}. {options[result.index]} ({probability:.2f})"


def describe(clip: VideoClip, result: Answer | Choice, *, options: Sequence[str] = (), compressor: str) -> list[str]:
    """Describe an answer, the tokens, and the cost of each phase; one line each but for long answers.

    Args:
        clip: frames that were asked about.
        result: answer or choice.
        options: options of a choice.
        compressor: name and settings of the compressor; "none" if there was none.
    """
    cost = result.cost
    facts = [("answer", answer_text(result, options) or "(the model wrote nothing)")]
    if isinstance(result, Choice):
        letters = zip(_LETTERS, result.probabilities.tolist(), strict=False)
        facts.append(("letters", ", ".join(f"{letter} {probability:.3f}" for letter, probability in letters)))
    facts.append(("tokens", tokens_text(cost, compressor)))
    facts.append(("context", _context(cost)))
    facts.append(("frames", _frames(clip, result)))
    facts.append(("encoding", _phase(cost.encoding)))
    facts.append(("prefill", _phase(cost.prefill)))
    if cost.generation is not None:
        facts.append(("generation", f"{_phase(cost.generation)}, {_count(cost.new_tokens, 'token')}"))
    return [f"  {name:12} {line}" for name, text in facts for name, line in _indented(name, text)]


def tokens_text(cost: Cost, compressor: str) -> str:
    """Say how many visual tokens are left.

    Args:
        cost: cost of the answer.
        compressor: name and settings of the compressor; "none" if there was none.
    """
    before, after = cost.tokens_before, cost.tokens_after
    if compressor == "none":
        return f"{before} visual"
    if before == after:
        return f"0 of {before} tokens merged: {compressor} changed nothing"
    return f"{before} → {after} visual ({after / before:.1%}) by {compressor}"


def _context(cost: Cost) -> str:
    newlines = f"{_count(cost.newlines, 'newline token')}, " if cost.newlines else ""
    visual = _count(cost.tokens_after, "visual token")
    return f"{cost.context} tokens: {visual}, {newlines}{cost.text} of text"


def _frames(clip: VideoClip, result: Answer | Choice) -> str:
    (before,), (after,) = result.compression.clips, result.compression.compressed
    time, height, width = before.grid
    kept = len(after.position[:, 0].unique()) if bool((after.index < 0).any()) else time
    text = f"{len(clip.frames)} of {clip.seconds:.1f} s, grid of tokens {time} × {height} × {width}"
    if kept < time:
        text += f", {kept} of {time} kept"
    if clip.substituted:
        text += f"; {clip.substituted} damaged, replaced by the nearest clean frame"
    return text


def _phase(phase: Phase) -> str:
    memory = "" if phase.peak_bytes is None else f", peak memory {phase.peak_bytes / 1e9:.2f} GB"
    return f"{phase.seconds:.2f} s{memory}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _indented(name: str, text: str) -> list[tuple[str, str]]:
    """Put the name before the first line only."""
    return [(name if number == 0 else "", line) for number, line in enumerate(text.splitlines() or [""])]
