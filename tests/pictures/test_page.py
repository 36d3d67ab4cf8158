"""The page holds what was merged, needs nothing but itself, and does in a real browser what its controls say."""

import base64
import json
import re
import shutil

import numpy as np
import pytest

from vtm.pictures.colours import group_colours
from vtm.pictures.page import write_page

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture
def path(tmp_path, view, scores):
    path = tmp_path / "new" / "page.html"
    write_page(path, view, title="</script><i>a clip", scores=scores)
    return path


def numbers(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def test_the_page_holds_groups_targets_and_saliency(path, view, scores):
    text = path.read_text(encoding="utf-8")
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    (data,) = map(json.loads, found)
    assert data["title"] == "</script><i>a clip"
    assert [tuple(pair) for pair in data["scores"]] == scores
    assert data["times"] == ["0.5 s", "1.5 s", "2.5 s", "3.5 s"]
    assert (data["height"], data["width"], len(data["frames"])) == (3, 3, 4)
    for block, expected in zip(data["blocks"], view.blocks, strict=True):
        assert numbers(block["group"], "<u4").tolist() == expected.group.flatten().tolist()
        assert numbers(block["target"], np.uint8).tolist() == expected.target.flatten().tolist()
        level = numbers(block["saliency"], np.uint8) / 255
        saliency = block["low"] + level * (block["high"] - block["low"])
        assert np.abs(saliency - expected.saliency.flatten().numpy()).max() < 0.005
        colours = group_colours(view.frames, expected)
        assert numbers(block["fill"], np.uint8).tolist() == colours.fill.flatten().tolist()
        assert numbers(block["border"], np.uint8).tolist() == colours.border.tolist()


def test_the_page_names_no_other_place(path):
    text = path.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.search(
        r"https?:|\burl\(|@import|\bimport\(|\bfetch\(|XMLHttpRequest|<link[^>]*href=\"(?!data:)", text
    )
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install vtm[dev])")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on the path (apt-get install chromium)")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, path):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.complaints, page.asked = [], []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]", timeout=10_000)
    yield page
    assert page.complaints == []
    assert [url for url in page.asked if not url.startswith("data:")] == [path.as_uri()]
    page.close()


def point_at(page, row, column):
    box = page.locator("#view").bounding_box()
    page.mouse.move(box["x"] + (column + 0.5) * box["width"] / 3, box["y"] + (row + 0.5) * box["height"] / 3)


def colour_at(page, canvas, row, column):
    """Read the pixel in the middle of a token."""
    return page.locator(canvas).evaluate(
        """(canvas, [row, column]) => {
            const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
            copy.drawImage(canvas, 0, 0);
            const x = Math.round((column + 0.5) * canvas.width / 3), y = Math.round((row + 0.5) * canvas.height / 3);
            return [...copy.getImageData(x, y, 1, 1).data.slice(0, 3)];
        }""",
        [row, column],
    )


def told(view, block, frame, row, column):
    """Say what the page has to say of a token."""
    group = view.blocks[block].group
    same = group == group[frame, row, column]
    frames = [f"{t + 0.5} s" for t in range(4) if same[t].any()]
    where = f"frame{'s' * (len(frames) > 1)} {', '.join(frames)}"
    count = int(same.sum())
    return f"group of {count} tokens in {where}" if count > 1 else f"a token that stayed alone, in {where}"


def test_names_are_shown_as_they_are(page):
    assert page.title() == "</script><i>a clip"
    assert page.locator("h1").inner_text() == "</script><i>a clip"
    rows = page.locator("#scores tr")
    assert [row.split("\t")[:2] for row in rows.all_inner_texts()] == [
        ["walking", "0.75"], ["<b>running</b>", "0.20"], ["$x_1$", "0.05"]
    ]  # fmt: skip


def test_a_click_on_a_layer_or_a_block_changes_the_picture(page, view):
    pictures = {}
    for layer in ("Frames", "Saliency", "Targets", "Groups"):
        page.get_by_role("radio", name=layer, exact=True).click()
        assert page.get_by_role("radio", name=layer, exact=True).is_checked()
        pictures[layer] = page.locator("#view").screenshot()
        assert page.locator("#scale").is_visible() == (layer == "Saliency")
    page.get_by_role("radio", name="1", exact=True).click()
    pictures["Groups of block 1"] = page.locator("#view").screenshot()
    assert len(set(pictures.values())) == 5
    assert page.locator("#facts").inner_text().endswith(f"36 → {view.blocks[0].num_groups} tokens")


def test_the_page_draws_what_the_sheet_draws(page, view):
    page.get_by_role("radio", name="Frames").click()
    plain = {token: colour_at(page, "#view", *token) for token in np.ndindex(3, 3)}
    page.get_by_role("radio", name="Groups").click()
    kinds = set()
    for number, block in enumerate(view.blocks):
        page.get_by_role("radio", name=str(number + 1), exact=True).click()
        colours = group_colours(view.frames, block)
        for token in np.ndindex(3, 3):
            group = block.group[0][token]
            merged = bool(colours.size[group] > 1)
            kinds.add(merged)
            assert colour_at(page, "#view", *token) == (colours.fill[group].tolist() if merged else plain[token])
    assert kinds == {True, False}


def test_the_tokens_of_other_groups_are_dimmed(page, view):
    before = {token: sum(colour_at(page, "#view", *token)) for token in np.ndindex(3, 3)}
    point_at(page, 1, 1)
    group = view.blocks[1].group[0]
    assert 1 <= (group == group[1, 1]).sum() < 9
    for token in np.ndindex(3, 3):
        lit = sum(colour_at(page, "#view", *token))
        assert lit == before[token] if group[token] == group[1, 1] else lit < before[token]


def test_a_token_that_is_pointed_at_lights_its_group_in_all_frames(page, view):
    before = page.locator("#strip").screenshot()
    for row, column in ((0, 0), (1, 2), (2, 1)):
        point_at(page, row, column)
        assert page.locator("#told").inner_text().replace("\xa0", " ") == told(view, 1, 0, row, column)
        assert f"row {row + 1}, column {column + 1}" in page.locator("#token").inner_text()
        assert page.locator("#strip").screenshot() != before
    page.mouse.move(5, 5)
    assert page.locator("#told").inner_text().startswith("Point at a token")
    assert page.locator("#strip").screenshot() == before


def test_a_click_holds_a_group_while_the_frames_go_by(page, view):
    point_at(page, 1, 1)
    page.mouse.down()
    page.mouse.up()
    page.locator("#strip button").nth(3).click()
    assert page.locator("#time").inner_text() == "3.5 s"
    assert page.locator("#told").inner_text().replace("\xa0", " ") == told(view, 1, 0, 1, 1)
    page.keyboard.press("Escape")
    assert page.locator("#told").inner_text().startswith("Point at a token")


def test_the_keyboard_is_enough(page, view):
    for key, time in (("ArrowRight", "1.5 s"), ("ArrowRight", "2.5 s"), ("ArrowLeft", "1.5 s")):
        page.keyboard.press(key)
        assert page.locator("#time").inner_text() == time
    page.locator("#frame").focus()
    page.keyboard.press("End")
    assert page.locator("#time").inner_text() == "3.5 s"
    page.locator("#view").focus()
    page.keyboard.press("ArrowUp")  # begins in the middle
    page.keyboard.press("ArrowUp")
    assert page.locator("#told").inner_text().replace("\xa0", " ") == told(view, 1, 3, 0, 1)
    page.locator("input[name=layer]:checked").focus()
    page.keyboard.press("ArrowLeft")
    assert page.get_by_role("radio", name="Targets").is_checked()


def test_play_moves_the_slider(page):
    page.get_by_role("button", name="Play").click()
    page.locator("#time", has_text=re.compile("[123].5 s")).wait_for(timeout=5000)
    page.get_by_role("button", name="Pause").click()
    assert page.get_by_role("button", name="Play").is_visible()


def test_a_model_without_saliency_has_no_such_layer(browser, tmp_path, make_clip, scores):
    path = tmp_path / "page.html"
    write_page(path, make_clip(estimates=False).view(), title="a clip", scores=scores[:1])
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]", timeout=10_000)
    assert page.get_by_role("radio", name="Saliency").is_disabled()
    page.close()
