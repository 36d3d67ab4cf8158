import http.server
import multiprocessing
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from vtm.data.dataset import VideoDataset
from vtm.data.sampling import Single, Windows
from vtm.data.source import Video
from vtm.encoders.rounding import Quantized, dequantize, quantize
from vtm.features import remote as ranges
from vtm.features.file import FeatureError, FeatureWriter, OtherTimesError
from vtm.features.store import FeatureStore

LENGTH = 9.4


@pytest.fixture
def make(loading, tmp_path):
    def make(*, motion=False, address=None, cache_gb=1.0, storage="bfloat16", sampling="1fps", **options):
        encoder = loading(tmp_path)["encoder"]
        encoder.storage_dtype = storage
        return FeatureStore(
            root=tmp_path, encoder=encoder, sampling=sampling, motion=motion, address=address,
            cache=str(tmp_path / "cache"), cache_gb=cache_gb, **options,
        )  # fmt: skip

    return make


@pytest.fixture
def video(tmp_path):
    (tmp_path / "v.mp4").write_bytes(bytes(77))
    return Video("clips/v é.mp4", tmp_path / "v.mp4", 1)


def fill(store, video, *, count=10, channels=4):
    """Store random steps, one per second, and return the features and motion that reading them must return."""
    generator = torch.Generator().manual_seed(len(video.id))
    quantized = quantize(torch.randn(count, 3, 3, channels, generator=generator), store.storage_dtype)
    motion = torch.rand(count, 3, 3, generator=generator)
    with store.writer(video, [video.start + second for second in range(count)], LENGTH) as writer:
        writer.add(quantized, motion, torch.ones(count).bool(), torch.zeros(count).long())
    return dequantize(quantized), motion


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "float16", "int8"])
def test_features_are_read_by_their_times(make, video, storage):
    store = make(storage=storage, motion=True)
    features, motion = fill(store, video)
    content = store.read(video, [3.0, 4.0, 5.0])
    assert content.inputs.dtype == (torch.float32 if storage == "int8" else getattr(torch, storage))
    assert torch.equal(content.inputs.float(), features[3:6])
    assert torch.equal(content.motion, motion[3:6])
    assert content.substituted.tolist() == [0, 0, 0]
    assert torch.equal(store.read(video, [8.0, 1.0]).inputs.float(), features[[8, 1]])
    assert make(storage=storage).read(video, [1.0]).motion is None


def test_an_id_may_be_a_name_that_is_not_utf_8(make, video):
    store, video = make(), replace(video, id="\udcff.mp4")
    features, _ = fill(store, video)
    assert torch.equal(store.read(video, [1.0]).inputs.float(), features[1:2])


@pytest.mark.parametrize(("stored", "wanted"), [("codec", "difference"), ("difference", "codec")])
def test_motion_from_another_source_is_refused(make, video, stored, wanted):
    _, motion = fill(make(motion=True, motion_source=stored), video)
    assert torch.equal(make(motion=True, motion_source=stored).read(video, [2.0]).motion[0], motion[2])
    assert make(motion_source=wanted).read(video, [2.0]).motion is None  # the features can be used without motion
    message = rf"expected motion from data.motion_source={wanted}, got {stored}; set data.motion_source={stored}, or"
    with pytest.raises(FeatureError, match=message):
        make(motion=True, motion_source=wanted).read(video, [2.0])
    assert not make(motion=True, motion_source=wanted).is_complete(video, Windows(num_frames=4, stride=1), train=False)


def test_motion_without_a_record_is_from_the_codec(make, video):
    store = make(motion=True)
    facts = {"id": video.id, "key": store.key, "length": LENGTH, "video_bytes": 77}
    with FeatureWriter(Path(store.locate(video)), [0.0], (3, 3, 4), "bfloat16", facts) as writer:
        steps = quantize(torch.zeros(1, 3, 3, 4), "bfloat16"), torch.ones(1, 3, 3)
        writer.add(*steps, torch.ones(1).bool(), torch.zeros(1).long())
    assert store.read(video, [0.0]).motion.all()
    with pytest.raises(FeatureError, match="got codec"):
        make(motion=True, motion_source="difference").read(video, [0.0])


def test_a_dataset_reads_features_like_frames(make, video):
    store = make()
    features, _ = fill(store, video)
    dataset = VideoDataset([video], Windows(num_frames=4, stride=3), store, train=False)
    assert [dataset[i].id for i in range(len(dataset))] == ["clips/v é.mp4@0.00", "clips/v é.mp4@3.00"]
    assert torch.equal(dataset[1].inputs.float(), features[3:7])
    padded = VideoDataset([video], Windows(num_frames=12, stride=3), store, train=False)[0]
    assert padded.mask.tolist() == [True] * 10 + [False] * 2
    assert torch.equal(padded.inputs[:10].float(), features)
    assert not padded.inputs[10:].any()


def test_the_key_depends_on_encoder_and_sampling(make, video):
    fill(make(), video)
    assert make().version(video)
    assert not make(sampling="spread4").version(video)
    assert make().length(video) == LENGTH
    with pytest.raises(FeatureError, match=r"is missing; extract them with `python -m vtm.extract`"):
        make(sampling="spread4").read(video, [0.0])


def test_ids_that_look_alike_have_files_of_their_own(make, video):
    names = ["a/b.mp4", "a_b.mp4", "a b.mp4", "-x", "../up", "x" * 400, "ü" * 200]
    places = {make().locate(replace(video, id=name)) for name in names}
    assert len(places) == len(names)
    for place in places:
        path = Path(place)
        assert path.parents[1] == Path(make().folder)
        assert len(path.name) < 200
        assert not path.name.startswith("-")


def test_times_that_are_not_stored_are_an_error(make, video):
    store = make()
    fill(store, video)
    with pytest.raises(FeatureError, match=r"no features for some of the times 3.00 to 3.50 s.*extract them again"):
        store.read(video, [3.0, 3.5])


def test_a_file_under_the_name_of_another_is_refused(make, video):
    store, other = make(), replace(video, id="other")
    fill(store, video)
    Path(store.locate(other)).parent.mkdir(parents=True, exist_ok=True)
    Path(store.locate(video)).rename(store.locate(other))
    with pytest.raises(FeatureError, match=r"features .* of other, got .* of clips/v é.mp4; the file was moved"):
        store.read(other, [0.0])


def test_complete_means_these_times_of_this_file(make, video):
    store = make()
    second = Windows(num_frames=4, stride=1)
    assert not store.is_complete(video, second, train=True)
    fill(store, video)
    assert store.is_complete(video, second, train=True)
    assert not store.is_complete(video, Single(num_frames=3), train=True)
    assert not store.is_complete(replace(video, end=12.0), second, train=True)
    assert store.is_complete(replace(video, end=9.5), second, train=True)
    video.path.write_bytes(bytes(78))  # fetched again, or encoded anew
    assert not store.is_complete(video, second, train=True)


def test_an_annotation_that_has_changed_is_an_error_and_not_another_clip(make, video):
    store, protocol = make(), Windows(num_frames=4, stride=1)
    fill(store, video)
    longer = replace(video, end=30.0)
    assert store.length(longer) == 30.0
    for action in (store.expect, store.check):
        with pytest.raises(OtherTimesError, match="annotations or the protocol have changed"):
            action(longer, protocol, train=False)


def test_check_finds_damage_anywhere(make, video):
    store = make()
    video = replace(video, end=100.0)
    fill(store, video, count=100)
    store.check(video, Windows(num_frames=4, stride=1), train=False)
    path = Path(store.locate(video))
    content = bytearray(path.read_bytes())
    content[-1500] ^= 1
    path.write_bytes(content)
    with pytest.raises(FeatureError, match="damaged"):
        store.check(video, Windows(num_frames=4, stride=1), train=False)


class Handler(http.server.SimpleHTTPRequestHandler):
    """A file server that supports byte ranges, which the one of the standard library does not."""

    disable_nagle_algorithm = True  # which waits 40 ms between head and body

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        if self.server.status != 200:
            self.send_error(self.server.status)
        else:
            super().do_HEAD()

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        content = path.read_bytes()
        self.server.log.append((path.name, self.headers.get("Range")))
        if self.server.ranges and (wanted := self.headers.get("Range")):
            low, high = wanted.removeprefix("bytes=").split("-")
            part = content[int(low) : int(high) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {low}-{int(low) + len(part) - 1}/{len(content)}")
        else:
            part = content
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes" if self.server.ranges else "none")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    handler = partial(Handler, directory=str(tmp_path / "features"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.log, server.ranges, server.status = [], True, 200
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        server.address_text = f"http://127.0.0.1:{server.server_port}"
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def _forget():
    ranges._remote_size_and_version.cache_clear()


def test_features_behind_an_address_are_read_by_ranges_and_kept(make, video, server, monkeypatch):
    monkeypatch.setattr(ranges, "_BLOCK", 1000)
    features, _ = fill(make(), video, count=60)
    size = Path(make().locate(video)).stat().st_size
    store = make(address=server.address_text, motion=True)
    assert store.version(video)
    assert not store.version(replace(video, id="other"))
    assert torch.equal(store.read(video, [20.0, 21.0, 22.0]).inputs.float(), features[20:23])
    asked = [wanted for name, wanted in server.log if wanted is not None]
    moved = sum(int(high) - int(low) + 1 for low, high in (a.removeprefix("bytes=").split("-") for a in asked))
    assert 0 < moved < size
    before = len(server.log)
    assert torch.equal(store.read(video, [21.0, 20.0]).inputs.float(), features[[21, 20]])
    assert len(server.log) == before  # from the cache
    assert torch.equal(store.read(video, [float(i) for i in range(60)]).inputs.float(), features)
    assert store.length(video) == LENGTH


def test_a_server_that_ignores_ranges_is_an_error(make, video, server, monkeypatch):
    monkeypatch.setattr(ranges, "_BLOCK", 1000)
    fill(make(), video, count=60)
    server.ranges = False
    with pytest.raises(OSError, match=r"expected the bytes 0 to 1000, got \d+; the server ignores ranges"):
        make(address=server.address_text).read(video, [20.0])


def test_missing_features_behind_an_address(make, video, server):
    with pytest.raises(FeatureError, match="is missing"):
        make(address=server.address_text).read(video, [0.0])


@pytest.mark.parametrize("status", [403, 503])
def test_a_server_in_trouble_does_not_make_features_missing(make, video, server, status):
    fill(make(), video)
    server.status = status
    with pytest.raises(OSError, match=f"cannot be reached.*{status}") as error:
        make(address=server.address_text).version(video)
    assert not isinstance(error.value, FileNotFoundError)


def test_no_server_does_not_make_features_missing(make, video):
    with pytest.raises(OSError, match="cannot be reached"):
        make(address="http://127.0.0.1:9").version(video)


def test_damage_in_the_cache_is_mended(make, video, server, tmp_path):
    features, _ = fill(make(), video)
    store = make(address=server.address_text)
    store.read(video, [0.0])
    for block in (tmp_path / "cache").rglob("*"):
        if block.is_file():
            content = bytearray(block.read_bytes())
            content[header_end(content) :] = bytes(len(content) - header_end(content))
            block.write_bytes(content)
    assert torch.equal(store.read(video, [3.0, 4.0]).inputs.float(), features[3:5])


def header_end(content):
    return 8 + int.from_bytes(content[:8], "little")


def test_the_cache_removes_the_least_recently_used_blocks(make, video, server, tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "_BLOCK", 1000)
    monkeypatch.setattr(ranges, "_FETCHES", iter(range(0, 64 * 1000, 64)))
    fill(make(), video, count=400)
    store = make(address=server.address_text, cache_gb=20e-6)
    for second in range(0, 400, 14):
        store.read(video, [float(second)])
        kept = [file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file()]
        assert sum(kept) <= 20_000 + 4 * 1000
    assert kept


def test_a_file_that_changes_on_the_other_side_is_read_anew(make, video, server):
    fill(make(), video)
    assert make(address=server.address_text).read(video, [2.0])
    changed, _ = fill(make(), video, count=12)
    ranges._remote_size_and_version.cache_clear()
    assert torch.equal(make(address=server.address_text).read(video, [11.0]).inputs.float(), changed[11:])


def _sum(store, video):
    return float(store.read(video, [float(i) for i in range(10)]).inputs.float().sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loading_processes_read_from_an_address_after_their_parent_did(make, video, server, method):
    features, _ = fill(make(), video)
    store = make(address=server.address_text)
    store.read(video, [0.0])
    with multiprocessing.get_context(method).Pool(1) as pool:
        sums = pool.starmap(_sum, [(store, video)] * 2)
    np.testing.assert_allclose(sums, [features.sum().item()] * 2, rtol=1e-5)


def test_stored_int8_equals_the_output_of_the_encoder(make, video):
    store = make(storage="int8")
    tokens = torch.randn(10, 3, 3, 4)
    fresh = quantize(tokens, "int8")
    with store.writer(video, [float(i) for i in range(10)], 10.0) as writer:
        writer.add(Quantized(*fresh), torch.zeros(10, 3, 3), torch.zeros(10).bool(), torch.zeros(10).long())
    assert torch.equal(store.read(video, [float(i) for i in range(10)]).inputs, dequantize(fresh))


def test_features_of_other_settings_are_named(make, video):
    store, other = make(), make(sampling="spread6")
    assert store.remedy.endswith("and the same overrides")
    fill(other, video)
    assert store.remedy.endswith(f"the overrides of the features stored there: {other.key}")
    assert other.remedy.endswith("and the same overrides")
