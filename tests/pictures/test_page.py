"""The page holds what was merged, needs no other file, and works in a real browser."""

import base64
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from vtm.pictures.colors import PALETTE, group_colors
from vtm.pictures.layers import FILL_SHARE, HEAT_COLORS, HEAT_SHARE, Scale
from vtm.pictures.page import write_page
from vtm.pictures.selection import Selection

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture
def path(tmp_path, view, scores):
    path = tmp_path / "new" / "page.html"
    write_page(path, view, title="</script><i>a clip")
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
    assert data["layers"] == ["Saliency", "Targets", "Groups"]
    for block, expected in zip(data["blocks"], view.blocks, strict=True):
        assert numbers(block["group"], "<u4").tolist() == expected.group.flatten().tolist()
        assert numbers(block["target"], np.uint8).tolist() == expected.target.flatten().tolist()
        assert numbers(block["saliency"], "<f4").tolist() == expected.saliency.flatten().tolist()
        assert block["scale"] == list(Scale.of(view.blocks))
        colors = group_colors(view.frames, expected)
        assert numbers(block["fill"], np.uint8).tolist() == colors.fill.tolist()
        assert numbers(block["border"], np.uint8).tolist() == colors.border.tolist()


def test_the_page_refers_to_no_other_file_or_address(path):
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
    page.wait_for_selector("body[data-ready]", timeout=120_000)
    yield page
    assert page.complaints == []
    assert [url for url in page.asked if not url.startswith("data:")] == [path.as_uri()]
    page.close()


def point_at(page, row, column):
    box = page.locator("#view").bounding_box()
    page.mouse.move(box["x"] + (column + 0.5) * box["width"] / 3, box["y"] + (row + 0.5) * box["height"] / 3)


def color_at(page, canvas, row, column):
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


def description(view, block, frame, row, column):
    """Describe a token as the page has to."""
    group = view.blocks[block].group
    same = group == group[frame, row, column]
    frames = [f"{t + 0.5} s" for t in range(4) if same[t].any()]
    where = f"frame{'s' * (len(frames) > 1)} {', '.join(frames)}"
    count = int(same.sum())
    return f"group of {count} tokens in {where}" if count > 1 else f"a token that stayed alone, in {where}"


def test_names_are_not_interpreted(page):
    assert page.title() == "</script><i>a clip"
    assert page.locator("h1").inner_text() == "</script><i>a clip"
    rows = page.locator("#scores tr")
    assert [row.split("\t")[:2] for row in rows.all_inner_texts()] == [
        ["walking", "0.75"], ["<b>running</b>", "0.20"], ["$x_1$", "0.05"]
    ]  # fmt: skip


def test_it_opens_with_the_groups_of_a_block_and_explains_them(page, view):
    assert page.get_by_role("radio", name="2", exact=True).is_checked()
    assert page.get_by_role("radio", name="Groups").is_checked()
    assert f"→ {view.blocks[1].num_groups} tokens" in page.locator("#facts").inner_text()
    assert page.locator("#explanation").inner_text().startswith("What is merged after block 2: tokens of the same")


def test_each_layer_is_explained(page):
    page.get_by_role("radio", name="2", exact=True).click()
    explanations = {}
    for layer in ("Frames", "Saliency", "Targets", "Groups"):
        page.get_by_role("radio", name=layer).click()
        explanations[layer] = page.locator("#explanation").inner_text()
    assert all("block 2" in explanations[layer] for layer in ("Saliency", "Targets", "Groups"))
    assert len(set(explanations.values())) == 4


def test_the_scale_is_that_of_all_blocks(page, view):
    page.get_by_role("radio", name="Saliency").click()
    bounds = [f"{value:.2f}".replace("-", "−") for value in Scale.of(view.blocks)]
    for number, block in enumerate(view.blocks, 1):
        page.get_by_role("radio", name=str(number), exact=True).click()
        assert [page.locator(place).inner_text() for place in ("#low", "#high")] == bounds
        point_at(page, 1, 2)
        value = f"saliency {block.saliency[0, 1, 2]:.2f}".replace("-", "−")
        assert value in page.locator("#token").inner_text()
    assert "one scale for all blocks" in page.locator("#explanation").inner_text()


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
    assert f"36 → {view.blocks[0].num_groups} tokens" in page.locator("#facts").inner_text()


def test_the_page_and_the_sheet_draw_the_same_layers(page, view):
    page.get_by_role("radio", name="Frames").click()
    plain = {token: color_at(page, "#view", *token) for token in np.ndindex(3, 3)}
    page.get_by_role("radio", name="Groups").click()
    kinds = set()
    for number, block in enumerate(view.blocks):
        page.get_by_role("radio", name=str(number + 1), exact=True).click()
        colors = group_colors(view.frames, block)
        for token in np.ndindex(3, 3):
            group = block.group[0][token]
            merged = bool(colors.size[group] > 1)
            kinds.add(merged)
            if merged:
                gray = np.dot(plain[token], [0.299, 0.587, 0.114])
                expected = FILL_SHARE * PALETTE[colors.fill[group]] + (1 - FILL_SHARE) * gray
                assert np.abs(color_at(page, "#view", *token) - expected).max() < 4  # gray differs in the browser
            else:
                assert color_at(page, "#view", *token) == plain[token]
    assert kinds == {True, False}


def test_the_page_has_the_heat_of_the_sheet(page, view):
    page.get_by_role("radio", name="Frames").click()
    plain = {token: color_at(page, "#view", *token) for token in np.ndindex(3, 3)}
    page.get_by_role("radio", name="Saliency").click()
    for number, block in enumerate(view.blocks):
        page.get_by_role("radio", name=str(number + 1), exact=True).click()
        level = Scale.of(view.blocks).level(block.saliency)[0]
        for token in np.ndindex(3, 3):
            gray = np.dot(plain[token], [0.299, 0.587, 0.114])
            expected = HEAT_SHARE * HEAT_COLORS[level[token]] + (1 - HEAT_SHARE) * gray
            assert np.abs(color_at(page, "#view", *token) - expected).max() < 4  # the browser computes gray differently


def test_the_tokens_of_other_groups_are_dimmed(page, view):
    before = {token: sum(color_at(page, "#view", *token)) for token in np.ndindex(3, 3)}
    point_at(page, 1, 1)
    group = view.blocks[1].group[0]
    assert 1 <= (group == group[1, 1]).sum() < 9
    for token in np.ndindex(3, 3):
        brightness = sum(color_at(page, "#view", *token))
        assert brightness == before[token] if group[token] == group[1, 1] else brightness < before[token]


def test_pointing_at_a_token_highlights_its_group_in_all_frames(page, view):
    before = page.locator("#strip").screenshot()
    for row, column in ((0, 0), (1, 2), (2, 1)):
        point_at(page, row, column)
        assert page.locator("#description").inner_text().replace("\xa0", " ") == description(view, 1, 0, row, column)
        assert f"row {row + 1}, column {column + 1}" in page.locator("#token").inner_text()
        assert page.locator("#strip").screenshot() != before
    page.mouse.move(5, 5)
    assert page.locator("#description").inner_text().startswith("Point at a token")
    assert page.locator("#strip").screenshot() == before


def test_a_click_keeps_a_group_highlighted_while_the_frames_change(page, view):
    point_at(page, 1, 1)
    page.mouse.down()
    page.mouse.up()
    page.locator("#strip button").nth(3).click()
    assert page.locator("#time").inner_text() == "3.5 s"
    assert page.locator("#description").inner_text().replace("\xa0", " ") == description(view, 1, 0, 1, 1)
    page.keyboard.press("Escape")
    assert page.locator("#description").inner_text().startswith("Point at a token")


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
    assert page.locator("#description").inner_text().replace("\xa0", " ") == description(view, 1, 3, 0, 1)
    page.locator("input[name=layer]:checked").focus()
    page.keyboard.press("ArrowLeft")
    assert page.get_by_role("radio", name="Targets").is_checked()


def test_play_moves_the_slider(page):
    page.get_by_role("button", name="Play").click()
    page.locator("#time", has_text=re.compile("[123].5 s")).wait_for(timeout=120_000)
    page.get_by_role("button", name="Pause").click()
    assert page.get_by_role("button", name="Play").is_visible()


@pytest.fixture
def show(browser, tmp_path):
    """Write the page of a view, and open it."""
    pages = []

    def show(view, *, change=lambda text: text, **selection):
        path = tmp_path / "page.html"
        write_page(path, view, title="a clip", selection=Selection(**selection))
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
        pages.append(browser.new_page())
        pages[-1].errors = []
        pages[-1].on("pageerror", lambda error: pages[-1].errors.append(str(error)))
        pages[-1].goto(path.as_uri())
        pages[-1].wait_for_selector("body[data-ready]", timeout=120_000)
        return pages[-1]

    yield show
    for page in pages:
        page.close()


def choices(page, name):
    return [choice.get_attribute("value") for choice in page.locator(f"input[name={name}]").all()]


def test_a_model_without_saliency_has_no_such_layer(show, make_clip):
    page = show(make_clip(estimates=False).view())
    assert choices(page, "layer") == ["Frames", "Targets", "Groups"]


def test_only_the_selected_blocks_and_layers_are_there(show, view):
    page = show(view, blocks=(2,), layers=("targets", "saliency"))
    assert choices(page, "block") == ["2"]
    assert choices(page, "layer") == ["Frames", "Targets", "Saliency"]
    assert page.get_by_role("radio", name="Saliency").is_checked()
    assert f"→ {view.blocks[1].num_groups} tokens" in page.locator("#facts").inner_text()


def test_it_opens_on_the_last_block_whose_saliency_varies_within_frames(show, view):
    first, second = view.blocks
    flat = replace(second, saliency=first.saliency / 100)
    for blocks, opened in (((first, replace(second, saliency=first.saliency)), "2"), ((first, flat), "1")):
        page = show(replace(view, blocks=blocks))
        assert page.locator("input[name=block]:checked").get_attribute("value") == opened
        assert page.get_by_role("radio", name="Groups").is_checked()


def test_each_block_can_have_a_separate_scale(show, view):
    page = show(view, scale="block")
    page.get_by_role("radio", name="Saliency").click()
    for number, block in enumerate(view.blocks, 1):
        page.get_by_role("radio", name=str(number), exact=True).click()
        bounds = [f"{value:.2f}".replace("-", "−") for value in Scale.of([block])]
        assert [page.locator(end).inner_text() for end in ("#low", "#high")] == bounds
        assert "this block" in page.locator("#scale h2").inner_text()
    assert "a separate scale for each block" in page.locator("#explanation").inner_text()


def test_a_picture_that_cannot_be_decoded_does_not_hide_the_others(show, view):
    def damage(text):
        frames = re.findall(r'"data:image/jpeg;base64,[^"]*"', text)
        assert len(frames) == 4
        return text.replace(frames[1], '"data:image/jpeg;base64,AAAA"')

    page, whole = show(view, change=damage), show(view)
    for step in range(4):
        for one in (page, whole):
            one.locator("#strip button").nth(step).click()
            one.get_by_role("radio", name="Frames").click()
        pictures = [[color_at(one, "#view", *token) for token in np.ndindex(3, 3)] for one in (page, whole)]
        assert (pictures[0] == pictures[1]) == (step != 1)
        assert ("cannot be shown" in page.locator("#explanation").inner_text()) == (step == 1)
    assert page.errors == []


def test_equal_times_are_written_once(show, view):
    page = show(replace(view, times=(0.0, 1.0, 1.0, 1.02)))
    buttons = page.locator("#strip button")
    assert [text.strip() for text in buttons.all_inner_texts()] == ["0 s", "1 s", "", ""]
    assert [button.get_attribute("aria-label") for button in buttons.all()] == ["0 s", "1 s", "1 s", "1 s"]
    point_at(page, 1, 1)
    assert page.locator("#description").inner_text().count("1\xa0s") <= 1
