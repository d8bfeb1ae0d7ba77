"""Near-duplicate pictures: exact neighbours, groups, what a hash withstands, and the bar on real photographs."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image, ImageEnhance

from natix_hf.data.images import open_image
from natix_hf.data.near_duplicates import (
    NEAR_BITS,
    NO_HASH,
    contradictions,
    near_duplicate_groups,
    pairs_within,
    perceptual_hashes,
    thumbprint,
)
from natix_hf.synthetic import SyntheticConfig, render


def different_bits(one, other) -> np.ndarray:
    return np.bitwise_count(np.asarray(one).view(np.uint64) ^ np.asarray(other).view(np.uint64))


def hash_of(picture: Image.Image) -> int:
    return int(perceptual_hashes(np.frombuffer(thumbprint(picture), dtype=np.uint8)[None])[0])


def near_pairs(hashes, bits) -> np.ndarray:
    """Every pair of `pairs_within`, which yields each once, in the order of `brute_force`."""
    found = [np.sort(np.stack(pair, axis=1), axis=1) for pair in pairs_within(hashes, bits)]
    pairs = np.concatenate([np.empty((0, 2), dtype=np.int64), *found])
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def brute_force(hashes, bits) -> np.ndarray:
    pairs = [(i, j) for i in range(len(hashes)) for j in range(i + 1, len(hashes))]
    pairs = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return pairs[different_bits(hashes[pairs[:, 0]], hashes[pairs[:, 1]]) <= bits]


def hashes_with_neighbours(dice, n) -> np.ndarray:
    """Random hashes, of which half are others with 0 to 12 bits turned."""
    hashes = dice.integers(-(2**63), 2**63, n)
    for row in range(n // 2, n):
        turned = dice.choice(64, dice.integers(0, 13), replace=False).astype(np.uint64)
        mask = np.bitwise_or.reduce(np.uint64(1) << turned, initial=np.uint64(0))
        hashes[row] = (hashes[dice.integers(0, row)].view(np.uint64) ^ mask).view(np.int64)
    return hashes


def numbered_by_first(groups) -> list[int]:
    seen: dict[int, int] = {}
    return [seen.setdefault(group, len(seen)) for group in groups]


def flooded(hashes, bits) -> list[int]:
    """Groups by walking from row to row, the slow reference."""
    groups = [-1] * len(hashes)
    for start in range(len(hashes)):
        waiting = [start] if groups[start] < 0 else []
        while waiting:
            row = waiting.pop()
            if groups[row] < 0:
                groups[row] = start
                if hashes[row] != NO_HASH:
                    near = (different_bits(hashes, hashes[row]) <= bits) & (hashes != NO_HASH)
                    waiting += np.flatnonzero(near).tolist()
    return numbered_by_first(groups)


def prints(pictures) -> np.ndarray:
    return np.frombuffer(b"".join(map(thumbprint, pictures)), dtype=np.uint8).reshape(-1, 256)


def jpeg(picture, quality) -> Image.Image:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality)
    return open_image(data.getvalue())


def scaled(picture, factor) -> Image.Image:
    size = (round(picture.width * factor), round(picture.height * factor))
    return picture.resize(size, Image.Resampling.BICUBIC)


def brighter(picture, factor) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(factor)


COPIES = {
    "re-encoded": lambda picture, dice: jpeg(picture, int(dice.integers(30, 81))),
    "resized": lambda picture, dice: scaled(picture, dice.choice([0.9, 1.1])),
    "brightened": lambda picture, dice: brighter(picture, dice.uniform(1.1, 1.3)),
    "all three": lambda picture, dice: jpeg(
        scaled(brighter(picture, dice.uniform(1.1, 1.3)), dice.choice([0.9, 1.1])), int(dice.integers(30, 81))
    ),
}


@pytest.mark.parametrize("bits", [0, 1, 3, 4, 8, 11, 16])
@pytest.mark.parametrize("seed", [0, 1])
def test_neighbours_and_groups_equal_the_slow_reference(bits, seed):
    dice = np.random.default_rng([bits, seed])
    hashes = hashes_with_neighbours(dice, 200)
    hashes[dice.integers(0, 200, 20)] = hashes[3]
    np.testing.assert_array_equal(near_pairs(hashes, bits), brute_force(hashes, bits))
    hashes[dice.integers(0, 200, 5)] = NO_HASH
    assert near_duplicate_groups(hashes, bits=bits).tolist() == flooded(hashes, bits)


def test_close_values_that_share_most_bits_are_found_once_each():
    hashes = np.arange(-60, 60, dtype=np.int64)  # almost all pairs are near in three of four bands
    np.testing.assert_array_equal(near_pairs(hashes, 5), brute_force(hashes, 5))


@pytest.mark.parametrize("n", [0, 1, 2, 50])
def test_few_rows_and_equal_rows(n):
    for value in (NO_HASH, -1):
        hashes = np.full(n, value, dtype=np.int64)
        np.testing.assert_array_equal(near_pairs(hashes, 8), brute_force(hashes, 8))
        thumbs = np.zeros((n, 256), dtype=np.uint8)
        for given in (None, thumbs):  # black thumbprints are no evidence, so such rows stay apart
            alone = value == NO_HASH or given is not None
            assert near_duplicate_groups(hashes, given).tolist() == (list(range(n)) if alone else [0] * n)


def test_a_chain_is_one_group():
    hashes = np.array([2 ** (8 * k) - 1 for k in range(8)] + [-1], dtype=np.int64)  # neighbours differ in 8 bits
    assert near_duplicate_groups(hashes, bits=8).tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 1]  # row 0 has NO_HASH
    assert near_duplicate_groups(hashes, bits=7).tolist() == list(range(9))


def test_many_copies_of_one_picture_need_no_pairs():
    picture = render(SyntheticConfig(image_size=64), 0, 0)
    dice = np.random.default_rng(0)
    thumbs = np.repeat(prints([picture]), 20_000, axis=0)  # 2 * 10^8 pairs
    thumbs[::2] ^= (dice.random((10_000, 256)) < 0.3).astype(np.uint8)  # neighbours in hash, not equal
    hashes = perceptual_hashes(thumbs)
    assert len(np.unique(hashes)) > 10
    tracemalloc.start()
    groups = near_duplicate_groups(hashes, thumbs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not groups.any()
    assert peak < 400 << 20


def test_a_hash_withstands_what_copies_go_through_and_tells_scenes_apart():
    config = SyntheticConfig(image_size=96)
    scenes = [render(config, video, 0) for video in range(40)]
    dice = np.random.default_rng(0)
    thumbs, tracks = prints(scenes), np.arange(40)
    for name, copy in COPIES.items():
        copies = prints([copy(scene, dice) for scene in scenes])
        both = np.concatenate([thumbs, copies])
        groups = near_duplicate_groups(perceptual_hashes(both), both)
        assert (groups[40:] == groups[:40]).mean() >= 0.95, name
        assert len(np.unique(groups[:40])) == len(tracks), name


def test_look_alikes_with_different_labels_equal_the_slow_reference():
    """Scenes, copies of them, flat pictures: each row with the closest look-alike of the other label, a pair once."""
    dice = np.random.default_rng(0)
    scenes = [render(SyntheticConfig(image_size=64), video, 0) for video in range(12)]
    pictures = scenes + [jpeg(scene, 40) for scene in scenes] + [brighter(scene, 1.2) for scene in scenes[:6]]
    pictures += [Image.new("RGB", (32, 32), "white")] * 2 + scenes[:3]
    thumbs, labels = prints(pictures), dice.integers(0, 2, len(pictures))
    labels[-5:-3], labels[-3:] = (0, 1), labels[:3]  # flat ones are alike to none; a row that is there twice
    hashes = perceptual_hashes(thumbs)
    groups = {
        (i, j): len(set(near_duplicate_groups(hashes[[i, j]], thumbs[[i, j]]).tolist())) == 1
        for i in range(len(labels)) for j in range(len(labels)) if i != j
    }  # fmt: skip
    expected = set()
    for i in range(len(labels) - 3):
        others = [j for j in range(len(labels) - 3) if j != i and groups[i, j] and labels[i] != labels[j]]
        if others:
            closest = min(others, key=lambda j: np.abs(thumbs[i].astype(int) - thumbs[j].astype(int)).mean())
            expected.add((min(i, closest), max(i, closest)))
    assert {tuple(pair) for pair in contradictions(hashes, thumbs, labels).tolist()} == expected and len(expected) > 4
    assert contradictions(hashes, thumbs, np.zeros_like(labels)).shape == (0, 2)
    assert contradictions(hashes[:0], thumbs[:0], labels[:0]).shape == (0, 2)


def test_one_hash_is_not_yet_one_picture():
    scenes = prints([render(SyntheticConfig(image_size=64), video, 0) for video in range(3)])
    thumbs = scenes[[0, 1, 0, 1, 2, 2]]
    hashes = np.full(6, 77, dtype=np.int64)
    assert near_duplicate_groups(hashes, thumbs).tolist() == [0, 1, 0, 1, 2, 2]
    assert near_duplicate_groups(hashes).tolist() == [0] * 6


@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_pictures_have_no_hash_and_join_nothing(level):
    dice = np.random.default_rng(level)
    noisy = np.clip(dice.normal(level, 4, (60, 80, 3)), 0, 255).astype(np.uint8)  # averages out
    flat = [Image.new("RGB", (64, 48), (level,) * 3), Image.fromarray(noisy), jpeg(Image.fromarray(noisy), 30)]
    assert [hash_of(picture) for picture in flat] == [NO_HASH] * 3
    thumbs = prints(flat * 2)
    assert near_duplicate_groups(perceptual_hashes(thumbs), thumbs).tolist() == list(range(6))


def test_any_shape_of_picture_has_a_hash():
    dice = np.random.default_rng(0)
    for size in ((1, 1), (1, 300), (3, 2), (4000, 5)):
        picture = Image.fromarray(dice.integers(0, 256, (*size, 3), dtype=np.uint8))
        assert len(thumbprint(picture)) == 256
        hash_of(picture)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["gtsrb_roadwork", "fashion_shirt"])
def test_planted_copies_of_real_photographs(name):
    """95% found at under 1% false alarms: originals joined, transitively, with another track or another row."""
    import pyarrow.parquet as pq

    table = pq.read_table(SHARED / "data" / name / "data" / "train-00000-of-00001.parquet").slice(0, 12_000)
    pictures = [open_image(cell) for cell in table["image"].to_pylist()]
    column = "video_info.vid_id" if "video_info.vid_id" in table.column_names else "id"
    tracks = np.unique(table[column].to_pylist(), return_inverse=True)[1]
    dice = np.random.default_rng(7)
    of = np.concatenate([dice.choice(len(pictures), 400, replace=False) for _ in COPIES])
    made = [copy for copy in COPIES.values() for _ in range(400)]
    copies = [copy(pictures[row], dice) for row, copy in zip(of, made, strict=True)]
    thumbs = prints(pictures + copies)
    hashes = perceptual_hashes(thumbs)
    groups = near_duplicate_groups(hashes, thumbs)
    n = len(pictures)
    found = (groups[n:] == groups[of]).reshape(len(COPIES), -1).mean(axis=1)
    held = np.unique(np.stack([groups, np.r_[tracks, tracks[of]]], axis=1), axis=0)[:, 0]
    alarms = (np.bincount(held)[groups[:n]] > 1).mean()
    assert found.mean() >= 0.95, found
    assert alarms < 0.01
    assert (different_bits(hashes[n:], hashes[of]) <= NEAR_BITS).mean() >= 0.95
