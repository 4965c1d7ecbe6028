"""Who speaks when, and what they are shown."""

import pytest

from pyengine.data import Prompt
from pyengine.synthesize import Reply, Talk
from pyengine.synthesize.talk import NEXT, Script, converse

ASKED = Prompt("here", [{"role": "user", "content": "Who?"}])


def said(text, **more):
    return Reply([{"role": "assistant", "content": text}], **more)


def play(prompt, script, *replies):
    """(what was asked for, what was made) with these replies, as (role, text)."""
    talk, asked = Talk(0, converse(prompt, 0, script)), []
    for reply in replies:
        asked.append(talk.ask)
        made = talk.hear(reply)
    return asked, made


def shown(messages):
    return [(m["role"], m["content"]) for m in messages]


def test_the_user_is_shown_the_conversation_and_asked_to_go_on():
    script = Script(turns=2, guideline="Be brief.", system="You are Tavor's guide.", user="Play a child.")
    asked, made = play(ASKED, script, said("Ada."), said(" When? "), said("In 1815."))
    guide = "You are Tavor's guide."
    assert shown(asked[0].messages) == [("system", f"Be brief.\n\n{guide}"), ("user", "Who?")]
    assert shown(asked[1].messages) == [
        ("system", "Play a child."), ("user", NEXT.format("Person: Who?\n\nAssistant: Ada."))
    ]  # fmt: skip
    assert [ask.searches for ask in asked] == [True, False, True]
    assert shown(made.messages) == [
        ("system", guide), ("user", "Who?"), ("assistant", "Ada."), ("user", "When?"), ("assistant", "In 1815.")
    ]  # fmt: skip
    assert len({ask.seed for ask in asked}) == 3 and all(0 <= ask.seed < 2**31 for ask in asked)


@pytest.mark.parametrize("given", [False, True])
def test_a_passage_is_shown_to_the_writers_or_given_in_the_question(given):
    prompt = Prompt("here", passage="Ada founded Tavor.")
    asked, made = play(prompt, Script(given=given), said("Who founded Tavor?"), said("Ada did."))
    assert prompt.passage in asked[0].messages[0]["content"]
    first = f"{prompt.passage}\n\nWho founded Tavor?" if given else "Who founded Tavor?"
    assert shown(made.messages) == [("user", first), ("assistant", "Ada did.")]
    view = asked[1].messages
    assert prompt.passage in view[0]["content"] and len(view) == (1 if given else 2)


def test_a_passage_is_given_once():
    prompt, replies = Prompt("here", passage="Ada founded Tavor."), [said(str(n)) for n in range(4)]
    made = play(prompt, Script(turns=2, given=True), *replies)[1]
    assert [m["content"] for m in made.messages] == [f"{prompt.passage}\n\n0", "1", "2", "3"]


def test_a_topic_is_told_to_the_user_alone():
    asked, made = play(Prompt("here", topic="glass"), Script(), said("What is glass?"), said("Sand."))
    assert "glass" in asked[0].messages[0]["content"]
    assert shown(asked[1].messages) == [("user", "What is glass?")] and not made.error


def test_a_search_is_kept_and_not_shown_to_the_user():
    search = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "search"}}]}
    found = Reply([search, {"role": "tool", "content": "Ada."}, {"role": "assistant", "content": "Ada."}])
    asked, made = play(ASKED, Script(turns=2), found, said("When?"), said("In 1815."))
    assert shown(asked[1].messages) == [("user", NEXT.format("Person: Who?\n\nAssistant: Ada."))]
    assert [m["role"] for m in made.messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
        "assistant",
    ]


def test_what_is_cut_empty_or_failed_ends_a_conversation():
    script = Script(turns=3)
    assert play(ASKED, script, said("Ada", cut=True))[1].cut
    assert play(ASKED, script, Reply(error="refused"))[1].error == "refused"
    assert shown(play(ASKED, script, said(""))[1].messages)[-1] == ("assistant", "")
    assert shown(play(ASKED, script, said("Ada."), said(" "))[1].messages)[-1] == ("user", "")


def test_a_seed_depends_on_the_scripts_the_number_and_the_step():
    def first(number, seed):
        return next(converse(ASKED, number, Script(seed=seed))).seed

    assert first(3, 1) == first(3, 1)
    assert len({first(3, 1), first(4, 1), first(3, 2)}) == 3
