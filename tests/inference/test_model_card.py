"""The card of a model states what its file contains: task, classes, clips, and the score with its interval."""

import re

import pytest
from huggingface_hub import ModelCard

from vtm.inference.model_card import model_card

SCORE = {"metric": "accuracy", "value": 0.95, "interval": [0.895, 0.977], "n": 120, "missing": 0, "floor": 0.25}
TRAINING = {"experiment": "scene", "seed": 3, "epoch": 8, "commit": "abc", "versions": {"torch": "2"}, "val": None}
DESCRIPTION = {
    "task": "classification",
    "classes": ["on a `road`", "at\nsea"],
    "num_outputs": 2,
    "encoder": {"_target_": "vtm.encoders.ImageEncoder"},
    "encoder_key": "vit_tiny-96px",
    "model": {"_target_": "vtm.models.VTM"},
    "protocol": {"_target_": "vtm.data.sampling.Windows", "num_frames": 60, "stride": 1},
    "motion": True,
    "training": TRAINING | {"test": SCORE | {"checkpoint": "best", "selection": "val"}},
}


def card(**changes):
    return ModelCard(model_card(DESCRIPTION | changes, library_name="vtm", tags=["a: b"]))


def of_test(**changes):
    test = SCORE | {"checkpoint": "best", "selection": "val"} | changes
    return card(training=TRAINING | {"test": test}).text


def without_padding(text: str) -> str:
    return re.sub(" +", " ", text)


def test_it_says_what_the_model_is():
    text = card().text
    assert text.strip().startswith("# scene\n")
    for fact in (
        "the classification of whole videos",
        "| output | probabilities of 2 classes |",
        "| input | windows of 60 s at one frame per second, one every 1 s; the output is their average |",
        "| encoder | `vit_tiny-96px`, frozen;",
        "| motion | of each token, from the video's codec |",
        "experiment `scene`, seed 3, 8 epochs",
        "vtm at commit `abc` (torch 2)",
        "The classes, in the order of the outputs: `on a 'road'`, `at sea`.",
        'model = Predictor.from_pretrained("<the name of this repository>")',
    ):
        assert fact in without_padding(text)


def test_the_result_has_its_interval_and_says_what_was_measured():
    text = of_test()
    assert "**accuracy 0.950**, 95 % interval 0.895 to 0.977, on n = 120 test videos" in text
    assert "by the average of its clips; none was missing. Always predicting the most frequent class" in text
    assert "of the training videos would score 0.250. The epoch was chosen on the validation videos." in text
    assert "4 videos of the list were missing" in of_test(missing=4)
    assert "mean squared error 0.950**" in of_test(metric="mse")
    assert "Always predicting the mean of the training videos" in of_test(metric="mse")


@pytest.mark.parametrize(
    ("checkpoint", "selection", "words"),
    [
        ("best", "test", "chosen on the test videos themselves, so this score is optimistic"),
        ("last", "test", "It is the last epoch; no epoch was chosen."),
        ("last", "val", "It is the last epoch; no epoch was chosen."),
        ("given", "val", "The checkpoint was given; no epoch was chosen."),
    ],
)
def test_it_says_how_the_epoch_was_chosen(checkpoint, selection, words):
    assert words in of_test(checkpoint=checkpoint, selection=selection)


def test_a_model_without_a_result_has_none():
    text = card(training=TRAINING | {"test": None, "commit": None, "versions": None}).text
    assert "None: the model was exported without a test score." in text
    assert "vtm at commit" not in text


def test_a_regression_has_no_classes():
    protocol = {"_target_": "vtm.data.sampling.Single", "num_frames": 20, "train_positions": None}
    text = card(task="regression", classes=None, num_outputs=1, motion=False, protocol=protocol).text
    assert "| output | one number |" in without_padding(text)
    assert "| input | 20 frames, spread evenly over the whole video |" in without_padding(text)
    assert "The classes" not in text


def test_the_license_is_chosen_when_sharing():
    assert "## License" in card().text
    named = ModelCard(model_card(DESCRIPTION, license="mit"))
    assert named.data.license == "mit"
    assert "## License" not in named.text
    assert card().data.tags == ["a: b"]
