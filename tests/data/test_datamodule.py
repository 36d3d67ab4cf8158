from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as lightning
import pytest
import torch
from torch.utils.data import DataLoader

from vtm.data.datamodule import VideoDataModule
from vtm.data.dataset import collate
from vtm.data.sampling import Windows
from vtm.data.source import Video, explain_absence
from vtm.system.names import PathIndex
from vtm.video.listing import VideoIndex

COUNTS = {"train": 7, "val": 3, "test": 3}


class Numbered(VideoDataModule):
    """A data set of seven training, three validation and three test videos, each 3 s at 10 frames per second."""

    class_names = None

    def __init__(self, **loading):
        super().__init__(**loading)
        self.class_names = ["even", "odd"]

    def read_split(self, split):
        self.annotation("list.csv")
        names = [f"{split}{number}" for number in range(COUNTS[split])]
        files = VideoIndex(self.root / "videos")
        return [Video(name, files.find(name), i % 2) for i, name in enumerate(names)]


@pytest.fixture(scope="module")
def root(stamps, tmp_path_factory):
    root = tmp_path_factory.mktemp("numbered")
    (root / "annotations").mkdir()
    (root / "annotations" / "list.csv").touch()
    for split, count in COUNTS.items():
        for number in range(count):
            stamps.write(root / "videos" / f"{split}{number}.mp4", 30)
    return root


@pytest.fixture
def make(loading):
    return lambda root, **changes: Numbered(**loading(root, **changes))


def on_rank(module, rank, world_size):
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
    return module


def ids(loader):
    return [name for batch in loader for name in batch.id]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_yield_batches(stamps, make, root, num_workers):
    module = make(root, num_workers=num_workers)
    batches = list(module.val_dataloader())
    assert [len(batch.id) for batch in batches] == [2, 1]
    assert batches[0].inputs.shape == (2, 2, 3, 48, 48)
    assert stamps.read(batches[0].inputs[0]) == [7, 22]
    assert batches[0].target.tolist() == batches[0].index.tolist() == [0, 1]
    assert len(ids(module.train_dataloader())) == 7
    assert ids(module.test_dataloader()) == ["test0@0.00", "test1@0.00", "test2@0.00"]


def test_workers_can_be_spawned(make, root):
    loader = make(root, num_workers=1).val_dataloader()
    spawned = DataLoader(
        loader.dataset,
        batch_size=2,
        sampler=loader.sampler,
        collate_fn=collate,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    assert ids(spawned) == ["val0@0.00", "val1@0.00", "val2@0.00"]


def test_order_of_training_depends_on_seed_and_epoch_alone(make, root):
    def order(seed, epoch):
        loader = make(root, seed=seed).train_dataloader()
        torch.rand(1)
        loader.sampler.set_epoch(epoch)
        return ids(loader)

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert sorted(order(0, 0)) == sorted(order(1, 5)) == [f"train{number}@0.75" for number in range(7)]


def test_ranks_train_on_different_videos_and_equal_numbers(make, root):
    for epoch in range(4):
        parts = []
        for rank in range(2):
            loader = on_rank(make(root), rank, 2).train_dataloader()
            loader.sampler.set_epoch(epoch)
            assert loader.batch_size == 1
            parts.append(ids(loader))
        assert [len(part) for part in parts] == [3, 3]
        assert len({*parts[0], *parts[1]}) == 6


def test_ranks_evaluate_every_clip_exactly_once(make, root):
    windows = Windows(num_frames=2, stride=1)
    whole = ids(make(root, protocol=windows).val_dataloader())
    assert len(whole) == 6
    parts = [ids(on_rank(make(root, protocol=windows, batch_size=4), rank, 4).val_dataloader()) for rank in range(4)]
    assert parts == [whole[rank::4] for rank in range(4)]
    assert [len(part) for part in parts] == [2, 2, 1, 1]


def test_batch_size_must_divide_over_the_devices(make, root):
    with pytest.raises(ValueError, match=r"batch_size = 3 and 2 devices"):
        on_rank(make(root, batch_size=3), 0, 2).val_dataloader()


class Recorder(lightning.LightningModule):
    """A model that records the ids of its training clips."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, _):
        assert batch.inputs.dtype == torch.uint8
        self.seen.append((self.current_epoch, tuple(batch.id)))
        return self.weight.square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_resumed_run_repeats_the_order(make, root, tmp_path):
    def fit(max_epochs, ckpt_path=None):
        model = Recorder()
        trainer = lightning.Trainer(
            max_epochs=max_epochs,
            accelerator="cpu",
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(model, datamodule=make(root), ckpt_path=ckpt_path)
        return model, trainer

    whole, _ = fit(3)
    first, trainer = fit(1)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    rest, _ = fit(3, tmp_path / "first.ckpt")
    assert first.seen + rest.seen == whole.seen
    assert len({order for epoch in range(3) for order in [tuple(ids for e, ids in whole.seen if e == epoch)]}) == 3


def test_a_file_as_root_is_refused(make, root):
    path = root / "annotations" / "list.csv"
    with pytest.raises(NotADirectoryError, match=rf"data.root={path} is a file; give the folder"):
        make(path)


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"num_workers": -1}])
def test_impossible_numbers_are_refused(make, root, changes):
    with pytest.raises(ValueError, match=r"data.batch_size of at least 1 and data.num_workers of at least 0, got "):
        make(root, **changes)


def test_looking_finds_what_is_missing_of_what_is_wanted(make, root, tmp_path):
    (tmp_path / "annotations").symlink_to(root / "annotations")
    (tmp_path / "videos").mkdir()
    for path in (root / "videos").iterdir():
        if path.stem != "train3":
            (tmp_path / "videos" / path.name).symlink_to(path)
    make(tmp_path).check_videos(training=False)
    with pytest.raises(FileNotFoundError, match="1 of the 7 train videos are missing"):
        make(tmp_path).check_videos(training=True)


def test_missing_root_is_one_sentence_that_says_where_help_is(make, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        make(tmp_path / "nowhere").videos("train")
    message = str(error.value)
    assert str(tmp_path / "nowhere") in message
    assert "data/README.md" in message
    assert message.count(". ") == 0


def test_missing_annotations_are_named(make, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"annotations/list.csv is missing; .*data/README.md"):
        make(tmp_path).train_targets()


def test_missing_videos_are_counted_and_the_first_are_named(make, root, tmp_path):
    (tmp_path / "annotations").symlink_to(root / "annotations")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "train1.mp4").symlink_to(root / "videos" / "train1.mp4")
    with pytest.raises(FileNotFoundError, match=r"6 of the 7 train videos.*train0.mp4, .*train2.mp4, .*train3.mp4;"):
        make(tmp_path).train_dataloader()
    assert make(tmp_path).train_targets().tolist() == [0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("name", "says"),
    [("Train0.webm", "'t' in the list is 'T' in the file name"), ("train0 .mp4", "the spaces differ")],
)
def test_a_missing_video_is_compared_with_the_files(make, root, tmp_path, name, says):
    (tmp_path / "annotations").symlink_to(root / "annotations")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / name).touch()
    with pytest.raises(FileNotFoundError, match=rf"train2.mp4; .*/videos/{name} exists, but .*{says}.*; put them"):
        make(tmp_path).videos("train")


def test_missing_features_are_compared_with_those_of_other_spellings():
    stored = {"cafe\u0301/1.mp4"}
    source = SimpleNamespace(locate=lambda video: "…", version=lambda video: "1" if video.id in stored else None)
    for name in ("caf\u00e9/1.mp4", "caf\u00e9\\1.mp4"):
        message = explain_absence(source, Video(name, Path("videos") / name, 0), PathIndex())
        assert "'é' is composed in the list and decomposed in the stored features" in message
    assert explain_absence(source, Video("tea/1.mp4", Path("videos/tea/1.mp4"), 0), PathIndex()) == ""


@pytest.mark.parametrize("wrong", ["Annotations/list.csv", "annotations/list.CSV"])
def test_a_missing_list_is_compared_with_the_files(make, tmp_path, wrong):
    (tmp_path / wrong).parent.mkdir()
    (tmp_path / wrong).touch()
    with pytest.raises(FileNotFoundError, match=rf"list.csv is missing; {tmp_path}/{wrong} exists, but .*case differ"):
        make(tmp_path).train_targets()
    with pytest.raises(FileNotFoundError, match=r"is missing; .* exists, but .*case differ; data/README"):
        make(tmp_path.with_name(tmp_path.name.upper())).train_targets()


@pytest.mark.parametrize("training", [False, True])
def test_all_lists_are_read_before_a_run(loading, root, training):
    class Faulty(Numbered):
        def read_split(self, split):
            if split == "train":
                raise ValueError("train.csv, line 2: expected a number")
            return super().read_split(split)

    with pytest.raises(ValueError, match="line 2"):
        Faulty(**loading(root)).check_videos(training=training)


def test_videos_may_be_missing_if_the_user_says_so(make, root, tmp_path):
    (tmp_path / "annotations").symlink_to(root / "annotations")
    (tmp_path / "videos").mkdir()
    for name in ("train1", "train4", "test0"):
        (tmp_path / "videos" / f"{name}.mp4").symlink_to(root / "videos" / f"{name}.mp4")
    module = make(tmp_path, allow_missing=True)
    assert [video.id for video in module.videos("train")] == ["train1", "train4"]
    assert module.missing("train") == ["train0", "train2", "train3", "train5", "train6"]
    assert ids(module.test_dataloader()) == ["test0@0.00"]
    with pytest.raises(FileNotFoundError, match=r"3 of the 3 val videos are missing.*check_data") as error:
        module.videos("val")
    assert "allow_missing=true needs at least one video in every split" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"check_data.*allow_missing=true"):
        make(tmp_path).videos("train")


def test_videos_found_unusable_are_left_out_only_with_permission(make, root, tmp_path):
    for name in ("annotations", "videos"):
        (tmp_path / name).symlink_to(root / name)
    version = make(tmp_path).source.version(make(tmp_path).listed("test")[1])
    rows = f"split,id,state,path,version,reason\ntest,test1,unreadable,a,{version},b\ntest,test2,unreadable,a,1-1,b\n"
    (tmp_path / "unusable.csv").write_text(rows, encoding="utf-8")  # test2 is another file now
    assert len(make(tmp_path).videos("test")) == 3
    module = make(tmp_path, allow_missing=True)
    assert [video.id for video in module.videos("test")] == ["test0", "test2"]
    assert module.missing("test") == ["test1"]


def test_num_outputs_counts_classes_or_one_value(make, root):
    module = make(root)
    assert module.num_outputs == 2
    assert module.train_targets().dtype == torch.int64
    module.class_names = None
    assert module.num_outputs == 1
    assert module.train_targets().dtype == torch.float32
