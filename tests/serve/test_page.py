"""The page at /, driven in a headless browser: chat, stop, edit, retry, look inside, keys, narrow screens."""

import json
import re

import pytest

pytest.importorskip("uvicorn")
from pyengine.serve import api
from pyengine.serve.pages import whole
from tests import browser
from tests.browser import needs_browser

from .live import served_model, serving

TOOLS = """
const answered = async () => { await until(() => running); await until(() => !running); };
async function say(text) { $("input").value = text; $("send").click(); await answered(); }
const plain = window.fetch, more = {};  // the small model must be pushed
window.fetch = (path, options) => {
  if (options?.body) options.body = JSON.stringify({...JSON.parse(options.body), ...more});
  return plain(path, options);
};
"""


def drive(served, script: str, tmp_path, size="1000,700") -> dict:
    """Run a script on the page of a live server; what it left in `seen`."""
    wait = "await until(() => model);"
    return browser.drive(
        lambda routes: serving(served, routes=routes), api.PAGE, TOOLS, wait + script, tmp_path, size
    )


@needs_browser
def test_a_conversation(tmp_path):
    served = served_model(tmp_path, context=1024)
    script = """
    settings.seed = 4; settings.max_tokens = 24; settings.system = "Be <b>brief</b>.";
    await say("Who <img src=x onerror=alert(1)>?");
    seen.asked = document.querySelector(".user .text").textContent;
    seen.images = document.querySelectorAll(".turn img, .turn b").length;
    seen.first = textOf(turns[1]); seen.note = turns[1].note;
    seen.shown = document.querySelector(".assistant > .text").textContent;
    await say("And then?"); seen.second = textOf(turns[3]); seen.sent = messages();
    [...document.querySelectorAll(".foot button")].filter(b => b.textContent === "Retry")[0].click();
    await answered(); seen.again = textOf(turns[1]); seen.turns = turns.length;
    document.querySelector(".user .foot button").click();
    document.activeElement.value = "Where?"; press("Enter"); await answered();
    seen.edited = turns[0].text; seen.other = textOf(turns[1]); seen.after = turns.length;
    $("fresh").click(); seen.fresh = turns.length;
    """
    seen = drive(served, script, tmp_path)
    assert seen["asked"] == "Who <img src=x onerror=alert(1)>?" and seen["images"] == 0
    assert seen["first"] and seen["shown"] == seen["first"] == seen["again"]
    assert "tokens" in seen["note"] and "first after" in seen["note"]
    assert [m["role"] for m in seen["sent"]] == ["system", "user", "assistant", "user", "assistant"]
    assert seen["turns"] == 2 and seen["edited"] == "Where?" and seen["after"] == 2 and seen["fresh"] == 0


@needs_browser
def test_looking_inside_a_search(tmp_path):
    served = served_model(tmp_path, search=True, context=1024)
    special = served.tokenizer.special_ids
    bias = {special["<|search|>"]: 60, special["<|end|>"]: 3}
    script = f"""
    Object.assign(more, {{logit_bias: {json.dumps(bias)}, presence_penalty: 80}});
    settings.seed = 2; settings.max_tokens = 60;
    $("inside").click(); await say("Who founded Tavor?");
    seen.calls = document.querySelectorAll(".call").length;
    seen.result = document.querySelector("details.call .text").textContent;
    const tokens = [...document.querySelectorAll(".token")].filter(t => !t.token.forced);
    tokens[1].focus(); seen.chosen = tokens[1].classList.contains("chosen");
    seen.bars = document.querySelectorAll("#inspector .bar").length; seen.says = $("inspector").textContent;
    press("ArrowRight"); seen.moved = document.activeElement === tokens[2];
    $("inside").click(); seen.plain = document.querySelectorAll(".token").length;
    """
    seen = drive(served, script, tmp_path)
    assert seen["calls"] == 2 and "Ada founded Tavor." in seen["result"]
    assert seen["chosen"] and seen["bars"] in (6, 7) and "The model gave it" in seen["says"]
    assert seen["moved"] and seen["plain"] == 0


@needs_browser
@pytest.mark.parametrize("size", ["500,700", "1400,900"])
def test_stop_errors_settings_and_widths(tmp_path, size):
    served = served_model(tmp_path, context=4096)
    endless = {i: -100 for i in served.format.stop}
    script = f"""
    more.logit_bias = {json.dumps(endless)};
    settings.max_tokens = 100000;
    $("input").value = "Who?"; press("Enter", $("input")); await until(() => running && turns[1] && textOf(turns[1]));
    seen.caret = await until(() => document.querySelector(".busy .caret")) !== null;
    seen.button = $("send").textContent; press("Escape", document.body); await until(() => !running);
    seen.note = turns[1].note; seen.kept = textOf(turns[1]).length > 0; seen.again = $("send").textContent;
    settings.temperature = -1; await say("Who?"); seen.error = document.querySelector(".error").textContent;
    $("open").click(); seen.open = !$("settings").hidden; seen.focus = document.activeElement.dataset.set;
    const field = document.querySelector("[data-set=top_k]"); field.value = "7";
    field.dispatchEvent(new Event("input", {{bubbles: true}})); seen.top_k = settings.top_k;
    press("Escape", document.body); seen.closed = $("settings").hidden;
    seen.overflow = document.documentElement.scrollWidth > innerWidth;
    const buttons = [...document.querySelectorAll("header button, form button")];
    seen.buttons = buttons.every(button => button.getBoundingClientRect().right <= innerWidth);
    """
    seen = drive(served, script, tmp_path, size)
    assert seen["caret"] and seen["button"] == "Stop" and seen["again"] == "Send"
    assert "stopped" in seen["note"] and seen["kept"]
    assert "temperature" in seen["error"] and seen["open"] and seen["focus"] == "system"
    assert str(seen["top_k"]) == "7" and seen["closed"] and not seen["overflow"] and seen["buttons"]


MARKDOWN = """## Sum
**Bold**, *slanted*, `a*b*c`, 2*3*4 and snake_case_name, [a page](https://x.org/?a=b), [no](javascript:1), 1 \\* 2.
A line of its own.
1. one

   ```python
   x = "<img src=x onerror=alert(1)>"

   ```
2. two
   - nested
     - deeper

> said

| a | b |
|---|---|
| `1` | 2 |

---
```
never closed"""
ELEMENTS = (
    "<h4>Sum</h4>"
    "<p><strong>Bold</strong>, <em>slanted</em>, <code>a*b*c</code>, 2*3*4 and snake_case_name, "
    '<a href="https://x.org/?a=b" target="_blank" rel="noopener noreferrer">a page</a>, [no](javascript:1), '
    "1 * 2.\nA line of its own.</p>"
    '<ol start="1"><li><p>one</p><div class="code"><div>python<button>Copy</button></div><pre><code>'
    'x = "&lt;img src=x onerror=alert(1)&gt;"\n</code></pre></div></li>'
    "<li><p>two</p><ul><li><p>nested</p><ul><li><p>deeper</p></li></ul></li></ul></li></ol>"
    "<blockquote><p>said</p></blockquote>"
    '<div class="sheet"><table><tr><th>a</th><th>b</th></tr><tr><td><code>1</code></td><td>2</td></tr></table></div>'
    '<hr><div class="code"><div>code<button>Copy</button></div><pre><code>never closed</code></pre></div>'
)


@needs_browser
def test_markdown_becomes_elements_and_html_stays_text(tmp_path):
    script = f"""
    const shown = make("div", {{}}, ...markdown({json.dumps(MARKDOWN)})); seen.shown = shown.outerHTML;
    const long = "word **bold** `code` ".repeat(2000) + "*".repeat(3000) + "`".repeat(3000) + "[".repeat(3000);
    const start = performance.now(); markdown(long); seen.ms = performance.now() - start;
    """
    seen = drive(served_model(tmp_path), script, tmp_path)
    assert seen["shown"] == f"<div>{ELEMENTS}</div>"
    assert seen["ms"] < 2000


@needs_browser
def test_the_oldest_turns_leave_a_full_context_and_the_rest_outlives_a_reload(tmp_path):
    served = served_model(tmp_path, context=256)
    endless = {i: -100 for i in served.format.stop}
    script = f"""
    more.logit_bias = {json.dumps(endless)};
    settings.max_tokens = 40; settings.seed = 1;
    for (let i = 0; i < 4; i++) await say(`Question ${{i}}: who founded Tavor in 1815, and why did Ada do it?`);
    seen.errors.push(...turns.filter(turn => turn.error).map(turn => turn.error));
    seen.unread = unread; seen.sent = messages().filter(m => m.role === "user").map(m => m.content[9]);
    seen.border = document.querySelector(".border")?.nextElementSibling.textContent;
    seen.faded = document.querySelectorAll(".unread").length;
    const kept = session.get("pyengine.talk"); seen.kept = [kept.turns.length, kept.unread];
    settings.max_tokens = 1000; await say("And now?"); seen.note = turns.at(-1).note;
    $("fresh").click(); seen.fresh = [unread, session.get("pyengine.talk").turns.length];
    """
    seen = drive(served, script, tmp_path)
    assert seen["unread"] in (2, 4) and seen["faded"] == seen["unread"]
    assert seen["sent"] == list("0123")[seen["unread"] // 2 :]
    assert f"Question {seen['unread'] // 2}" in seen["border"]
    assert seen["kept"] == [8, seen["unread"]] and seen["fresh"] == [0, 0]
    assert "the context is full" in seen["note"]


@needs_browser
def test_a_key_is_asked_for_and_unanswered_questions_are_left_out(tmp_path):
    served = served_model(tmp_path, context=1024)
    endless = {i: -100 for i in served.format.stop}
    script = f"""
    more.logit_bias = {json.dumps(endless)}; settings.max_tokens = 8; settings.seed = 3;
    """
    script += """
    const open = window.fetch, refused = {error: {message: "the API key is missing or wrong"}};
    window.fetch = async (path, options) => options.headers.Authorization === "Bearer secret" ? open(path, options)
      : new Response(JSON.stringify(refused), {status: 401});
    await say("Who?"); seen.error = turns[1].error; seen.focus = document.activeElement.id;
    $("key").value = "secret"; $("key").dispatchEvent(new Event("change"));
    toggleSettings(false);
    await say("Where?"); seen.sent = messages().map(m => m.content).slice(0, 1);
    seen.answered = turns[3].error ?? "yes";
    seen.buttons = [1, 3].map(i => [...$("talk").children[i].querySelectorAll(".foot button")].map(b => b.textContent));
    window.fetch = async () => new Response("<html>bad gateway", {status: 502});
    await say("When?"); seen.gateway = turns[5].error;
    window.fetch = open;
    """
    seen = drive(served, script, tmp_path)
    assert "API key" in seen["error"] and seen["focus"] == "key"
    assert seen["sent"] == ["Where?"] and seen["answered"] == "yes"
    assert seen["buttons"] == [["Retry"], ["Copy", "Retry"]]
    assert "502" in seen["gateway"]


def test_the_page_needs_nothing_from_elsewhere():
    text = whole(api.PAGE)
    assert not re.search(
        r"(src|href)\s*=\s*[\"']?(https?:)?//|@import|innerHTML|document\.write|eval\(", text
    )
    assert len(text) < 40_000
