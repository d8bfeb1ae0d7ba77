"""What a file is, by its name: a picture, a table, an archive, a column file, or no row and why."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Literal

from natix_hf.intake.archives import is_archive
from natix_hf.intake.formats import readable_endings
from natix_hf.intake.tables import is_table

Kind = Literal["picture", "table", "archive", "columns", "other"]

COLUMN_ENDINGS = frozenset({".parquet", ".arrow"})
# Picture formats that Pillow reads only with a plug-in, or only when it is new: ending -> what to install.
_PLUGINS = dict.fromkeys((".heic", ".heif", ".hif"), "'natix_hf[heic]'")
_PLUGINS |= {".jxl": "pillow-jxl-plugin", ".avif": "'pillow>=11.3'"}
_RAW = frozenset(".3fr .arw .cr2 .cr3 .dng .nef .nrw .orf .pef .raf .raw .rw2 .srw".split())
_VIDEO = frozenset(".avi .m4v .mkv .mov .mp4 .mts .ts .webm .wmv .mpeg .mpg .3gp".split())
_SYSTEM = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r", "picasa.ini", "zbthumbnail.info"})
_THUMBNAIL_FOLDERS = frozenset({"@eadir", "thumbnails", "thumbs"})
# The first bytes of pictures whose file has no ending, or one that says nothing.
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM.{4}\x00\x00\x00\x00|II\*\x00|MM\x00\*|RIFF.{4}WEBP"
    rb"|....ftyp(?:avif|avis)|\x00\x00\x00\x0cjP  \r\n\x87\n",
    re.DOTALL,
)


def kind_of(name: str) -> Kind:
    """The kind of a file, by its ending in any case."""
    ending = PurePosixPath(name).suffix.lower()
    if ending in readable_endings():
        return "picture"
    if is_archive(name):
        return "archive"
    if is_table(name):
        return "table"
    return "columns" if ending in COLUMN_ENDINGS else "other"


def junk_reason(name: str) -> str | None:
    """Why a file is no part of a source whatever it holds, or None: hidden, a thumbnail, or a system's own."""
    *folders, base = PurePosixPath(name).parts
    if base.startswith("._") or "__MACOSX" in folders:
        return "a macOS resource fork"
    if any(folder.lower() in _THUMBNAIL_FOLDERS for folder in folders):
        return "a thumbnail"
    if base.startswith(".") or any(folder.startswith(".") for folder in folders):
        return "a hidden file"
    return "a file of the operating system" if base.lower() in _SYSTEM else None


def other_reason(name: str) -> str:
    """Why a file of the kind "other" is no row."""
    ending = PurePosixPath(name).suffix.lower()
    if ending in _PLUGINS:
        return f"{ending} cannot be read here: pip install {_PLUGINS[ending]}"
    if ending in _RAW:
        return f"a camera's raw file ({ending}): export it as JPEG or PNG"
    if ending in _VIDEO:
        return f"a video ({ending}): export its frames"
    if ending == ".dvc":
        return "a DVC file that stands for data elsewhere: run `dvc pull`"
    return f"not a picture ({ending})" if ending else "not a picture (no ending)"


def says_nothing(name: str) -> bool:
    """True if the ending is missing or unknown, so that the first bytes must tell whether the file is a picture."""
    ending = PurePosixPath(name).suffix.lower()
    return not ending or not (ending in _PLUGINS or ending in _RAW or ending in _VIDEO or ending in _TEXT)


def is_text(name: str) -> bool:
    """True if a file may be a table or an annotation."""
    return is_table(name) or PurePosixPath(name).suffix.lower() in _ANNOTATIONS


_ANNOTATIONS = frozenset(".json .labels .names .txt .xml .yaml .yml".split())
_TEXT = frozenset(
    ".bin .cls .css .db .html .ini .js .json .log .md .pdf .pt .pth .py .rst .safetensors .toml .txt .xml .yaml "
    ".yml .ipynb .doc .docx .xls .xlsx .npy .npz .pkl .h5 .svg".split()
)


def looks_like_picture(head: bytes) -> bool:
    """True if the first bytes of a file are those of a common picture format."""
    return _MAGIC.match(head) is not None
