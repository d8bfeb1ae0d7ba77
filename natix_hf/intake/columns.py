"""Data sets in columns: parquet and arrow files, what `save_to_disk` wrote, and data sets of the Hub."""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from natix_hf.disk import OF_A_DISK, disk_error
from natix_hf.errors import DataError, HubError, UsageError, cut, first_line
from natix_hf.intake.files import Found
from natix_hf.intake.kinds import kind_of
from natix_hf.intake.splitwords import SPLITS, TRAIN, split_of, split_of_file
from natix_hf.provenance.files import walk
from natix_hf.provenance.hub import hub_errors, is_repo_id

if TYPE_CHECKING:
    from datasets import Dataset


def is_saved(folder: Path) -> bool:
    """True if `save_to_disk` wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def load_saved(folder: Path, key: str) -> dict[str, Dataset]:
    """Load the splits of a folder that `save_to_disk` wrote. Raises DataError if it is damaged."""
    from datasets import load_from_disk

    return load_splits(lambda: load_from_disk(str(folder)), key, str(folder))


def holds_images(found: Found, image_column: str) -> bool:
    """True if a parquet or arrow file has pictures in the image column, not names of pictures beside it."""
    import pyarrow as pa

    for file in found.columns:
        if file.member is None and (schema := _schema(file.path)) is not None and image_column in schema.names:
            kind = schema.field(image_column).type
            return bool(pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
    return False


def _schema(file: Path) -> Any:
    """The schema of a parquet or arrow file, or None if it is damaged."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if file.suffix.lower() == ".parquet":
            return parquet.read_schema(file)
        with pa.memory_map(str(file)) as source:
            return pa.ipc.open_stream(source).schema
    except (pa.ArrowException, OSError):
        return None


def load_files(found: Found, config: str | None, key: str, notes: list[str]) -> tuple[dict[str, Dataset], set[str]]:
    """Load the parquet or arrow files of a folder, by split. The second result names the files that were read.

    What the user should hear is added to `notes`.

    The README of a data set may declare its configurations and splits. Otherwise a file belongs to the split that it,
    or a folder above it, is named after. Files without such a name are the train split.

    Raises:
        DataError: If a file is damaged, or there are several configurations and `config` names none.
    """
    from datasets import load_dataset

    declared = declared_configs(found.root) if found.source.is_dir() else []
    if declared:
        chosen = choose_config(declared, config, str(found.root))
        of_config = load_splits(lambda: load_dataset(str(found.root), chosen), key, str(found.root))
        return of_config, _files_of(found, chosen)
    if config is not None:
        raise DataError(f"data.config is {cut(config)}, but {found.root} has no configurations: remove the key")
    files: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    splits = _splits_of([file.place for file in found.columns], notes)
    for file, split in zip(found.columns, splits, strict=True):
        if file.member is not None:
            raise DataError(f"{file.path} holds {file.member}: unpack it, parquet files are not read from archives")
        builder = "parquet" if file.path.suffix.lower() == ".parquet" else "arrow"
        files[split][builder].append(glob.escape(str(file.path)))
    loaded: dict[str, Dataset] = {}
    for split in sorted(files, key=SPLITS.index):
        kinds = files[split]
        if len(kinds) > 1:
            raise DataError(f"{found.root} holds both parquet and arrow files: keep one kind, or name one folder")
        [(builder, paths)] = kinds.items()
        load = partial(load_dataset, builder, data_files={split: paths})
        loaded |= load_splits(load, key, str(found.source))
    return loaded, {file.name for file in found.columns}


def _files_of(found: Found, config: str) -> set[str]:
    """The files of a configuration."""
    from datasets import load_dataset_builder

    data_files: Any = load_dataset_builder(str(found.root), config).config.data_files
    named = {os.path.realpath(path) for paths in (data_files or {}).values() for path in paths}
    return {file.name for file in (*found.columns, *found.pictures) if os.path.realpath(file.path) in named}


def load_hub(repo_id: str, revision: str | None, config: str | None, key: str) -> dict[str, Dataset]:
    """Load a data set of the Hub.

    Raises:
        DataError: If there is no such data set or no right to it, or it has several configurations.
    """
    from datasets import load_dataset

    return load_splits(lambda: load_dataset(repo_id, config, revision=revision), key, repo_id)


def hub_pictures(repo_id: str, revision: str | None) -> Path | None:
    """Download a data set of plain pictures from the Hub; None if its data stand in columns, or are not to be had.

    `datasets` would take words in the names of pictures for splits. A README that declares its configurations is
    followed instead.
    """
    from huggingface_hub import HfApi, snapshot_download

    where: dict[str, Any] = {"repo_id": repo_id, "repo_type": "dataset", "revision": revision}
    try:
        with hub_errors(repo_id, "list", "nothing was loaded"):
            names, local = HfApi().list_repo_files(**where), False
    except UsageError:  # `datasets` says what is wrong
        return None
    except HubError:  # what was downloaded before
        names, local = _downloaded(where), True
    kinds = {kind_of(name) for name in names}
    if "columns" in kinds or not kinds & {"picture", "archive"}:
        return None
    with hub_errors(repo_id, "download", "nothing was loaded"):
        folder = Path(snapshot_download(**where, local_files_only=local))
    return None if declared_configs(folder) else folder


def _downloaded(where: dict[str, Any]) -> list[str]:
    """The files of a data set that a former download left in the cache."""
    from huggingface_hub import snapshot_download

    try:
        return [name for name, _ in walk(Path(snapshot_download(**where, local_files_only=True)))]
    except OSError:
        return []


def choose_config(known: list[str], config: str | None, source: str) -> str:
    """The configuration to load: the one that is asked for, the only one, or the one called `default`.

    Raises:
        DataError: If none of these exists.
    """
    listed = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
    if config is not None:
        if config not in known:
            raise DataError(f"data.config {cut(config)} is none of the configurations of {source}: {listed}")
        return config
    if len(known) == 1 or "default" in known:
        return known[0] if len(known) == 1 else "default"
    raise DataError(f"{source} has several configurations, {listed}: set data.config to one of them")


def declared_configs(root: Path) -> list[str]:
    """The configurations that the README of a data set declares with their files."""
    import yaml

    readme = root / "README.md"
    try:
        text = readme.read_text(encoding="utf-8-sig", errors="replace") if readme.is_file() else ""
        header = re.match(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", text, re.DOTALL)
        card: Any = yaml.safe_load(header.group(1)) if header else None
    except (ValueError, OSError, yaml.YAMLError):
        return []
    declared = card.get("configs") if isinstance(card, dict) else None
    if not isinstance(declared, list):
        return []
    return [str(entry["config_name"]) for entry in declared if isinstance(entry, dict) and "config_name" in entry]


def _splits_of(places: list[str], notes: list[str]) -> list[str]:
    """The split of each file. A word inside a name counts only if every file has one, as in `photos_test.parquet`.

    A word that does not count is told in `notes`.
    """
    plain = [_named_split(place) for place in places]
    words = [split or _word_in(PurePosixPath(place).stem) for split, place in zip(plain, places, strict=True)]
    if None not in words and len(set(words)) > 1:
        return [str(split) for split in words]
    notes += [
        f"{place} belongs to no split of its own, although its name holds a word for {word}: rename it to "
        f"{word}{PurePosixPath(place).suffix} if it is one"
        for place, split, word in zip(places, plain, words, strict=True)
        if split is None and word not in (None, TRAIN)
    ][:3]
    return [split or TRAIN for split in plain]


def _named_split(place: str) -> str | None:
    path = PurePosixPath(place)
    folders = (split_of(part) for part in reversed(path.parent.parts))
    return split_of_file(path.stem) or next((split for split in folders if split is not None), None)


def _word_in(stem: str) -> str | None:
    tokens = [token for token in stem.replace("-", "_").replace(".", "_").split("_") if not token.isdigit()]
    ends = [split for token in (tokens[:1] + tokens[-1:]) if (split := split_of(token)) is not None]
    return ends[-1] if ends else None


def load_splits(load: Callable[[], Any], key: str, source: str) -> dict[str, Any]:
    """Run a loader of `datasets`, in memory or streaming, and turn its errors into one line.

    Raises:
        DataError: If it fails.
    """
    import pyarrow
    from datasets import Dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        loaded: Any = load()
    except DatasetNotFoundError as error:
        raise DataError(
            f"{key}: no dataset {cut(source)} on the Hub, or no right to read it ({first_line(error)})"
        ) from None
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        DatasetsError,
    ) as error:  # IndexError: saved without rows; TypeError: a README with other things than it should hold
        if (disk := disk_error(error)) is not None and disk.errno in OF_A_DISK:
            raise disk from error  # of the cache that it was writing
        cause = error.__cause__ or error  # DatasetGenerationError hides the real error in its cause
        if "onfig name is missing" in str(error):
            raise DataError(
                f"{key}: {source} has several configurations ({_one_line(error)}): set data.config"
            ) from None
        raise DataError(f"{key}: {source} cannot be loaded by `datasets` ({first_line(cause)})") from None
    pyarrow.default_memory_pool().release_unused()  # it keeps what the last row group of a parquet file took
    return {"train": loaded} if isinstance(loaded, Dataset) else dict(loaded)


def undecoded(dataset: Any, column: str, where: str) -> Any:
    """A data set whose image column yields `{"bytes", "path"}` instead of decoded pictures.

    Raises:
        DataError: If the column does not hold images.
    """
    from datasets import Image

    try:
        return dataset.cast_column(column, Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's errors are some of these
        raise DataError(f"column {cut(column)} of {where} does not hold images ({first_line(error)})") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def on_hub(reference: str) -> bool:
    """True if a source is the id of a data set and no path."""
    return is_repo_id(reference) and not os.path.exists(os.path.expanduser(reference))
