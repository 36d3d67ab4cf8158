import pytest

from tests.video_llm.questions.lists import write_mlvu
from vtm.video_llm.questions.mlvu import MLVU

ENTRY = {
    "video": "order_126.mp4",
    "duration": 665.34,
    "question": "Arrange the following events",
    "candidates": ["2->1->3->4", "3->2->1->4", "1->2->3->4"],
    "answer": "1->2->3->4",
    "question_type": "order",
}


def read(root):
    return MLVU(root=root, allow_missing=False).read()


def test_entries_of_the_official_form(tmp_path):
    write_mlvu(tmp_path, order=[ENTRY, ENTRY | {"candidates": ["1->2->3->4", "4", "1->2->3->4"]}])
    for folder in ("5_order", "ego"):
        (tmp_path / "videos" / folder).mkdir(parents=True)
    (tmp_path / "videos" / "5_order" / "order_126.mp4").touch()
    (tmp_path / "videos" / "ego" / "ego_1.mkv").touch()
    questions = {question.id: question for question in read(tmp_path)}
    assert len(questions) == 8
    order = questions["5_order/0"]
    assert (order.video, order.answer, order.options) == ("5_order/order_126", 2, tuple(ENTRY["candidates"]))
    assert order.groups == {"type": "order"}
    assert order.path == tmp_path / "videos" / "5_order" / "order_126.mp4"
    assert questions["5_order/1"].answer == 2  # the last of equal options, as in the official evaluation
    assert questions["3_ego/0"].path == tmp_path / "videos" / "ego" / "ego_1.mkv"
    assert questions["1_plotQA/0"].path == tmp_path / "videos" / "1_plotQA" / "plotQA_1.mp4"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "4"}, r"expected 'candidates', a list with the answer '4' in it"),
        ({"candidates": None}, r"expected 'candidates'"),
        ({"candidates": ["1->2->3->4"]}, r"expected 2 to 26 options, got 1"),
        ({"video": None}, r"expected a text as 'video', got None"),
    ],
)
def test_a_bad_entry_is_named(tmp_path, change, message):
    write_mlvu(tmp_path, order=[ENTRY, ENTRY | change])
    with pytest.raises(ValueError, match=rf"annotations/5_order\.json, entry 2: {message}"):
        read(tmp_path)


def test_a_video_outside_of_the_folder_is_refused(tmp_path):
    write_mlvu(tmp_path, order=[ENTRY | {"video": "../../secret.mp4"}])
    with pytest.raises(ValueError, match=r'expected a relative path without "\.\."'):
        read(tmp_path)
