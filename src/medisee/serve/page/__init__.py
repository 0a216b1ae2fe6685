"""The page that `medisee serve` opens, and the screening page.

`mount(app)` puts one of them on a FastAPI or Starlette app: `/` and everything below `/page`.
Each page is what stands in `parts/` under its name, between a head and a foot that both share.
All is plain HTML, CSS and JavaScript modules; nothing is fetched from elsewhere, and the content
security policy forbids it. The page itself holds nothing to protect: an app that asks for
a token may serve it without one.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisee.errors import InputError
from medisee.extras import needs_extra

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["FILES", "HEADERS", "document", "mount"]

FILES = Path(__file__).parent / "files"
_PARTS = Path(__file__).parent / "parts"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""Sent with every file: nothing from elsewhere, no inline script or style, no frame around it."""

_THUMBNAIL = 192


def document(name: str) -> str:
    """The HTML of a page: "index" or "screening"."""
    parts = (_PARTS / f"{part}.html" for part in ("head", name, "foot"))
    return "".join(part.read_text(encoding="utf-8") for part in parts)


def mount(app: Starlette, name: str = "index") -> None:
    """Serves the page `name` at `/`, its files below `/page`, small examples below it too.

    Raises MissingExtraError where Starlette, which FastAPI brings, is not installed.
    """
    with needs_extra("the page", "serve"):
        from starlette.responses import HTMLResponse, Response
        from starlette.staticfiles import StaticFiles

    class Files(StaticFiles):
        def file_response(self, *args: Any, **kwargs: Any) -> Response:
            response = super().file_response(*args, **kwargs)
            response.headers.update(HEADERS)
            return response

    html = document(name)

    def front(request: Request) -> Response:
        return HTMLResponse(html, headers=HEADERS)

    def example(request: Request) -> Response:
        try:
            content = _thumbnail(request.path_params["name"])
        except InputError:
            return Response(status_code=404, headers=HEADERS)
        return Response(content, media_type="image/png", headers=HEADERS)

    app.add_route("/", front, include_in_schema=False)
    app.add_route("/page/examples/{name}.png", example, include_in_schema=False)
    app.mount("/page", Files(directory=FILES), name="page")


@lru_cache(maxsize=16)
def _thumbnail(name: str) -> bytes:
    """A small PNG of a built-in example; InputError where there is none of this name."""
    from PIL import Image, ImageOps

    from medisee.examples import open_example

    picture = Image.fromarray(open_example(name).display)
    buffer = io.BytesIO()
    ImageOps.fit(picture, (_THUMBNAIL, _THUMBNAIL)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
