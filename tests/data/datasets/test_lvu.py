import warnings
from functools import cache
from pathlib import Path

import pytest
import torch

from vtm.data.datasets.lvu import LVUDataModule, like_ratio, view_count
from vtm.data.sampling import Windows, windows

ROOT = Path(__file__).parents[3] / "data" / "lvu"
SPLITS = ("train", "val", "test")

# videos and 60 s windows with a stride of 1 s in train, val, test; outputs; the floor on test
PUBLISHED = {
    "relationship": ((149, 53, 42), (10249, 3428, 2929), 4, 0.5238),
    "way_speaking": ((939, 205, 201), (69143, 15131, 15137), 5, 0.2687),
    "scene": ((557, 120, 86), (39815, 9023, 6903), 6, 0.2674),
    "director": ((680, 163, 107), (53767, 12375, 8345), 10, 0.4112),
    "genre": ((3063, 597, 647), (216578, 45283, 44212), 4, 0.2117),
    "writer": ((769, 174, 168), (64595, 14401, 12773), 10, 0.0536),
    "year": ((770, 165, 143), (55439, 13692, 10601), 9, 0.0839),
    "like_ratio": ((658, 142, 140), (65343, 14030, 14245), 1, 0.606),
    "view_count": ((577, 124, 126), (32746, 7375, 6975), 1, 4.084),
}


# videos of each class in train, val and test, and the movies of the test videos
CLASSES = {
    "relationship": (["92/22/22", "3/2/0", "36/17/12", "18/12/8"], 40),
    "way_speaking": (["261/61/54", "216/49/43", "247/48/59", "105/20/18", "110/27/27"], 193),
    "scene": (["73/10/12", "31/4/10", "199/43/23", "67/16/15", "137/37/13", "50/10/13"], 82),
    "director": (
        ["103/25/44", "98/36/12", "0/0/0", "0/0/0", "90/39/8", "77/0/15", "76/28/10", "83/15/10", "89/8/8", "64/12/0"],
        12,
    ),
    "genre": (["809/157/137", "751/168/176", "731/127/177", "772/145/157"], 193),
    "writer": (
        ["261/41/9", "70/27/8", "117/24/29", "0/0/0", "0/0/0", "95/34/14", "90/26/20", "62/12/68", "0/0/0", "74/10/20"],
        18,
    ),
    "year": (
        ["41/9/14", "60/15/8", "76/25/10", "102/16/6", "97/22/20", "96/16/25", "104/21/12", "95/22/25", "99/19/23"],
        110,
    ),
}


@pytest.fixture
def make(loading):
    """Make the data module of a task with windows of 60 s."""
    return lambda task, root: LVUDataModule(
        task=task, **loading(root, protocol=Windows(num_frames=60, stride=1), batch_size=1)
    )


real = pytest.mark.skipif(not (ROOT / "annotations").is_dir(), reason="the lists of LVU are not there")


@pytest.fixture(scope="module")
def read_real(loading):
    """Read the data module and the splits of a task's real lists, once for all tests."""

    @cache
    def read_real(task):
        module = LVUDataModule(task=task, **loading(ROOT, batch_size=1))
        return module, [module.read_split(split) for split in SPLITS]

    return read_real


@real
@pytest.mark.parametrize("task", PUBLISHED)
def test_real_lists_have_the_published_numbers(read_real, task):
    videos, clips, outputs, floor = PUBLISHED[task]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the official lists have no fault
        module, splits = read_real(task)
    assert tuple(map(len, splits)) == videos
    assert tuple(sum(len(windows(video.end, 60, 1)) for video in split) for split in splits) == clips
    assert module.num_outputs == outputs
    train, test = module.train_targets(), torch.tensor([video.target for video in splits[2]])
    if module.class_names is None:
        assert (test - train.mean()).square().mean().item() == pytest.approx(floor, abs=6e-4)
    else:
        majority = torch.bincount(train).argmax()
        assert (test == majority).float().mean().item() == pytest.approx(floor, abs=6e-5)


@real
@pytest.mark.parametrize("task", CLASSES)
def test_real_classes_have_the_published_numbers(read_real, task):
    classes, movies = CLASSES[task]
    module, splits = read_real(task)
    counted = [torch.bincount(torch.tensor([v.target for v in split]), minlength=len(classes)) for split in splits]
    assert ["/".join(map(str, counts)) for counts in torch.stack(counted, 1).tolist()] == classes
    empty = [name for name, counts in zip(module.class_names, classes, strict=True) if counts == "0/0/0"]
    assert [name for name in module.class_names if name.endswith("without videos")] == empty
    assert len({video.cluster for video in splits[2]}) == movies


def write_lists(root, task="scene"):
    rows = {
        "scene": ("class_id class_name youtube_id imdb_id", ["0 office -ab tt1", "3 hotel cd tt2", "0 office ef tt1"]),
        "like_ratio": ("like_count dislike_count youtube_id imdb_id", ["9 1 -ab tt1", "1 1 cd tt2", "5 0 ef tt1"]),
        "view_count": ("view_count youtube_id imdb_id", ["100000 -ab tt1", "1 cd tt2", "7 ef tt1"]),
    }
    header, lines = rows[task]
    folder = root / "annotations" / task
    folder.mkdir(parents=True)
    (root / "annotations" / "lvu_durations.csv").write_text("videoid,duration\n-ab,70\ncd,18\nef,133\n")
    for split, line in zip(SPLITS, lines, strict=True):
        (folder / f"{split}.csv").write_text(f"{header}\n{line}\n")


def test_classes_come_from_all_lists_and_keep_their_ids(make, tmp_path):
    write_lists(tmp_path)
    module = make("scene", tmp_path)
    assert module.class_names == ["office", "class 1, without videos", "class 2, without videos", "hotel"]
    assert module.num_outputs == 4
    assert [(v.id, v.target, v.start, v.end, v.cluster) for v in module.read_split("val")] == [
        ("cd", 3, 0.0, 18.0, "tt2")
    ]


@pytest.mark.parametrize(("task", "target"), [("like_ratio", -0.138220535629456), ("view_count", -0.2513288918616)])
def test_regression_targets_are_scaled(make, tmp_path, task, target):
    write_lists(tmp_path, task)
    module = make(task, tmp_path)
    assert module.class_names is None
    assert module.num_outputs == 1
    assert module.train_targets().dtype == torch.float32
    assert module.train_targets().tolist() == pytest.approx([target])


def test_target_scales():
    assert like_ratio(1, 0) == pytest.approx(10 - 9.138220535629456)
    assert like_ratio(3, 1) - like_ratio(1, 1) == pytest.approx(2.5)
    assert view_count(2000) - view_count(1000) == pytest.approx(0.693147, abs=1e-6)


def test_videos_are_read_from_disk(stamps, make, tmp_path):
    write_lists(tmp_path)
    stamps.write(tmp_path / "videos" / "-ab.mkv", 140, fps=2)
    module = make("scene", tmp_path)
    batch = next(iter(module.train_dataloader()))
    assert batch.inputs.shape == (1, 60, 3, 48, 48)
    with pytest.raises(FileNotFoundError, match=r"1 of the 1 test videos.*videos/ef.mp4"):
        module.test_dataloader()


def test_videos_of_any_suffix_are_found_when_they_come(make, tmp_path):
    write_lists(tmp_path)
    module, videos = make("scene", tmp_path), tmp_path / "videos"
    videos.mkdir()
    for name in ("-ab.mov", "cd.MP4"):
        (videos / name).touch()
    assert [module.read_split(split)[0].path.name for split in SPLITS] == ["-ab.mov", "cd.MP4", "ef.mp4"]
    (videos / "ef.m4v").touch()
    assert [video.path.name for video in module.read_split("test")] == ["ef.m4v"]


def test_unknown_task_is_refused_with_the_list(make, tmp_path):
    with pytest.raises(ValueError, match=r"way_speaking.*got speaking"):
        make("speaking", tmp_path)


def rewrite(root, name, text):
    (root / "annotations" / name).write_text(text)


SCENE, LIKES, VIEWS = (
    f"{columns} youtube_id imdb_id" for columns in ("class_id class_name", "like_count dislike_count", "view_count")
)


@pytest.mark.parametrize(
    ("task", "lines", "says"),
    [
        ("scene", [SCENE, "0 office ef tt1", "0 office ef tt1"], r"test.csv, line 3: .*once, got ef \(test\).*line 2"),
        ("scene", [SCENE, "0 office -ab tt1"], r"test.csv, line 2: .*got -ab \(test\).*\(train\) of .*train.csv"),
        ("scene", [SCENE, "0 office cd tt2"], r"test.csv, line 2: .*got cd \(test\).*\(val\) of .*val.csv, line 2"),
        ("scene", [SCENE, "x office ef tt1"], r"test.csv, line 2: class_id: expected a class index.*got 'x'"),
        ("scene", [SCENE, "-1 office ef tt1"], r"line 2: class_id: .*got '-1'"),
        ("scene", [SCENE, "999999999 office ef tt1"], r"line 2: class_id: .*got '999999999'"),
        ("scene", [SCENE, "0 Office ef tt1"], r"one name per class, got office and Office.*upper and lower case"),
        ("scene", [SCENE, "1 office ef tt1"], r"one index per class, got 0 and 1 for class office"),
        ("scene", [SCENE], r"scene: expected videos in train, val, test, got none in test"),
        ("scene", [SCENE, "0 office EF tt1"], r"lvu_durations.csv: .*row for EF.*'ef' exists, but 'E' in the list"),
        ("like_ratio", [LIKES, "0 0 ef tt1"], r"test.csv, line 2: .*like_count or dislike_count of ef above 0"),
        ("like_ratio", [LIKES, "-1 3 ef tt1"], r"line 2: like_count: .*at least 0, got '-1'"),
        ("like_ratio", [LIKES, "nan 3 ef tt1"], r"line 2: like_count: expected a finite number of.*got 'nan'"),
        ("view_count", [VIEWS, "0 ef tt1"], r"test.csv, line 2: .*view_count of ef above 0, got 0"),
        ("view_count", [VIEWS, "inf ef tt1"], r"line 2: view_count: .*got 'inf'"),
        ("view_count", [VIEWS, "many ef tt1"], r"line 2: view_count: .*got 'many'"),
        ("view_count", [VIEWS, "1e400 ef tt1"], r"line 2: view_count: .*got '1e400'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("split", SPLITS)
def test_mistakes_in_the_test_list_are_named_whatever_is_read_first(make, tmp_path, task, lines, says, split):
    write_lists(tmp_path, task)
    rewrite(tmp_path, f"{task}/test.csv", "\n".join([*lines, ""]))
    with pytest.raises(ValueError, match=says):
        make(task, tmp_path).listed(split)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/../../b", "..\\x", "\0"])
def test_ids_never_lead_out_of_the_videos(make, tmp_path, name):
    write_lists(tmp_path)
    rewrite(tmp_path, "lvu_durations.csv", f"videoid,duration\n-ab,70\ncd,18\n{name},9\n")
    rewrite(tmp_path, "scene/test.csv", f"{SCENE}\n0 office {name} tt1\n")
    with pytest.raises(ValueError, match=r"test.csv, line 2: expected .* as the name of a video, got"):
        make("scene", tmp_path).read_split("train")


@pytest.mark.parametrize("duration", ["0", "-1", "nan", "inf", "long", ""])
def test_a_wrong_duration_is_named(make, tmp_path, duration):
    write_lists(tmp_path)
    rewrite(tmp_path, "lvu_durations.csv", f"videoid,duration\n-ab,70\ncd,{duration}\nef,133\n")
    with pytest.raises(ValueError, match=rf"lvu_durations.csv, line 3: duration: .*at least 1, got '{duration}'"):
        make("scene", tmp_path).read_split("train")


def test_two_durations_of_a_video_must_agree(make, tmp_path):
    write_lists(tmp_path)
    rewrite(tmp_path, "lvu_durations.csv", "videoid,duration\n-ab,70\ncd,18\nef,133\ncd,18\ncd,19\n")
    with pytest.raises(ValueError, match=r"line 6: expected one duration of cd, got 19 after 18"):
        make("scene", tmp_path).read_split("train")


def test_a_class_of_the_test_list_alone_is_warned_of(make, tmp_path):
    write_lists(tmp_path)
    rewrite(tmp_path, "scene/test.csv", f"{SCENE}\n5 pub ef tt1\n")
    module = make("scene", tmp_path)
    with pytest.warns(UserWarning, match=r"here 2: 'hotel' \(val.*line 2\), 'pub' \(test, .*test.csv, line 2\)"):
        assert module.class_names[5] == "pub"
    assert [video.target for video in module.read_split("test")] == [5]


def test_video_without_duration_is_named(make, tmp_path):
    write_lists(tmp_path)
    (tmp_path / "annotations" / "lvu_durations.csv").write_text("videoid,duration\n-ab,70\n")
    with pytest.raises(ValueError, match=r"lvu_durations.csv.*cd"):
        make("scene", tmp_path).read_split("val")
