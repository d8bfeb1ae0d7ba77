"""The other half of the exam: labelled generated pictures. They are measured only, never trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from natix_hf.data.asked import Asked
from natix_hf.data.config import DataConfig
from natix_hf.data.decode import decode_once
from natix_hf.data.own_keys import own_keys
from natix_hf.data.sources import load_source
from natix_hf.data.splits import CONTRADICTION
from natix_hf.errors import DataError
from natix_hf.provenance.files import json_sha256

KEY = "data.synthetic_half"
_COPY_PX = 32  # of the copies that come with the digests; nothing reads them


@dataclass(frozen=True)
class GeneratedRows:
    """Generated pictures to ask about, and those that were left out.

    Args:
        asked: Their views in the exam.
        pixels_sha256: Hash over their pixels and labels, in order.
        left_out: Pictures that are not asked about, as id -> reason.
        notes: What the user should hear.
    """

    asked: Asked
    pixels_sha256: str
    left_out: dict[str, str]
    notes: list[str]


def load_generated(config: DataConfig, real: Mapping[str, str], revision: str | None = None) -> GeneratedRows:
    """Load all pictures of `data.synthetic_half`, with labels that are written as in `data.source`.

    Args:
        config: The section, with `synthetic_half` and `exam`.
        real: Where each real picture stands, such as "row a/1.png of test", by the digest of its pixels. A generated
            picture with the same pixels is left out.
        revision: Branch, tag or commit, if the source is on the Hub.

    Raises:
        DataError: If the source cannot be read, or has no pictures of both labels besides those left out.
    """
    source = str(config.synthetic_half)
    keys = own_keys(config) | {"label_rule": "none", "group_by": None, "slices": [], "config": None}
    own = replace(config, source=source, revision=revision, synthetic_half=None, **keys)
    try:
        rows = load_source(own, if_known=("positive_class", "exclude_classes"))
        left_out = {f"synthetic:{row_id}": reason for row_id, reason in rows.left_out.items()}
        kept = [i for i, row_id in enumerate(rows.ids) if row_id not in rows.left_out and rows.labels[i] >= 0]
        images = rows.images.select(kept)
        ids = [f"synthetic:{rows.ids[i]}" for i in kept]
        decoded = decode_once(images, ids, own.image_column, _COPY_PX, own.on_bad_image, "raw", own.max_megapixels)
    except DataError as error:
        raise DataError(f"{KEY}: {error}") from None
    labels, digests = rows.labels[kept], list(decoded["sha256"])
    seen: dict[str, set[int]] = defaultdict(set)
    for label, digest in zip(labels.tolist(), digests, strict=True):
        seen[digest].add(label)
    for row_id, digest, problem in zip(ids, digests, decoded["problem"], strict=True):
        if problem is not None:
            left_out[row_id] = f"unreadable image: {problem}"
        elif digest in real:
            left_out[row_id] = f"the same picture is a real one: {real[digest]}"
        elif len(seen[digest]) > 1:
            left_out[row_id] = CONTRADICTION
    at = [i for i, row_id in enumerate(ids) if row_id not in left_out]
    found = {label: int((labels[at] == label).sum()) for label in (0, 1)}
    if not all(found.values()):
        lost = f" ({len(left_out)} were left out, the first is {next(iter(left_out.items()))})" if left_out else ""
        raise DataError(
            f"{KEY}: {source} has {found[0]} pictures with label 0 and {found[1]} with label 1 to ask about{lost}: "
            "bring generated pictures of both"
        )
    names = [ids[i] for i in at]
    cells = images.select(at)[own.image_column]
    most = config.max_megapixels
    asked = Asked(names, np.asarray(names), labels[at], config.drawn_exam, cells, generated=True, max_megapixels=most)
    told = [f"{KEY}: {note}" for note in rows.notes]
    return GeneratedRows(asked, json_sha256([[digests[i], int(labels[i])] for i in at]), left_out, told)
