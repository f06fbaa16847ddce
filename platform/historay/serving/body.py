"""Reads the images out of a request's body (one raw image, multipart or a zip), never more of it than the limits allow."""

import asyncio
import io
import re
import zipfile
import zlib
from http import HTTPStatus
from typing import NoReturn

from starlette.requests import ClientDisconnect, Request

from historay.serving.limits import RequestConfig
from historay.serving.service import Refused

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"\r\n]{1,70})"|([^\s;,"]{1,70}))', re.IGNORECASE)  # RFC 2046: 70 at most
# RFC 7578 asks no file for a name; what has neither a name nor a type, or is text, is a field.
_FILE = re.compile(rb";\s*filename\*?\s*=|\r\nContent-Type:[ \t]*(?!text/|[ \t\r])", re.IGNORECASE)
_ZIP_TYPES = {"application/zip", "application/x-zip-compressed"}
_MAX_FIELDS = 16  # parts that are no file; they are ignored
_MAX_PART_HEAD_BYTES = 8192
_ENTRY_HEAD_BYTES = 512  # of a zip's directory, for each entry: its name and what else is said of it
_EOCD_BYTES, _ZIP64_LOCATOR_BYTES = 22, 20


class HeldBodies:
    """Counts the bytes of the bodies that one replica has in memory, so that all of them together are bounded."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0

    def take(self, num_bytes: int) -> None:
        """Counts bytes that have arrived; raises Refused where they are too many beside those of others."""
        if self._num_bytes + num_bytes > self._max_bytes:
            detail = f"bodies of {self._max_bytes} bytes are worked on already; try again in a moment"
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "busy", detail)
        self._num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Uncounts the bytes of a request that has ended."""
        self._num_bytes -= num_bytes


async def read_images(request: Request, config: RequestConfig) -> list[bytes]:
    """Returns the encoded images of a request, in its order; raises Refused if it breaks a limit or its form."""
    body = await _limited_body(request, config)
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if not body:
        _refuse("no-images", "the body is empty; send an image, multipart with files, or a zip")
    if kind.startswith("multipart/"):
        images = multipart_files(body, content_type, config.max_files)
    elif kind in _ZIP_TYPES:
        images = await asyncio.to_thread(zip_files, body, config)
    else:
        images = [body]
    if not images:
        _refuse("no-images", "no file in the body; send one or many, under any name")
    return images


async def _limited_body(request: Request, config: RequestConfig) -> bytes:
    """Reads the body and stops at the limits of size and time, whatever Content-Length says."""
    parts, size = [], 0
    seconds = min(config.body_timeout_s, config.request_timeout_s)
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > config.max_body_bytes:
                    detail = f"the body is larger than {config.max_body_bytes} bytes; send fewer images at once"
                    raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body-too-large", detail)
                parts.append(part)
    except TimeoutError:
        detail = f"the body was not received within {seconds:g} s; send fewer images at once"
        raise Refused(HTTPStatus.REQUEST_TIMEOUT, "body-too-slow", detail) from None
    except ClientDisconnect:
        raise Refused(HTTPStatus.BAD_REQUEST, "disconnected", "the body ended early") from None
    return b"".join(parts)


def multipart_files(body: bytes, content_type: str, max_files: int) -> list[bytes]:
    """Returns the files of a multipart body (RFC 7578), by their order; their names are not looked at.

    Cut where the boundary stands, all in memory: the body is there already, so that a parser of streams, which python-multipart
    is, costs time and temporary files for nothing.
    """
    match = _BOUNDARY.search(content_type)
    if match is None:
        _refuse("bad-multipart", "Content-Type has no boundary of 1 to 70 characters")
    delimiter = b"\r\n--" + (match[1] or match[2]).encode("latin-1")
    files: list[bytes] = []
    num_fields = 0
    body = b"\r\n" + body  # the first boundary may open the body
    at = body.find(delimiter)
    while at >= 0:
        start = at + len(delimiter)
        if body.startswith(b"--", start):
            return files
        end = body.find(delimiter, start)
        if end < 0:
            break
        head_end = body.find(b"\r\n\r\n", start, min(end, start + _MAX_PART_HEAD_BYTES))
        if head_end < 0:
            number = len(files) + num_fields
            _refuse("bad-multipart", f"the head of part {number} is missing or over {_MAX_PART_HEAD_BYTES} bytes")
        if _FILE.search(body, start, head_end):
            files.append(body[head_end + 4 : end])
        else:
            num_fields += 1
        if len(files) > max_files or num_fields > _MAX_FIELDS:
            _too_many(max_files)
        at = end
    return _refuse("bad-multipart", "the closing boundary is missing: the body is cut off, or the boundary wrong")


def zip_files(body: bytes, config: RequestConfig) -> list[bytes]:
    """Returns the files of a zip in the order of its directory; folders are passed over, names are not looked at.

    Sizes are counted while inflating, since a zip may say anything of itself: at most ``max_body_bytes`` in all. An image over
    ``max_image_bytes`` comes back cut one byte after that, to be refused as any other of that size.
    """
    _check_directory(body, config.max_files)
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if len(entries) > config.max_files:
                _too_many(config.max_files)
            files: list[bytes] = []
            left = config.max_body_bytes
            for entry in entries:
                if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                    _refuse("bad-zip", f"entry {len(files)} is neither stored nor deflated; make the zip with the usual method")
                with archive.open(entry) as file:
                    files.append(file.read(min(left, config.max_image_bytes) + 1))
                left -= len(files[-1])
                if left < 0:
                    detail = f"the zip's files are larger than {config.max_body_bytes} bytes; send fewer images at once"
                    raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body-too-large", detail)
            return files
    # RuntimeError: encrypted; NotImplementedError: split, or of a later version; the others: fields that lie.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError, OverflowError) as error:
        _refuse("bad-zip", f"the zip cannot be read ({type(error).__name__}); make it anew, without a password")


def _check_directory(body: bytes, max_files: int) -> None:
    """Refuses a zip whose directory alone would fill the memory: the library reads all of it before one can look."""
    end = body.rfind(b"PK\5\6", max(0, len(body) - _EOCD_BYTES - 0xFFFF))
    if end < 0 or len(body) - end < _EOCD_BYTES:
        _refuse("bad-zip", "the zip has no directory: it is cut off, or no zip")
    if body[max(0, end - _ZIP64_LOCATOR_BYTES) :].startswith(b"PK\6\7"):
        _refuse("bad-zip", "the zip is of the 64-bit kind; make it without zip64")
    if int.from_bytes(body[end + 12 : end + 16], "little") > _ENTRY_HEAD_BYTES * (max_files + _MAX_FIELDS):
        _too_many(max_files)


def _too_many(max_files: int) -> NoReturn:
    detail = f"more than {max_files} files in one request; send them in several"
    raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-many-files", detail)


def _refuse(reason: str, detail: str) -> NoReturn:
    raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, reason, detail)
