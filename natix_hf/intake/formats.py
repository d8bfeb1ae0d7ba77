"""Which picture formats are read: a list, so that no file can choose what opens it."""

from __future__ import annotations

import functools
import importlib

from PIL import Image, features

from natix_hf.intake.pointers import HEAD, stand_in

# Left out on purpose: EPS, WMF and PDF (drawings, which Pillow gives to other programs), IPTC (a wrapper round a file
# of any format), MPEG, BUFR, GRIB and HDF5 (only recognised), FITS and MCIDAS (measurements).
_FORMATS = frozenset(
    "AVIF BLP BMP CUR DCX DDS DIB FLI FTEX GBR GIF ICNS ICO IM JPEG JPEG2000 MPO MSP PCD PCX PIXAR PNG PPM PSD QOI SGI"
    " SPIDER SUN TGA TIFF WEBP XBM XPM HEIF JXL".split()
)
_BUILT_IN = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000"}  # formats that Pillow may be built without
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# What Pillow would give to another program, or to a plug-in that reads other files.
_NOT_READ = {
    (b"%!PS", b"\xc5\xd0\xd3\xc6"): "EPS, a drawing",
    (b"%PDF",): "PDF, a document",
    (b"\xd7\xcd\xc6\x9a", b"\x01\0\0\0"): "WMF or EMF, a drawing",
    (b"<svg", b"<?xml"): "SVG, a drawing",
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",): "FPX, MIC or an Office document",
}
_AVIF = (b"avif", b"avis")
_JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that can be read here, in the order in which Pillow tries them. The content of a
    file decides among them, never its name.

    HEIC needs `pillow-heif`, JPEG XL needs `pillow-jxl-plugin`; they are registered on the first call.
    """
    Image.init()
    if _importable("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    _importable("pillow_jxl")  # it registers itself
    supported = features.get_supported()  # features.check warns of AVIF in a Pillow that is older than it
    missing = {name for name, feature in _BUILT_IN.items() if feature not in supported}
    return tuple(name for name in Image.ID if name in _FORMATS - missing)


@functools.cache
def readable_endings() -> frozenset[str]:
    """The endings of the files that can be read here, such as `.jpg`: in lower case, with their dot."""
    formats = {*readable_formats(), "MPO"}  # an MPO is a JPEG with further pictures
    return frozenset(ending.lower() for ending, name in Image.EXTENSION.items() if name in formats)


def _importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def why_unknown(content: bytes) -> str:
    """Say why Pillow knows no format for a file, and what to do."""
    if not content:
        return "it is empty"
    elsewhere = stand_in(content[:HEAD])
    if elsewhere is not None:
        return elsewhere
    if content[4:8] == b"ftyp" and content[8:12] in _HEIC and "HEIF" not in readable_formats():
        return "it is HEIC: pip install 'natix_hf[heic]'"
    if content[4:8] == b"ftyp" and content[8:12] in _AVIF and "AVIF" not in readable_formats():
        return "it is AVIF: pip install 'pillow>=11.3'"
    if content.startswith(_JXL) and "JXL" not in readable_formats():
        return "it is JPEG XL: pip install pillow-jxl-plugin"
    for starts, name in _NOT_READ.items():
        if content.startswith(starts):
            return f"it is {name}, which is not read: export it as PNG or JPEG"
    return "it is of no known format, or its header is damaged"
