"""The pictures in the body of a request, read while it arrives and never beyond the limits."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from natix_hf.errors import UsageError, cut
from natix_hf.serve.answers import from_base64, picture_name
from natix_hf.serve.limits import Limits, RefusedError

TAKES = "send multipart/form-data with files named images, application/json, or the bytes of one picture as image/*"
_JSON_FORM = '{"images": ["<base64 of an image file>", …]}'
_DRAIN_S = 3.0  # a refused body is read on for so long, because a client that still sends would not see the answer
_DRAIN_BODIES = 4
# It warns of every malformed body, in a line of its own on standard error, and each has its refusal.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Sent:
    """A picture as a client sent it: its bytes, or what is wrong with them."""

    name: str
    content: bytes | None
    problem: str | None = None


class Held:
    """The bytes of all bodies that are in memory now."""

    def __init__(self, most: int) -> None:
        self.most, self.now = most, 0


class Body:
    """The body of one request. `release` gives back what it held."""

    def __init__(self, request: Request, limits: Limits, held: Held) -> None:
        self._request, self._limits, self._all = request, limits, held
        self.size = 0
        self._ended = False

    def release(self) -> None:
        self._all.now -= self.size
        self.size = 0

    async def pictures(self) -> list[Sent]:
        """The pictures, in their order.

        Raises:
            RefusedError: if the body is too large, too slow, of another type, or holds no pictures.
        """
        kind = self._request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("multipart/form-data", "application/json", "application/octet-stream") and not (
            kind.startswith("image/")
        ):
            raise RefusedError(415, f"the content type is {cut(kind)}: {TAKES}")
        if self._request.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
            raise RefusedError(415, "a content encoding is not taken: send the body as it is")
        told = self._request.headers.get("content-length", "")
        if told.isdecimal() and len(told) < 20 and int(told) > self._limits.body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._limits.body_s):
                if kind == "multipart/form-data":
                    found = await self._multipart()
                else:
                    content = bytearray()
                    async for chunk in self._chunks():
                        content += chunk
                    if kind == "application/json":
                        found = await asyncio.to_thread(_in_json, bytes(content), self._limits.images)
                    else:
                        found = [_sent(picture_name(0), bytes(content))]
        except TimeoutError:
            raise RefusedError(408, f"the body did not arrive within {self._limits.body_s:g} s") from None
        except ClientDisconnect:
            raise RefusedError(400, "the client closed the connection before the end of the body") from None
        if not found:
            raise RefusedError(400, f"there is no picture in it: {TAKES}")
        return found

    async def drain(self) -> None:
        """Read on, and keep nothing, so that the client of a refused body comes to read the answer."""
        waits = self._request.headers.get("expect", "").lower() == "100-continue" and not self.size
        if self._ended or waits:
            return
        seen = 0
        with suppress(Exception):
            async with asyncio.timeout(_DRAIN_S):
                while seen < _DRAIN_BODIES * self._limits.body_bytes:
                    message = await self._request.receive()
                    seen += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    async def _chunks(self) -> AsyncIterator[bytes]:
        while not self._ended:
            message = await self._request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk = message.get("body", b"")
            self._ended = not message.get("more_body", False)
            if self.size + len(chunk) > self._limits.body_bytes:
                raise self._too_large()
            if self._all.now + len(chunk) > self._all.most:
                raise RefusedError(503, "too many large requests at once: send this one again later", 1)
            self.size += len(chunk)
            self._all.now += len(chunk)
            yield chunk

    def _too_large(self) -> RefusedError:
        most = f"{self._limits.megabytes:g} MB"
        return RefusedError(413, f"the body is larger than {most}: send fewer or smaller pictures")

    async def _multipart(self) -> list[Sent]:
        stream: AsyncGenerator[bytes, None] = self._chunks()  # type: ignore[assignment]
        parser = _Parser(self._request.headers, stream, max_files=self._limits.images, max_fields=8)
        parser.spool_max_size = self._limits.body_bytes + 1  # a picture is never written to a disk
        try:
            form = await parser.parse()
        except MultiPartException as error:
            if "Too many files" in error.message:
                raise _too_many(self._limits.images) from None
            raise RefusedError(400, f"this is no multipart body: {error.message}") from None
        except UnicodeError:  # the charset of the content type is one in which it is no text
            raise RefusedError(400, "this is no multipart body: no name fits its charset: send UTF-8") from None
        if not parser.ended:
            form_problem = "the multipart body ends before its last boundary"
            raise RefusedError(400, form_problem)
        found: list[Sent] = []
        for key, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise RefusedError(400, f"the field {cut(key)} is no file: send files named images")
            if key not in ("images", "image", "file", "files"):
                raise RefusedError(400, f"the file field is {cut(key)}: name it images")
            content = await value.read()
            await value.close()
            found.append(_sent(picture_name(len(found), value.filename), content))
        return found


class _Parser(MultiPartParser):
    """Starlette's parser, which also knows whether the last boundary came: it drops a part that was cut off."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


def _too_many(most: int) -> RefusedError:
    return RefusedError(413, f"there are more than {most} pictures in it: send them in several requests")


def _sent(name: str, content: bytes) -> Sent:
    return Sent(name, content) if content else Sent(name, None, f"{name} is empty")


def _in_json(body: bytes, most: int) -> list[Sent]:
    try:
        given: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(400, f"the body is no JSON: send {_JSON_FORM}") from None
    images = given.get("images") if isinstance(given, dict) else None
    if isinstance(images, str):
        images = [images]
    if not isinstance(images, list) or set(given) != {"images"}:
        raise RefusedError(400, f"the JSON is another than {_JSON_FORM}")
    if len(images) > most:
        raise _too_many(most)
    return [_of_json(value, picture_name(index)) for index, value in enumerate(images)]


def _of_json(value: Any, name: str) -> Sent:
    if not isinstance(value, str):
        return Sent(name, None, f"{name} is {cut(value)}: it must be the base64 of an image file")
    try:
        return Sent(name, from_base64(value, name))
    except UsageError as error:
        return Sent(name, None, str(error))
