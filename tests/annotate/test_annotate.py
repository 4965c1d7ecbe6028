"""The page and its server: ranking by keys, writing, undoing, widths; kills; who may ask."""

import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import pytest

pytest.importorskip("uvicorn")
from pyengine.annotate.__main__ import main
from pyengine.annotate.app import PAGE, Annotation, make_app
from pyengine.annotate.store import Store
from pyengine.data import Guideline, Prompt, read_rankings
from pyengine.errors import UserError
from pyengine.files import Journal
from pyengine.serve.pages import whole
from pyengine.synthesize import Ask, Endpoint, Local, Made, Reply, Sampling, Talk
from pyengine.synthesize.talk import once
from tests import browser
from tests.browser import needs_browser
from tests.serve.live import running, served_model, serving

GUIDE = Guideline("# Rules\n\nVersion 7\n\nBe **brief**.")
PROMPTS = [Prompt(f"p:{n}", [{"role": "user", "content": f"Question <b>{n}</b>?"}]) for n in range(4)]


class Speaker:
    """Says one of a few things, by the seed; the second question it answers always alike."""

    about = {"name": "fake"}
    tokens = 0

    def __init__(self):
        self.broken = False

    def work(self, talks, done):
        if self.broken:
            raise UserError("http://host/v1: no answer")
        for n, talk in enumerate(talks):
            alike = "1" in talk.ask.messages[-1]["content"]
            texts = ["Same."] if alike else ["One *way*.", "Another way.", "A third way."]
            made = talk.hear(Reply([{"role": "assistant", "content": texts[n % len(texts)]}], cut=n % 4 == 3))
            done(talk, made)

    def stop(self):
        pass


@contextmanager
def annotating(tmp_path, routes=(), speaker=None, prompts=PROMPTS, **options):
    """(URL of the page's server, its store); the files for training are in tmp_path at the end."""
    with Journal(tmp_path / "journal.jsonl") as journal:
        store = Store(journal, prompts, speaker is not None)
        with running(make_app(Annotation(store, GUIDE, speaker), tmp_path, **options), routes) as url:
            yield url, store


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def drive(tmp_path, script, size="1200,800", **options):
    @contextmanager
    def serve(routes):
        with annotating(tmp_path, routes, **options) as (url, _):
            yield url

    return browser.drive(serve, PAGE, "", script, tmp_path, size)


@needs_browser
def test_ranking_by_keys(tmp_path):
    script = """
    await until(() => document.querySelector("#hello input"));
    document.querySelector("#hello input").value = "Ada"; press("Enter", document.querySelector("#hello input"));
    await until(() => item);
    seen.asked = document.querySelector(".user .text").textContent;
    seen.bold = document.querySelectorAll(".user b").length;
    seen.guide = $("guide").textContent; seen.open = !$("guide").hidden;
    const texts = () => [...document.querySelectorAll(".answer .text")].map(e => e.textContent);
    seen.texts = texts(); seen.italic = document.querySelectorAll(".answer em").length;
    const first = item.key;
    press("Enter"); seen.early = item.key === first && $("save").disabled;
    press("2"); seen.focus = [chosen, document.activeElement.classList.contains("answer")];
    press("1"); press("ArrowUp"); press("ArrowUp"); press("ArrowDown"); press("j"); press("1");
    seen.ranks = item.answers.map(answer => ranks[answer.index]);
    seen.checked = document.querySelectorAll("[aria-checked=true]").length;
    press("Enter"); await until(() => item?.key !== first);
    seen.left = $("left").textContent;
    const second = item.key; seen.passed = document.querySelector(".user .text").textContent;
    press("e"); const area = document.querySelector("textarea"); seen.began = area.value === texts()[0];
    area.value = "The *best* way."; area.dispatchEvent(new Event("input", {bubbles: true}));
    press("3", area); seen.untouched = Object.keys(ranks).length;  // keys are letters within a text
    press("Escape"); seen.back = document.activeElement.classList.contains("answer");
    document.querySelector(".answer .ranks button").click(); press("2"); press("2");
    seen.draft = session.get("pyengine.draft").key === second;
    press("e"); press("Enter", document.activeElement, {ctrlKey: true}); await until(() => item?.key !== second);
    seen.done = $("left").textContent; seen.thanks = item ? "" : document.querySelector(".empty").textContent;
    press("u"); await until(() => item?.key === second); seen.again = document.querySelector("textarea").value;
    seen.kept = Object.keys(ranks).length; press("s"); await until(() => item?.key !== second);
    """
    seen = drive(tmp_path, script, speaker=Speaker(), prompts=PROMPTS[:3])
    assert seen["asked"] == "Question <b>0</b>?" and seen["bold"] == 0
    assert "version 7" in seen["guide"] and "Be brief." in seen["guide"] and seen["open"]
    assert sorted(seen["texts"]) == ["A third way.", "Another way.", "One way."] and seen["italic"] == 1
    assert seen["early"] and seen["focus"] == [1, True]
    assert seen["ranks"] == [2, 1, 1] and seen["checked"] == 3
    assert (
        seen["left"] == "1 done, 1 left" and seen["passed"] == "Question <b>2</b>?"
    )  # all alike to the one between
    assert seen["began"] and seen["untouched"] == 0 and seen["back"] and seen["draft"]
    assert seen["done"] == "2 done, 0 left" and "All done" in seen["thanks"]
    assert seen["again"] == "The *best* way." and seen["kept"] == 3
    (ranking,), _ = read_rankings(tmp_path / "rankings.jsonl")
    ranks = dict(zip(ranking.answers, ranking.ranks, strict=True))
    assert [ranks[text] for text in ("One *way*.", "Another way.", "A third way.")] == list(ranking.ranks)
    assert [ranks[text.replace("One way", "One *way*")] for text in seen["texts"]] == [2, 1, 1]
    assert ranking.more["by"] == "Ada" and ranking.more["guideline"]["version"] == "7"
    made = rows(tmp_path / "journal.jsonl")
    assert [row["ideal"] for row in made if row.get("ideal")] == [["The *best* way."]]
    assert [("undo" in row, row.get("skip")) for row in made[-2:]] == [(True, None), (False, True)]


@needs_browser
@pytest.mark.parametrize("size", ["500,800", "1300,850"])
def test_writing_errors_and_widths(tmp_path, size):
    script = """
    store.put("pyengine.annotator", "Bob"); by = "Bob"; start();
    await until(() => item); await until(() => document.activeElement.tagName === "TEXTAREA");
    const overflow = () => document.documentElement.scrollWidth > innerWidth;
    seen.guide = !$("guide").hidden; guide(true); seen.overflow = overflow(); guide(false);
    const first = item.key, type = (i, text) => {
      const area = document.querySelectorAll("textarea")[i]; area.value = text;
      area.dispatchEvent(new Event("input", {bubbles: true}));
    };
    type(0, "Because."); seen.ready = !$("save").disabled;
    const button = text => [...document.querySelectorAll(".writing .foot button")].find(b => b.textContent === text);
    button("Add a turn").click(); seen.boxes = document.querySelectorAll("textarea").length;
    seen.half = $("save").disabled;
    type(1, "And then?"); type(2, "Nothing.");
    const open = window.fetch; window.fetch = async () => { throw new TypeError("no"); };
    $("save").click(); await until(() => !busy); seen.error = $("hint").textContent;
    seen.shown = getComputedStyle($("hint")).display; document.querySelector("textarea").focus(); await sleep(10);
    seen.error += $("hint").textContent;
    window.fetch = open;
    const draft = session.get("pyengine.draft"); seen.draft = draft.ideal;
    const buttons = [...document.querySelectorAll("header button, form button")];
    seen.buttons = buttons.every(b => b.getBoundingClientRect().right <= innerWidth); seen.over = overflow();
    $("save").click(); await until(() => item?.key !== first); seen.left = $("left").textContent;
    """
    seen = drive(tmp_path, script, size)
    assert (
        seen["guide"] == size.startswith("13")
        and not seen["overflow"]
        and not seen["over"]
        and seen["buttons"]
    )
    assert seen["ready"] and seen["boxes"] == 3 and seen["half"]
    assert "cannot be reached" in seen["error"] and seen["shown"] != "none"
    assert seen["draft"] == ["Because.", "And then?", "Nothing."] and seen["left"] == "1 done, 3 left"
    (row,) = rows(tmp_path / "conversations.jsonl")
    assert [m["content"] for m in row["messages"]] == [
        "Question <b>0</b>?",
        "Because.",
        "And then?",
        "Nothing.",
    ]


def test_the_page_needs_nothing_from_elsewhere():
    text = whole(PAGE)
    assert "shared.css" not in text and "shared.js" not in text
    for forbidden in ("innerHTML", "document.write", "eval(", "@import", 'src="http', 'href="http'):
        assert forbidden not in text


def test_only_this_machine_and_who_has_the_key_may_ask(tmp_path):
    options = {"api_key": "secret", "hosts": ("127.0.0.1",)}
    with annotating(tmp_path, **options) as (url, store):
        assert httpx.get(url).status_code == 200  # the page asks for the key
        assert httpx.get(f"{url}/about").status_code == 401
        key = {"Authorization": "Bearer secret"}
        assert httpx.get(f"{url}/about", headers=key).json()["task"] == "write"
        assert httpx.get(f"{url}/about", headers=key | {"Host": "evil.example"}).status_code == 403
        post = {"by": "eve", "key": next(iter(store.items)), "skip": True}
        stranger = key | {"Origin": "https://evil.example"}
        assert httpx.post(f"{url}/decide", headers=stranger, json=post).status_code == 403
        assert store.decisions == []


def test_mistakes_are_sentences_and_a_silent_model_may_be_asked_again(tmp_path):
    speaker = Speaker()
    with annotating(tmp_path, speaker=speaker) as (url, store):

        def post(path, status=400, **body):
            answer = httpx.post(url + path, json=body)
            assert answer.status_code == status, answer.text
            return answer.json() if status == 200 else answer.json()["error"]["message"]

        assert (
            post("/next") == "by: expected your name"
            and post("/undo", by="ada") == "there is nothing to undo"
        )
        speaker.broken = True
        assert post("/next", by="ada") == "http://host/v1: no answer"
        speaker.broken = False
        item = post("/next", 200, by="ada")["item"]
        assert len(item["answers"]) == 3 and len(store.answers) >= 1
        ask = {"by": "ada", "key": item["key"]}
        assert post("/decide", **ask, ranks=["1"]) == "ranks: expected whole numbers"
        assert post("/decide", **ask, ideal="text") == "ideal: expected texts"
        assert post("/decide", **ask, began=-1) == "began: expected an answer's number"
        assert post("/decide", **ask) == "nothing was decided"
        assert httpx.post(f"{url}/decide", content="[").status_code == 400
        told = post("/decide", 200, **ask, ranks=[1, 1, 2], seconds="soon")
        assert told["done"] == 1 and store.decisions[0]["seconds"] == 0
        before = post("/undo", 200, by="ada")["item"]
        assert before["key"] == item["key"] and before["before"]["ranks"] == [1, 1, 2]


def test_a_kill_loses_nothing(tmp_path):
    (tmp_path / "prompts.txt").write_text("Who?\nWhere?\nWhen?")
    out, url = tmp_path / "out", ""
    flags = ["--prompts", "prompts.txt", "--out", str(out), "--port", "0"]
    run = [sys.executable, "-m", "pyengine.annotate", *flags]

    def started():
        child = subprocess.Popen(run, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for line in child.stdout:
            if "decide at " in line:
                return child, line.split("decide at ")[1].split("/,")[0]
        raise AssertionError("it did not start")

    child, url = started()
    first = httpx.post(f"{url}/next", json={"by": "ada"}, timeout=60).json()["item"]
    httpx.post(f"{url}/decide", json={"by": "ada", "key": first["key"], "skip": True}, timeout=60)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child, url = started()
    told = httpx.post(f"{url}/next", json={"by": "ada"}, timeout=60).json()
    assert told["done"] == 1 and told["item"]["key"] != first["key"]
    ideal = {"by": "ada", "key": told["item"]["key"], "ideal": ["Here."]}
    httpx.post(f"{url}/decide", json=ideal, timeout=60)
    child.send_signal(signal.SIGINT)
    assert "1 conversations, 0 rankings, 1 skipped" in child.stdout.read() and child.wait(30) == 0
    assert rows(out / "conversations.jsonl")[0]["messages"][-1]["content"] == "Here."
    (out / "conversations.jsonl").unlink()
    assert main(["--export", "--out", str(out)]) == 0 and (out / "conversations.jsonl").exists()


def test_mistakes_in_the_command(tmp_path, capsys):
    (tmp_path / "topics.jsonl").write_text('{"topic": "glass"}')
    (tmp_path / "prompts.txt").write_text("Who?")
    for flags, told in [
        (["--export"], "nothing was decided there"), ([], "give --prompts"),
        (["--prompts", str(tmp_path / "topics.jsonl")], "expected prompts or messages"),
        ([str(tmp_path), "--prompts", str(tmp_path / "prompts.txt"), "--port", "0"], "expected a run"),
        (["--prompts", str(tmp_path / "prompts.txt"), "--guideline", "none.md"], "none.md: no such file"),
    ]:  # fmt: skip
        assert main([*flags, "--out", str(tmp_path / "out")]) == 1
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("there", [False, True])
def test_a_speaker_can_be_stopped(tmp_path, there):
    served = served_model(tmp_path, context=4096)
    served.format.stop = ()  # answers without end
    talk = Talk(0, once(Ask([{"role": "user", "content": "Who?"}], 1)))
    made: list[Made] = []

    def stopped(speaker):
        thread = threading.Thread(target=lambda: speaker.work([talk], lambda _, whole: made.append(whole)))
        thread.start()
        while not served.engine.unfinished:
            time.sleep(0.01)
        speaker.stop()
        thread.join(20)
        return not thread.is_alive()

    if there:
        with serving(served) as url:
            assert stopped(Endpoint(f"{url}/v1", "small", Sampling(max_tokens=4000), 2))
    else:
        assert stopped(Local(served, "small", Sampling(max_tokens=4000), 2))
    assert made == []
