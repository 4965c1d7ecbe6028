"""A page driven in a headless browser.

A script appended to the page plays the user and writes what it saw into the document, which the browser dumps; an
image whose answer waits for the script keeps the page loading until then.
"""

import asyncio
import html
import json
import re
import shutil
import subprocess

import pytest
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route

from pyengine.serve.pages import whole

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
FRAME = """
const sleep = ms => new Promise(done => setTimeout(done, ms));
const seen = {errors: []};
addEventListener("error", event => seen.errors.push(event.message));
async function until(what) { for (let i = 0; i < 6000 && !what(); i++) await sleep(10); return what(); }
function press(key, on = document.activeElement, more = {}) {
  on.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true, ...more}));
}
%s
(async () => {
  try { %s } catch (error) { seen.errors.push(String(error)); }
  document.body.append(make("pre", {id: "seen", textContent: JSON.stringify(seen)}));
  fetch("/done");
})();
"""


def drive(serve, page, tools: str, script: str, tmp_path, size="1000,700") -> dict:
    """Run a script, with `tools` before it, on a page; what it left in `seen`. serve: of more routes, a context manager
    with the URL of a server."""
    finished = asyncio.Event()

    async def driven(request):
        return HTMLResponse(f"{whole(page)}<script>{FRAME % (tools, script)}</script><img hidden src=/hold>")

    async def hold(request):
        await asyncio.wait_for(finished.wait(), 200)
        return PlainTextResponse("")

    async def done(request):
        finished.set()
        return PlainTextResponse("")

    routes = [Route("/drive", driven), Route("/hold", hold), Route("/done", done)]
    with serve(routes) as url:
        made = subprocess.run(
            [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/browser",
             f"--window-size={size}", "--dump-dom", f"{url}/drive"],
            capture_output=True, text=True, timeout=220,
        )  # fmt: skip
    found = re.search(r'<pre id="seen">(.*?)</pre>', made.stdout, re.S)
    assert found, f"the script did not end: {made.stderr[-2000:]}"
    seen = json.loads(html.unescape(found[1]))
    assert seen["errors"] == []
    return seen
