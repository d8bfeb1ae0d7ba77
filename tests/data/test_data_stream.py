"""Frames that are streamed: each comes once a pass to one reader, with the view of its id; a cut changes nothing."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from conftest import png_bytes, striped_image, write_parquet_source
from facts import tells
from PIL import Image
from refusals import refused

from natix_hf.data.config import AugmentConfig, DataConfig
from natix_hf.data.frames import LABELLED, TableShard, open_sources
from natix_hf.data.images import open_image, shrink
from natix_hf.data.rows import ImageData, load_image_data
from natix_hf.data.splits import Splits
from natix_hf.data.stream import Stream, StreamedViews
from natix_hf.data.unlabelled import unlabelled_rows
from natix_hf.data.views import TrainViews
from natix_hf.errors import DataError
from natix_hf.trainers.stream import Ledger, StreamLoader

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on two cores
NOTHING = Splits([], [], [], [], [])
CONFIG = DataConfig(source=None, cache_px=24)


def picture(number: int) -> Image.Image:
    return striped_image(number % 2, np.random.default_rng(number))


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    """A tar; its folder is a source."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path.parent


def write_frames(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        picture(number).save(folder / f"frame{number:03}.png")
    return folder


def stream_of(sources: list[Path], config: DataConfig = CONFIG, splits: Splits = NOTHING, **given: Any) -> Stream:
    shards, _ = open_sources([str(source) for source in sources], config, {}, given.pop("train", None))
    return Stream(shards, config, splits, **({"buffer": 8, "seed": 3} | given))


def ids_of(stream: Stream, number: int = 0, **given: Any) -> list[str]:
    return [frame["id"] for frame in stream.in_pass(number, **given)]


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    source = write_parquet_source(tmp_path / "labelled")
    return load_image_data(DataConfig(source=str(source), group_by="video_info.vid_id"))


class NumbersAlone:
    """Views that show their keys and the first pixel of what they were drawn from."""

    def draw(self, keys: Any, copies: Any) -> list[dict[str, Any]]:
        return [{"key": list(key), "at": copy[0, 0].astype(int)} for key, copy in zip(keys, copies, strict=True)]


# What is read


def test_a_folder_as_people_have_it(tmp_path: Path) -> None:
    root = tmp_path / "my [drive] test"
    names = ["a/train 1.jpg", "b/val/UP.JPEG", "*.png", "[x].webp", "deep/er/still/e.tif", "no ending/f.bmp"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(1).save(root / name)
    for name in (".hidden.png", "a/._train 1.jpg", ".thumbs/g.png", "notes.txt", "labels.csv"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    write_frames(tmp_path / "elsewhere", 2)
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)  # a circle
    names += ["link/frame000.png", "link/frame001.png"]
    if os.name == "posix":
        raw = os.path.join(os.fsencode(root), b"caf\xe9.png")
        Path(os.fsdecode(raw)).write_bytes(png_bytes(picture(3)))
        names.append(os.fsdecode(b"caf\xe9.png"))
    shards, others = open_sources([str(root)], CONFIG, {})
    assert others == {str(root): 2}
    found = [frame["id"] for shard in shards for frame in shard.frames()]
    assert sorted(found) == sorted(f"{root.name}:{name}" for name in names)
    stream = stream_of([root])
    opened = [stream.decode(frame) for frame in stream.in_pass(0)]
    assert len(opened) == len(names) and all(why is None for _, why in opened)


@pytest.mark.parametrize(("ending", "mode"), [(".tar", "w"), (".TAR", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_tar_shards(ending: str, mode: str, tmp_path: Path) -> None:
    """Pictures of regular members at any depth; captions are part of the format and count as nothing."""
    expected = []
    for name in ("sub/b", "a"):
        kinds = [(i, kind) for i in range(3) for kind in ("png", "json", "cls")]
        members = {f"d/{name[-1]}{i}.{kind}": png_bytes(picture(i)) for i, kind in kinds}
        members |= {"d/._b.png": b"resource fork", ".DS_Store": b""}
        write_tar(tmp_path / "shards" / f"{name}{ending}", members, mode)
        expected += [f"shards:{name}{ending}/d/{name[-1]}{i}.png" for i in range(3)]
    with tarfile.open(tmp_path / "shards" / f"links{ending}", mode) as tar:  # type: ignore[call-overload]
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"{kind!r}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    stream = stream_of([tmp_path / "shards"])
    assert sorted(ids_of(stream)) == sorted(expected)
    assert all(stream.decode(frame)[0] is not None for frame in stream.in_pass(0))


def test_a_damaged_tar_gives_what_it_can_and_is_named(tmp_path: Path) -> None:
    folder = write_tar(tmp_path / "shards" / "cut.tar", {f"{i}.png": png_bytes(picture(i)) for i in range(4)})
    whole = (folder / "cut.tar").read_bytes()
    (folder / "cut.tar").write_bytes(whole[: len(whole) * 5 // 8])
    stream = stream_of([folder], DataConfig(source=None, on_bad_image="skip"))
    opened = [(frame["id"], *stream.decode(frame)) for frame in stream.in_pass(0)]
    good = [name for name, copy, _ in opened if copy is not None]
    assert 1 <= len(good) < 4
    [(_, _, why)] = [each for each in opened if each[1] is None]
    assert why is not None and tells(why[1], "cut.tar", f"{len(good) - 1}.png")
    strict = stream_of([folder])
    refused(DataError, lambda: [strict.decode(frame) for frame in strict.in_pass(0)], "cut.tar", "on_bad_image=skip")


def test_tables(tmp_path: Path) -> None:
    """Parquet, a saved dataset, the built-in scenes and a Hub dataset: the same rows as `datasets` gives."""
    source = write_parquet_source(tmp_path / "parquet", groups=6)
    rows = datasets.load_dataset("parquet", data_files=str(next(source.rglob("*.parquet"))), split="train")
    rows.save_to_disk(str(tmp_path / "saved"))
    config = DataConfig(group_by="video_info.vid_id")
    pictures = [np.asarray(image.convert("RGB")).tobytes() for image in rows["image"]]
    expected = Counter(zip(pictures, rows["video_info.vid_id"], strict=True))
    for path in (source, tmp_path / "saved"):
        stream = stream_of([path], config)
        found = Counter()
        for frame in stream.in_pass(0):
            [group] = frame["groups"]
            found[np.asarray(open_image(frame["cell"])).tobytes(), group.removeprefix("video_info.vid_id=")] += 1
        assert found == expected
        assert len(set(ids_of(stream))) == 18


def test_a_hub_dataset_is_streamed_at_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(name: str, **given: Any) -> Any:
        asked.append((name, given))
        table = datasets.Dataset.from_dict({"image": [picture(i) for i in range(5)], "label": [0] * 5})
        return datasets.IterableDatasetDict({"train": table.to_iterable_dataset(num_shards=2)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    shards, _ = open_sources(["org/frames"], CONFIG, {"org/frames": "abc"})
    assert asked == [("org/frames", {"revision": "abc", "streaming": True})]
    stream = Stream(shards, CONFIG, NOTHING, 4, 0)
    assert sorted(ids_of(stream)) == [f"frames:train/{name}" for name in ("0/0", "0/1", "0/2", "1/0", "1/1")]
    assert all(stream.decode(frame)[0] is not None for frame in stream.in_pass(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_table_that_breaks_off_is_told_in_one_line(workers: int) -> None:
    def rows() -> Any:
        yield from ({"image": {"bytes": png_bytes(picture(i)), "path": None}} for i in range(40))
        raise ConnectionResetError("the Hub hung up\nfor long")

    table = datasets.IterableDataset.from_generator(rows)
    stream = Stream([TableShard("frames", "train/0", table, "image")], CONFIG, NOTHING, 4, 0)
    loader = StreamLoader(StreamedViews(stream, NumbersAlone(), 4), Ledger(workers), workers)
    refused(DataError, lambda: list(islice(loader, 20)), "frames", "train/0", "the Hub hung up", "--run-dir")


def test_sources_that_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("x")
    for name in ("empty", "texts", "missing"):
        refused(DataError, lambda name=name: stream_of([tmp_path / name]), "phase4.unlabelled", name)
    source = write_parquet_source(tmp_path / "parquet", groups=2)
    other = DataConfig(source=None, image_column="photo")
    refused(DataError, lambda: stream_of([source], other), "photo", "scene_description")


def test_two_folders_of_one_name_keep_their_frames_apart(tmp_path: Path) -> None:
    sources = [write_frames(tmp_path / side / "drive", 3) for side in ("left", "right")]
    ids = ids_of(stream_of(sources))
    assert len(set(ids)) == 6 and {name.rpartition(":")[0] for name in ids} == {"drive", "1:drive"}


# In which order, and by whom


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 3), (2, 0), (2, 2), (3, 4), (7, 1)])
@pytest.mark.parametrize("kind", ["folder", "tars", "one tar", "mixed"])
def test_every_frame_comes_once_a_pass_to_one_reader(kind: str, world: int, workers: int, tmp_path: Path) -> None:
    content = {f"{i}.png": png_bytes(picture(i)) for i in range(23)}
    sources = []
    if kind in ("folder", "mixed"):
        sources.append(write_frames(tmp_path / "frames", 23))
    if kind in ("tars", "mixed"):
        for number in range(5):
            write_tar(tmp_path / "shards" / f"{number}.tar", dict(list(content.items())[number::5]))
        sources.append(tmp_path / "shards")
    if kind == "one tar":
        sources.append(write_tar(tmp_path / "one" / "one.tar", content))
    stream = stream_of(sources)
    everything = Counter(ids_of(stream))
    assert set(everything.values()) == {1} and len(everything) == (46 if kind == "mixed" else 23)
    each = max(1, stream.workers(workers, world))
    assert each <= max(1, workers)
    readers = [ids_of(stream, 0, reader=reader, readers=world * each) for reader in range(world * each)]
    assert all(readers) and sum(map(Counter, readers), Counter()) == everything


def test_a_worker_with_small_shards_waits_for_the_others(tmp_path: Path) -> None:
    """Otherwise the frames of a small tar would come as often as those of a large one together."""
    for name, count in (("large", 60), ("small", 6)):
        write_tar(tmp_path / "shards" / f"{name}.tar", {f"{name}{i}.png": png_bytes(picture(i)) for i in range(count)})
    stream = stream_of([tmp_path / "shards"])
    loader, passes = StreamLoader(StreamedViews(stream, NumbersAlone(), 2), Ledger(2), 2), Counter()
    for batch in islice(loader, 3 * 33):
        passes.update(batch["key"][0].tolist())
    # a worker whose last batch ends with its pass learns of the end only from the next batch
    assert passes[0] == passes[1] == 66 and passes[2] >= 62 and loader.ledger.seen == {"shards": 66}


def test_the_order_is_seeded_and_differs_by_pass(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "frames", 40)
    tar = write_tar(tmp_path / "one" / "one.tar", {f"{i:02}.png": png_bytes(picture(i)) for i in range(40)})
    for source in (folder, tar):
        stream = stream_of([source])
        orders = [ids_of(stream, number) for number in (0, 1)] + [ids_of(stream_of([source], seed=4))]
        assert orders[0] == ids_of(stream_of([source])) and len({tuple(order) for order in orders}) == 3
        assert all(sorted(order) == sorted(orders[0]) != order for order in orders)
    far = [abs(int(a[-6:-4]) - int(b[-6:-4])) for a, b in zip(orders[0], orders[0][1:], strict=False)]
    unmixed = ids_of(stream_of([tar], buffer=1))
    assert unmixed == sorted(unmixed) and np.mean(far) > 2, "of one tar only the buffer mixes"


def test_a_view_is_that_of_its_frame_whoever_reads_it(data: ImageData, tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "frames", 12)
    views = TrainViews(data.role("train"), AugmentConfig(), 28, [0.5] * 3, [0.5] * 3, seed=9)

    def expected(path: Path, number: int) -> bytes:
        key = int.from_bytes(hashlib.sha256(f"frames:{path.name}".encode()).digest()[:7], "big")
        copy = np.asarray(shrink(open_image(path), 24))
        return views.draw([(number, key)], [copy])[0]["pixel_values"].numpy().tobytes()

    for world in (1, 2):
        for number in (0, 1):
            found = []
            for reader in range(world):
                batches = iter(StreamedViews(stream_of([folder]), views, 6 // world, reader, world))
                for batch, note in islice(batches, 4):
                    assert batch is not None
                    if note.position.in_pass == number:
                        found += [value.numpy().tobytes() for value in batch["pixel_values"]]
            assert sorted(found) == sorted(expected(path, number) for path in folder.iterdir())


# A cut


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_from_its_ledger_a_stream_goes_on_as_if_nothing_had_happened(workers: int, tmp_path: Path) -> None:
    """Across passes, with bad frames in between: they shift what follows."""
    folder = write_frames(tmp_path / "frames", 17)
    (folder / "bad.png").write_bytes(b"no picture")
    write_tar(folder / "more.tar", {f"{i}.png": png_bytes(picture(i)) for i in range(9)} | {"bad.jpg": b""})
    config = DataConfig(source=None, cache_px=24, on_bad_image="skip")
    stream = stream_of([folder], config)

    def loader(ledger: Ledger) -> Any:
        return iter(StreamLoader(StreamedViews(stream, NumbersAlone(), 4), ledger, workers))

    def plain(batch: Any) -> Any:
        return [column.tolist() for column in batch["key"]], batch["at"].tolist()

    ledger, whole, states = Ledger(workers), [], []
    for batch in islice(loader(ledger), 20):
        whole.append(plain(batch))
        states.append(ledger.state())
    assert ledger.state()["seen"] == {"frames": 26} and ledger.left_out == {"unreadable": 2}
    assert sorted(ledger.reasons) == ["frames:bad.png", "frames:more.tar/bad.jpg"]
    assert {key[0] for keys, _ in whole for key in zip(*keys, strict=True)} >= {0, 1, 2}
    for cut in (1, 2, 3, 7, 12):
        resumed = Ledger(workers)
        resumed.restore(states[cut - 1])
        assert [plain(batch) for batch in islice(loader(resumed), 20 - cut)] == whole[cut:]
        assert resumed.state() == states[-1]


# What is left out


@pytest.mark.parametrize("role", ["val_select", "val_calib", "test"])
def test_pictures_of_val_and_test_leave(data: ImageData, tmp_path: Path, role: str) -> None:
    folder = write_frames(tmp_path / "drive", 3)
    held = data.role(role)
    next(iter(held.images())).save(folder / "held.bmp")
    stream = stream_of([folder], data.config, data.splits)
    why = {frame["id"]: stream.decode(frame)[1] for frame in stream.in_pass(0)}
    assert [name for name, reason in why.items() if reason] == ["drive:held.bmp"]
    reason = why["drive:held.bmp"]
    assert reason is not None and reason[0] == "overlaps" and tells(reason[1], held.ids[0])
    strict = stream_of([folder], DataConfig(source=None, on_overlap="error"), data.splits)
    facts = "phase4.unlabelled", "drive:held.bmp", held.ids[0], "data.on_overlap=drop"
    refused(DataError, lambda: [strict.decode(frame) for frame in strict.in_pass(0)], *facts)


def test_groups_of_val_and_test_leave_though_their_pictures_are_new(data: ImageData, tmp_path: Path) -> None:
    other = write_parquet_source(tmp_path / "other", seed=5)
    stream = stream_of([other], data.config, data.splits)
    protected = {g for role in ("val_select", "val_calib", "test") for g in data.role(role).groups.tolist()}
    protected = {group.replace("group:", "video_info.vid_id=") for group in protected}
    opened = [(frame["groups"][0] in protected, stream.decode(frame)[0] is None) for frame in stream.in_pass(0)]
    assert len(opened) == 120 and {held for held, _ in opened} == {True, False}
    assert all(held == left_out for held, left_out in opened)


def test_groups_of_several_sources_leave_too(tmp_path: Path) -> None:
    """Each source says its groups in its own way; further frames of a protected drive or video are found by either."""
    rng = np.random.default_rng(3)

    def drives(folder: Path, frames: range) -> Path:
        for label, name in enumerate(("none", "roadwork")):
            (folder / name).mkdir(parents=True)
            for drive in range(8):
                for frame in frames:
                    striped_image(label, rng).save(folder / name / f"{name}{drive}_{frame}.png")
        return folder

    own, more = drives(tmp_path / "own", range(2)), drives(tmp_path / "more", range(2, 4))
    videos = write_parquet_source(tmp_path / "videos", groups=16, frames=2)
    others = write_parquet_source(tmp_path / "others", groups=16, frames=2, seed=5)
    rule = {"pattern": r"([a-z]+\d)_"}
    sources = [{"source": str(own), "group_by": rule}, {"source": str(videos), "group_by": "video_info.vid_id"}]
    data = load_image_data(DataConfig(source=sources))
    held = {g.split(":")[-1] for role in ("val_select", "val_calib", "test") for g in data.role(role).groups.tolist()}
    assert {name[:4] for name in held} == {"none", "road", "trai"}
    kept: dict[str, set[str]] = {"rows": set(), "stream": set()}
    rows, left_out = unlabelled_rows([str(more), str(others)], data.config, data.splits)
    kept["rows"] = {row_id for part in rows for row_id in part.ids}
    stream = stream_of([more, others], data.config, data.splits)
    frames = list(stream.in_pass(0))
    kept["stream"] = {frame["id"] for frame in frames if stream.decode(frame)[0] is not None}
    expected = {frame["id"] for frame in frames if frame["groups"][0].split("=")[-1] not in held}
    assert kept["stream"] == expected and 0 < len(expected) < len(frames) == 64
    assert len(kept["rows"]) == len(expected) and len(left_out) == 64 - len(expected)
    of_more = {row_id for row_id in expected if row_id.startswith("more:")}
    assert {row_id for row_id in kept["rows"] if row_id.startswith("more:")} == of_more
    strange = write_frames(tmp_path / "strange", 3)  # no path in which the pattern is found: no group, no error
    assert "strange:frame002.png" in unlabelled_rows([str(strange)], data.config, data.splits)[0][0].ids


def test_train_rows_join_the_stream(data: ImageData, tmp_path: Path) -> None:
    train = data.role("train")
    stream = stream_of([write_frames(tmp_path / "drive", 4)], data.config, data.splits, train=train)
    frames = list(stream.in_pass(0))
    assert sorted(f["id"] for f in frames if f["source"] == LABELLED) == sorted(f"{LABELLED}:{i}" for i in train.ids)
    assert len(frames) == len(train) + 4 and all(stream.decode(frame)[1] is None for frame in frames)
    copies = {f"{LABELLED}:{i}": copy for i, copy in zip(train.ids, train.decoded["pixels"], strict=True)}
    for frame in frames:
        copy = stream.decode(frame)[0]
        assert copy is not None and copies.get(frame["id"], copy.tobytes()) == copy.tobytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_frame_stops_a_strict_run_in_one_line(workers: int, tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "frames", 6)
    (folder / "bad.png").write_bytes(b"no picture")
    loader = StreamLoader(StreamedViews(stream_of([folder]), NumbersAlone(), 2), Ledger(workers), workers)
    refused(DataError, lambda: list(islice(loader, 20)), "frames:bad.png", "data.on_bad_image=skip")


def test_frames_that_are_all_bad_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for number in range(30):
        (tmp_path / "frames" / f"{number}.png").write_bytes(b"no picture")
    stream = stream_of([tmp_path / "frames"], DataConfig(source=None, on_bad_image="skip"))
    refused(DataError, lambda: stream.sample(4), "phase4.unlabelled", "frames:")
    loader = StreamLoader(StreamedViews(stream, NumbersAlone(), 2), Ledger(0), 0)
    refused(DataError, lambda: next(iter(loader)), "phase4.unlabelled", "30 frames")


def test_a_sample_is_rows_that_can_be_asked(tmp_path: Path) -> None:
    from natix_hf.data.asked import ask

    stream = stream_of([write_frames(tmp_path / "frames", 9)])
    rows = stream.sample(5)
    assert rows.ids == ids_of(stream)[:5] and len(rows.decoded) == len(rows.source) == len(rows) == 5
    names = [name.partition(":")[2] for name in rows.ids]
    for shown, name in zip(ask(rows).pictures_of(range(5)), names, strict=True):
        assert (np.asarray(shown) == np.asarray(Image.open(tmp_path / "frames" / name))).all()
