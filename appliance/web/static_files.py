"""Style sheets and scripts: small on the wire, and kept by browsers until they change.

Text is compressed once, on first use, and kept in memory. Pages are not compressed, on purpose: next to what a stranger wrote
they hold the token of their forms, and the size of a compressed page tells how alike the two are. Hides that a part of a file
is sent as it lies on the disk.
"""

from __future__ import annotations

import gzip
import os
from functools import lru_cache
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles

if TYPE_CHECKING:
    from starlette.types import Scope

_TEXT = (".css", ".js", ".svg")


class CompressedFiles(StaticFiles):
    """As StaticFiles, with gzip for text where the browser takes it."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        plain = super().file_response(full_path, stat_result, scope, status_code)
        if not str(full_path).endswith(_TEXT):
            return plain
        plain.headers["vary"] = "accept-encoding"
        asked = Headers(scope=scope)
        if "gzip" not in asked.get("accept-encoding", "") or "range" in asked or "content-length" not in plain.headers:
            return plain
        tag = plain.headers["etag"].rstrip('"') + '-gzip"'
        headers = {
            "content-encoding": "gzip", "vary": "accept-encoding", "etag": tag, "last-modified": plain.headers["last-modified"]
        }  # fmt: skip
        small = Response(
            _compressed(str(full_path), stat_result.st_mtime_ns) if scope["method"] == "GET" else b"",
            status_code, headers, plain.media_type,
        )  # fmt: skip
        return NotModifiedResponse(small.headers) if self.is_not_modified(small.headers, asked) else small


@lru_cache(64)
def _compressed(path: str, _changed: int) -> bytes:
    with open(path, "rb") as file:
        return gzip.compress(file.read(), 9, mtime=0)
