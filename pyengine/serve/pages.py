"""The project's web pages: each one file for the browser, with what they share put in, and nothing from elsewhere.

A page names the shared parts in comments, `/* shared.css */` within its style and `// shared.js` within its script.
"""

from pathlib import Path

from starlette.responses import HTMLResponse

POLICY = (  # a page needs nothing from elsewhere, and nobody may frame it
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SHARED = {"/* shared.css */": "shared.css", "// shared.js": "shared.js"}


def whole(path: Path) -> str:
    """The text of a page with its shared parts."""
    text = path.read_text("utf-8")
    for place, name in SHARED.items():
        text = text.replace(place, Path(__file__).with_name(name).read_text("utf-8").strip(), 1)
    return text


def page_response(path: Path) -> HTMLResponse:
    """A page as an answer."""
    return HTMLResponse(whole(path), headers={"Content-Security-Policy": POLICY})
