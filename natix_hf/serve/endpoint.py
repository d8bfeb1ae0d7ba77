"""The handler that Inference Endpoints call: `EndpointHandler(path)(data)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from natix_hf.bundle.load import Bundle, load_bundle
from natix_hf.bundle.names import BUNDLE_MANIFEST
from natix_hf.bundle.space import PINNED, read_pinned
from natix_hf.bundle.stream import BadImage
from natix_hf.errors import UsageError, cut
from natix_hf.serve.answers import answer_json, from_base64, picture_name

_MOST = 256  # pictures of a request
_FORM = "a picture as bytes, as base64 or as a PIL image, or a list of them"


def pinned_bundle(folder: Path) -> Bundle:
    """The bundle that `pinned.json` in a folder names, from the Hub or its cache, every byte checked."""
    pinned = read_pinned(folder / PINNED)
    return load_bundle(pinned.repo_id, revision=pinned.revision, expected=pinned.expected)


class EndpointHandler:
    """A bundle that answers by the calling convention of Inference Endpoints.

    Args:
        path: The folder of the endpoint's repository, with its `pinned.json`; or a bundle folder.

    Raises:
        UsageError, HubError, VerificationError: as in [`load_bundle`].
    """

    def __init__(self, path: str | Path = "") -> None:
        folder = Path(path)
        is_bundle = (folder / BUNDLE_MANIFEST).is_file()
        self.bundle = load_bundle(folder) if is_bundle else pinned_bundle(folder)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Answer `data["inputs"]`, a picture as bytes, base64 or PIL image, or a list of them.

        Returns:
            `{"answers": […]}`, one for each picture in order: the fields of a [`Prediction`], or `error` for a picture
            that cannot be read.

        Raises:
            UsageError: if `inputs` is something else.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise UsageError(f"there are no inputs: send {_FORM}")
        given = data["inputs"]
        pictures = given if isinstance(given, list) else [given]
        if not 1 <= len(pictures) <= _MOST:
            raise UsageError(f"inputs has {len(pictures)} pictures: send 1 to {_MOST} at once")
        read = [self._picture(value, picture_name(index)) for index, value in enumerate(pictures)]
        good = iter(self.bundle.stream([picture for picture in read if not isinstance(picture, BadImage)], 8))
        answers = []
        for index, picture in enumerate(read):
            answer = picture if isinstance(picture, BadImage) else next(good)
            name = picture_name(index)
            if isinstance(answer, BadImage):  # the stream counts only the pictures that it was given
                answer = BadImage(name, answer.problem.replace(answer.name, name, 1))
            answers.append(answer_json(name, answer))
        return {"answers": answers}

    def _picture(self, value: Any, name: str) -> Any:
        if isinstance(value, Image.Image | bytes | bytearray):
            return value
        if not isinstance(value, str):
            raise UsageError(f"{name} is {cut(value)}: send {_FORM}")
        try:
            return from_base64(value, name)
        except UsageError as error:
            return BadImage(name, str(error))
