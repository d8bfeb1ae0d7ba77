"""Find near-duplicate pictures: the same photograph re-encoded, resized or brightened, or the next frame of a video.

Each picture leaves a thumbprint of 16 x 16 grey levels. A 64-bit perceptual hash of the thumbprint, the DCT hash of
Zauner (2010), finds candidates without comparing all pairs. The thumbprints of a candidate pair then say whether it is
one picture: 64 bits alone cannot tell many look-alikes apart (traffic signs, shirts on a plain ground).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

import numpy as np
from PIL import Image

# The hash of a picture with hardly any contrast (black, white, fog). Such pictures all look alike, so none is a near
# duplicate of another. No other picture has this hash, because 31 of its 64 bits or so are set.
NO_HASH = 0
# Candidates differ in at most so many bits. Of planted copies (JPEG 30 to 80, 10% larger or smaller, 1.1 to 1.3 times
# as bright, or all of it) 99% do. So do, with a different picture, 49% of traffic signs and 75% of clothes: hence the
# thumbprints (benchmarks/near_duplicates.py).
NEAR_BITS = 10

_SIDE = 16
_LOW = 8  # the hash holds the 8 x 8 lowest frequencies
_LEAST_CONTRAST = 3.0  # standard deviation of the thumbprint's grey levels; JPEG noise reaches 2
_BAND_BITS, _BANDS = 16, 4
_CANDIDATES = 1 << 20  # candidate pairs held at a time
_COMPARED = 1 << 12  # pairs of thumbprints compared at a time

# Whether two thumbprints show one picture: what is left of each frequency band after the brighter one is predicted
# from the darker one, against the picture's own detail. The weights are those of a logistic regression on planted
# copies and look-alikes among real photographs, rounded. The limit joins less than 1% of other pictures there: 96% of
# the copies of traffic signs are found at 0.75% false alarms, 99% of those of clothes at 0.67%.
_EDGES = (0.5, 2.1, 4.1, 6.1, 8.1)  # of the bands, in cycles
_WEIGHTS = np.array([0.3, 1.0, 1.6, 1.5], dtype=np.float32) / 4.4
_DETAIL_WEIGHT = 0.6
_LARGEST_REST = -2.35
_LEAST_CORRELATION = 0.8  # of coarse thumbprints; planted copies have 0.90 and more, frames that pass 0.85
_LARGEST_GAIN = 1.6  # of contrast; the mean level may change by 1.5 times as much, or as little
_WHITE = 240  # a grey level from which on a brightened picture may be clipped


def _dct() -> np.ndarray:
    """The two-dimensional cosine transform of a flat thumbprint, [256, 256]. A coefficient's square is a variance."""
    k = np.arange(_SIDE)
    rows = np.cos(np.pi * k[:, None] * (2 * k[None] + 1) / (2 * _SIDE)) * np.sqrt(2 / _SIDE)
    rows[0] /= np.sqrt(2)
    return np.asarray(np.kron(rows, rows).T / _SIDE, dtype=np.float32)


_DCT = _dct()
# Sums of 4 x 4 levels of a flat thumbprint, [256, 16].
_COARSE = np.kron(np.kron(np.eye(4), np.ones((4, 1))), np.kron(np.eye(4), np.ones((4, 1)))).astype(np.float32)
_DOWN, _ACROSS = (axis.ravel() for axis in np.indices((_SIDE, _SIDE)))
_HASHED = (_DOWN < _LOW) & (_ACROSS < _LOW)
_FREQUENCY = np.hypot(_DOWN, _ACROSS)
_SEEN = (_FREQUENCY > _EDGES[0]) & (_FREQUENCY <= _EDGES[-1])
_BAND_OF = np.stack(
    [(_FREQUENCY[_SEEN] > low) & (_FREQUENCY[_SEEN] <= high) for low, high in pairwise(_EDGES)],
    axis=1,
).astype(np.float32)


def thumbprint(image: Image.Image) -> bytes:
    """Shrink an RGB picture to 16 x 16 grey levels, 256 bytes."""
    return image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0).convert("L").tobytes()


def perceptual_hashes(thumbs: np.ndarray) -> np.ndarray:
    """Compute the 64-bit hash of each thumbprint.

    Args:
        thumbs: uint8 [n, 256].

    Returns:
        int64 [n]. A bit says whether one of the 64 lowest frequencies is above their median. `NO_HASH` stands for a
        picture of too little contrast.
    """
    hashes = np.empty(len(thumbs), dtype=np.int64)
    for begin in range(0, len(thumbs), _COMPARED):
        part = slice(begin, begin + _COMPARED)
        levels = thumbs[part].astype(np.float32)
        low = levels @ _DCT[:, _HASHED]
        bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)
        found = np.ascontiguousarray(bits).view(">i8").ravel().astype(np.int64)
        hashes[part] = np.where(levels.std(axis=1) < _LEAST_CONTRAST, NO_HASH, found)
    return hashes


def near_duplicate_groups(hashes: np.ndarray, thumbs: np.ndarray | None = None, bits: int = NEAR_BITS) -> np.ndarray:
    """Join near-duplicates, and near-duplicates of these, into groups.

    Rows with one hash and one picture are compared with other rows through the first of them. Memory is linear in the
    number of rows.

    Args:
        hashes: int64 [n]. A row with `NO_HASH` is a group of its own.
        thumbs: The rows' thumbprints, uint8 [n, 256]. Without them the hashes alone decide; then choose fewer `bits`.
        bits: Largest number of different bits in two hashes.

    Returns:
        int64 [n], the group of each row, numbered by their first rows.
    """
    first = np.arange(len(hashes))
    known = np.flatnonzero(hashes != NO_HASH)
    rest = known[np.argsort(hashes[known], kind="stable")]
    while len(rest):
        start = np.r_[True, hashes[rest[1:]] != hashes[rest[:-1]]]
        leader = rest[start][np.cumsum(start) - 1]
        same = leader == rest
        same[~same] = _one_picture(thumbs, leader[~same], rest[~same])
        first[rest[same]] = leader[same]
        rest = rest[~same]
    leaders = np.unique(first[known])
    group = np.arange(len(hashes))
    group[leaders] = leaders[_joined(hashes[leaders], None if thumbs is None else thumbs[leaders], bits)]
    _, begin, number = np.unique(group[first], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(begin))[number].astype(np.int64)


def contradictions(hashes: np.ndarray, thumbs: np.ndarray, labels: np.ndarray, bits: int = NEAR_BITS) -> np.ndarray:
    """Find pictures that look alike and have different labels.

    Rows of one label with the same thumbprint are looked at through the first of them.

    Args:
        hashes: int64 [n]. A row with `NO_HASH` is alike to none.
        thumbs: Their thumbprints, uint8 [n, 256].
        labels: 0 or 1, int64 [n].
        bits: Largest number of different bits in two hashes.

    Returns:
        int64 [m, 2]: each row that has such a partner, with the closest of them. A pair is listed once.
    """
    known = np.flatnonzero(hashes != NO_HASH)
    labelled = np.column_stack([labels[known].astype(np.uint8), thumbs[known]])
    _, first = np.unique(labelled, axis=0, return_index=True) if len(known) else (None, np.zeros(0, dtype=np.int64))
    rows = known[np.sort(first)]
    prints = thumbs[rows]
    nearest, partner = np.full(len(rows), np.inf), np.full(len(rows), -1)
    for one, other in pairs_within(hashes[rows], bits):
        apart = labels[rows[one]] != labels[rows[other]]
        one, other = one[apart], other[apart]
        same = _one_picture(prints, one, other)
        for a, b in zip(one[same].tolist(), other[same].tolist(), strict=True):
            difference = float(np.abs(prints[a].astype(np.int16) - prints[b]).mean())
            for i, j in ((a, b), (b, a)):
                if difference < nearest[i]:
                    nearest[i], partner[i] = difference, j
    at = np.flatnonzero(partner >= 0)
    pairs = np.sort(np.column_stack([rows[at], rows[partner[at]]]), axis=1)
    return np.unique(pairs, axis=0).astype(np.int64)


def join_given(alike: np.ndarray, given: Sequence[str | None]) -> list[str | None]:
    """Join the near-duplicate groups that share a given group, as frames of one video that do not look alike.

    Args:
        alike: int64 [n], the near-duplicate group of each row; -1: not known.
        given: The group that a source gives each row; None: none.

    Returns:
        The first near-duplicate group of each row's joined ones, as text; None where it is not known.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    at = [i for i, name in enumerate(given) if name is not None and alike[i] >= 0]
    count = int(alike.max(initial=-1)) + 1
    names, number = np.unique([str(given[i]) for i in at], return_inverse=True)
    size = count + len(names)
    edges = coo_array((np.ones(len(at), dtype=bool), (alike[at], count + number)), shape=(size, size))
    _, part = connected_components(edges, directed=False)
    _, first = np.unique(part[:count], return_index=True)
    lead = dict(zip(part[first].tolist(), first.tolist(), strict=True))
    return [str(lead[part[a]]) if a >= 0 else None for a in alike.tolist()]


def _joined(hashes: np.ndarray, thumbs: np.ndarray | None, bits: int) -> np.ndarray:
    """The first row of each row's group. Pairs that other pairs have joined already are not compared."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    group = np.arange(len(hashes))
    for one, other in pairs_within(hashes, bits):
        for begin in range(0, len(one), _COMPARED):
            a, b = one[begin : begin + _COMPARED], other[begin : begin + _COMPARED]
            apart = group[a] != group[b]
            a, b = a[apart], b[apart]
            same = _one_picture(thumbs, a, b)
            if same.any():
                edges = (group[a[same]], group[b[same]])
                graph = coo_array((np.ones(len(edges[0]), dtype=bool), edges), shape=(len(group), len(group)))
                number = connected_components(graph, directed=False)[1][group]
                _, first, inverse = np.unique(number, return_index=True, return_inverse=True)
                group = first[inverse]
    return group


def _one_picture(thumbs: np.ndarray | None, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether the thumbprints of two rows show one picture, bool [m]. Without thumbprints all do."""
    same = np.ones(len(one), dtype=bool)
    if thumbs is None:
        return same
    for begin in range(0, len(one), _COMPARED):
        part = slice(begin, begin + _COMPARED)
        a, b = thumbs[one[part]].astype(np.float32), thumbs[other[part]].astype(np.float32)
        at = np.flatnonzero(_rough_correlation(a, b) >= _LEAST_CORRELATION)
        same[part] = False
        same[at + begin] = _alike(a[at], b[at])
    return same


def _rough_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Correlation of the 16 sums of 4 x 4 levels, float32 [m]. It is cheap and turns most strangers away."""
    a, b = (levels - levels.mean(axis=1, keepdims=True) for levels in (one @ _COARSE, other @ _COARSE))
    return np.asarray((a * b).sum(axis=1) / np.sqrt(np.maximum((a**2).sum(axis=1) * (b**2).sum(axis=1), 1)))


def _alike(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Predict the brighter thumbprint from the darker one by gain, offset and clipping, and judge what is left."""
    swap = (one.mean(axis=1) < other.mean(axis=1))[:, None]
    bright, dark = np.where(swap, other, one), np.where(swap, one, other)
    free = (bright < _WHITE).astype(np.float32)
    count = np.maximum(free.sum(axis=1, keepdims=True), 1)
    bright_mean = (bright * free).sum(axis=1, keepdims=True) / count
    dark_mean = (dark * free).sum(axis=1, keepdims=True) / count
    about = (dark - dark_mean) * free
    gain = (about * bright).sum(axis=1, keepdims=True) / np.maximum((about**2).sum(axis=1, keepdims=True), 1)
    left = bright - np.clip(bright_mean + gain * (dark - dark_mean), 0, 255)
    transform = _DCT[:, _SEEN]
    rest = (left @ transform) ** 2 @ _BAND_OF
    detail = ((bright @ transform) ** 2 @ _BAND_OF[:, 1:]).sum(axis=1)
    judged = np.log(rest + 0.1) @ _WEIGHTS - _DETAIL_WEIGHT * np.log(detail + 10)
    lift = (bright.mean(axis=1) + 1) / (dark.mean(axis=1) + 1) / np.maximum(gain[:, 0], 1e-6)
    fits = (np.abs(np.log(lift)) < np.log(1.5)) & (gain[:, 0] > 1 / _LARGEST_GAIN) & (gain[:, 0] < _LARGEST_GAIN)
    return np.asarray((judged <= _LARGEST_REST) & fits)


def pairs_within(hashes: np.ndarray, bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all pairs of rows within `bits` bits, each once, some at a time.

    The hash is cut into four bands (multi-index hashing, Norouzi et al. 2012). Two hashes within `bits` bits differ in
    at most `bits // 4` bits of some band, so only rows whose bands are that close are compared.
    """
    codes = hashes.astype(np.int64).view(np.uint64)
    keys = [(codes >> np.uint64(_BAND_BITS * k)).astype(np.int64) & (2**_BAND_BITS - 1) for k in range(_BANDS)]
    most = bits // _BANDS
    masks = [sum(1 << b for b in chosen) for m in range(most + 1) for chosen in combinations(range(_BAND_BITS), m)]
    for band, key in enumerate(keys):
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        begins = np.searchsorted(ordered, np.arange(2**_BAND_BITS + 1))
        for mask in masks:
            partner = ordered ^ mask
            begin = begins[partner] if mask else np.arange(1, len(order) + 1)
            count = np.where(ordered <= partner, begins[partner + 1] - begin, 0)
            for left, right in _expanded(begin, count):
                one, other = order[left], order[right]
                near = np.bitwise_count(codes[one] ^ codes[other]) <= bits
                for earlier in keys[:band]:  # such a pair has been found in that band
                    near &= np.bitwise_count(earlier[one] ^ earlier[other]) > most
                if near.any():
                    yield one[near], other[near]


def _expanded(begin: np.ndarray, count: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pairs (i, begin[i] ... begin[i] + count[i] - 1) for all i, about `_CANDIDATES` at a time."""
    rows = np.flatnonzero(count)
    if len(rows):
        total = np.cumsum(count[rows])
        for part in np.split(rows, np.searchsorted(total, np.arange(_CANDIDATES, total[-1], _CANDIDATES))):
            counts = count[part]
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            yield np.repeat(part, counts), np.repeat(begin[part], counts) + within
