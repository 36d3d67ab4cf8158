"""Pictures lie where they belong, untouched, and words beside them."""

import warnings

import numpy as np
from matplotlib import font_manager

from vtm.pictures import canvas as module
from vtm.pictures.canvas import Canvas
from vtm.pictures.layers import Scale, heat_shades


def test_pictures_stay_as_they_are_and_text_is_where_it_was_put():
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
    assert rows.max() - rows.min() in range(18, 26)  # a capital has three quarters of the size
    assert columns.min() in range(100, 106)


def test_a_dollar_sign_is_no_formula():
    plain, formula = Canvas(300, 40), Canvas(300, 40)
    plain.write(5, 30, "x_1", 20)
    formula.write(5, 30, "$x_1$", 20)
    assert (formula.picture() < 128).sum() > 1.3 * (plain.picture() < 128).sum()


def test_the_scale_runs_from_low_to_high():
    canvas = Canvas(120, 80)
    canvas.colour_bar(10, 15, (12, 50), Scale(-0.5, 0.25), 10)
    drawn = canvas.picture()
    assert (drawn[15:65, 10:22] == drawn[15:65, 10:11]).all()
    assert drawn[15, 10].tolist() == heat_shades()[255].tolist()
    assert drawn[64, 10].tolist() == heat_shades()[0].tolist()
    assert drawn[15:30, 30:].min() < 128  # the bounds are written beside both ends
    assert drawn[50:65, 30:].min() < 128
    assert drawn[32:48, 30:].min() == 255


def test_letters_that_no_font_has_are_drawn_without_a_warning():
    canvas = Canvas(300, 40)
    canvas.write(5, 30, "料理 요리 \U0010fffd", 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = canvas.picture()
    assert drawn.min() < 128


def test_of_the_families_those_that_are_installed_are_tried_in_turn(monkeypatch):
    installed = ["Noto Sans CJK JP", "Comic Neue", "DejaVu Sans"]
    monkeypatch.setattr(font_manager.fontManager, "get_font_names", lambda: installed)
    assert module._families.__wrapped__() == ["DejaVu Sans", "Noto Sans CJK JP"]
