"""Pictures and text are rendered where they were placed, in PNG and in PDF."""

import io
import re
import struct
import warnings
import zlib

import numpy as np
from matplotlib import font_manager, image

from vtm.pictures.canvas import Canvas


def test_pictures_are_unchanged_and_text_is_where_it_was_placed():
    canvas = Canvas(200, 101)
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    canvas.show(10, 5, picture)
    canvas.write(100, 60, "H", 30, va="top")
    drawn = canvas.picture()
    assert drawn.shape == (101, 200, 3)
    assert np.array_equal(drawn[5:25, 10:40], picture)
    drawn[5:25, 10:40] = 255
    rows, columns = np.nonzero(drawn.min(axis=2) < 128)
    assert rows.min() in range(58, 68)
    assert rows.max() - rows.min() in range(18, 26)  # a capital is three quarters of the size high
    assert columns.min() in range(100, 106)


def test_dollar_signs_do_not_make_a_formula():
    plain, formula = Canvas(300, 40), Canvas(300, 40)
    plain.write(5, 30, "x_1", 20)
    formula.write(5, 30, "$x_1$", 20)
    assert (formula.picture() < 128).sum() > 1.3 * (plain.picture() < 128).sum()


def test_names_that_are_no_text_are_drawn():
    canvas = Canvas(200, 40)
    canvas.write(10, 10, "\udcff \ud800.mp4", 12)
    assert canvas.picture().min() < 200


def images_of(pdf):
    """Read the pictures in a PDF file, each of which is stored like a PNG file of three channels of eight bits."""
    found = []
    for head, content in re.findall(
        rb"<<([^<>]*(?:<<[^<>]*>>[^<>]*)*)>>\s*stream\r?\n(.*?)\s*endstream", pdf, re.DOTALL
    ):
        if b"/Subtype /Image" in head:
            width, height = (int(re.search(rb"/%s (\d+)" % name, head)[1]) for name in (b"Width", b"Height"))
            parts = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", content), (b"IEND", b"")
            chunks = [
                struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
                for name, data in parts
            ]
            png = image.imread(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)))
            found.append((png[::-1, :, :3] * 255).round().astype(np.uint8))  # matplotlib stores the last row first
    return found


def test_a_pdf_holds_the_pictures_pixel_by_pixel_and_the_text_beside_them():
    canvas = Canvas(600, 150)
    canvas.show(100, 5, np.random.default_rng(0).integers(0, 256, (90, 300, 3), np.uint8))
    canvas.write(5, 140, "a title", 30)
    pdf = canvas.pdf()
    assert pdf.startswith(b"%PDF")
    assert re.search(rb"/MediaBox \[\s*0 0 144 36\s*\]", pdf)  # in points: 300 pixels per inch
    (found,) = images_of(pdf)
    assert np.array_equal(found, canvas.pixels)
    assert b"/Type /Font" in pdf
    assert b"/FontFile2" in pdf
    assert canvas.pdf() == pdf
    assert canvas.picture()[110:].min() < 128


def test_characters_missing_from_all_fonts_cause_no_warning():
    canvas = Canvas(300, 40)
    canvas.write(5, 30, "料理 요리 \U0010fffd", 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = canvas.picture()
        canvas.pdf()
    assert drawn.min() < 128


def test_text_uses_the_font_of_matplotlib_and_then_others_that_are_installed():
    canvas = Canvas(300, 40)
    canvas.write(5, 30, "料理", 20)
    first, *others = canvas.figure.texts[0].get_fontfamily()
    assert first == "DejaVu Sans"
    assert set(others) <= set(font_manager.fontManager.get_font_names())
