"""The command draws a model and a video, and refuses what it cannot draw."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

import vtm
from vtm.pictures.selection import Selection
from vtm.pictures.sheet import draw_sheet
from vtm.video.scanning import duration
from vtm.visualize import main

WINDOWS = ("data/protocol=windows", "data.protocol.num_frames=4", "data.protocol.stride=1")


@pytest.fixture(scope="module")
def files(tmp_path_factory, make_model, make_video) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("given")
    return str(make_model(folder / "model.safetensors", *WINDOWS)), str(make_video(folder / "drift.mp4", 6.5))


def test_files_are_written_and_named(call, tmp_path, files, capsys):
    call(main, tmp_path, *files, "--out", "pictures")
    names = ["drift.mp4_sheet.png", "drift.mp4_sheet.pdf", "drift.mp4_overlay.mp4", "drift.mp4_page.html"]
    assert capsys.readouterr().out.splitlines() == [str(Path("pictures", name)) for name in names]
    sheet, pdf, overlay, page = (tmp_path / "pictures" / name for name in names)
    assert sorted(tmp_path.rglob("*.*")) == sorted([sheet, pdf, overlay, page])
    assert pdf.read_bytes().startswith(b"%PDF")
    assert image.imread(sheet).shape[1] > 4 * 250  # four frames of two blocks
    assert duration(overlay) == pytest.approx(4 / 2)
    best, probability = vtm.load(files[0]).trace(files[1]).scores[0]
    text = page.read_text(encoding="utf-8")
    assert f'"scores":[["{best}",{probability}' in text
    assert '"times":["0 s","1 s","2 s","3 s"]' in text


@pytest.mark.parametrize("name", [b"\xff.mp4", b"a\n\xe9 $x$ <b>.mp4"])
def test_a_name_that_is_no_text_is_drawn(call, tmp_path, files, name):
    video = tmp_path / os.fsdecode(name)
    shutil.copy(files[1], video)
    call(main, tmp_path, files[0], str(video), "--out", "pictures", "--start", "1")
    found = sorted(os.listdir(os.fsencode(tmp_path / "pictures")))
    assert found == [name + end for end in (b"_1s_overlay.mp4", b"_1s_page.html", b"_1s_sheet.pdf", b"_1s_sheet.png")]
    page = (tmp_path / "pictures" / os.fsdecode(name + b"_1s_page.html")).read_bytes().decode()  # all of it is UTF-8
    title = json.loads(re.search(r'"title":("(?:[^"\\]|\\.)*")', page)[1])
    assert title.isprintable()
    assert title.endswith(".mp4")


def test_videos_with_equal_stems_do_not_replace_each_other(call, tmp_path, files, make_video):
    other = make_video(tmp_path / "drift.mkv", 6.5)
    for video in (files[1], str(other)):
        call(main, tmp_path, files[0], video, "--out", "pictures", "--only", "page")
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "drift.mkv_page.html", "drift.mp4_page.html"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "suffixes"),
    [("sheet", ["_sheet.pdf", "_sheet.png"]), ("video", ["_overlay.mp4"]), ("page", ["_page.html"])],
)
def test_one_kind_of_one_window(call, tmp_path, files, kind, suffixes):
    call(main, tmp_path, *files, "--out", "pictures", "--only", kind, "--start", "4")
    path, *others = sorted((tmp_path / "pictures").iterdir())
    assert [file.name for file in (path, *others)] == [f"drift.mp4_4s{suffix}" for suffix in suffixes]
    if kind == "page":  # the window extends beyond the end of the video
        assert '"times":["4 s","5 s","6 s"]' in path.read_text(encoding="utf-8")
    if kind == "video":
        assert duration(path) == pytest.approx(3 / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.safetensors", "VIDEO"], "none.safetensors is not a file"),
        (["MODEL", "none.mp4"], "none.mp4"),
        (["MODEL", "MODEL"], "model.safetensors"),
        (["MODEL", "VIDEO", "--start", "7"], r"expected a clip to start in \[0, 6.50\) s, got 7.0 s"),
        (["MODEL", "VIDEO", "--blocks", "1,3"], "blocks: expected some of 1,2, each at most once, got 1,3"),
        (["MODEL", "VIDEO", "--layers", "heat"], "layers: expected some of saliency,targets,groups, .*, got heat"),
    ],
)
def test_what_cannot_be_drawn_ends_in_one_sentence(call, tmp_path, files, arguments, message):
    arguments = [{"MODEL": files[0], "VIDEO": files[1]}.get(argument, argument) for argument in arguments]
    with pytest.raises(SystemExit, match=message) as stopped:
        call(main, tmp_path, *arguments, "--out", "pictures")
    assert "\n" not in str(stopped.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--blocks", "first"], "--blocks: expected numbers with commas between them, such as 1,3, got first"),
        (["--frames", "0"], "--frames: expected a whole number above 0, got 0"),
        (["--frames", "few"], "--frames: expected a whole number above 0, got few"),
        (["--scale", "both"], "--scale: invalid choice: 'both' (choose from "),
    ],
)
def test_values_that_cannot_be_read_are_refused(call, tmp_path, files, capsys, arguments, message):
    with pytest.raises(SystemExit):
        call(main, tmp_path, *files, "--out", "pictures", *arguments)
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_blocks_layers_frames_and_scale_are_those_of_the_command_line(call, tmp_path, files):
    chosen = ("--blocks", "2", "--layers", "saliency,groups", "--frames", "2", "--scale", "block")
    call(main, tmp_path, *files, "--out", "pictures", *chosen)
    call(main, tmp_path, *files, "--out", "usual")
    small, usual = (image.imread(tmp_path / folder / "drift.mp4_sheet.png") for folder in ("pictures", "usual"))
    assert small.shape[0] < usual.shape[0]
    expected = draw_sheet(
        vtm.load(files[0]).trace(files[1]),
        title="drift.mp4",
        selection=Selection(blocks=(2,), layers=("saliency", "groups"), frames=2, scale="block"),
    )
    assert np.array_equal((small * 255).round().astype(np.uint8), expected)
    text = (tmp_path / "pictures" / "drift.mp4_page.html").read_text(encoding="utf-8")
    assert '"layers":["Saliency","Groups"],"oneScale":false,"blocks":[{"number":2,' in text
    assert '"times":["0 s","1 s","2 s","3 s"]' in text  # of all frames


def test_class_tokens_are_not_drawn(call, tmp_path, make_model, files):
    overrides = ("encoder.cls_in_grid=true", "encoder.squash=true", "data.protocol.num_frames=4")
    model = make_model(tmp_path / "given" / "model.safetensors", *overrides)
    call(main, tmp_path, str(model), files[1], "--out", "pictures", "--only", "page")
    text = (tmp_path / "pictures" / "drift.mp4_page.html").read_text(encoding="utf-8")
    assert '"height":2,"width":2,' in text
