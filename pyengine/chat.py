"""Chat with a model in the terminal.

    python -m pyengine.chat runs/default        the latest finished checkpoint of a run, with its search
    python -m pyengine.chat path/to/model       a Hugging Face directory, or a .gguf file
    echo "Who founded Tavor?" | python -m pyengine.chat runs/default

Answers stream as they are written; searches and what they found are shown. Ctrl-C stops an answer. With
`--inside`, tokens are coloured by how unsure the model was, and the least sure come with their runners-up.
"""

import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from .command import run
from .engine import Completion, SamplingParams
from .engine.sampling import RANGES
from .errors import UserError
from .ranges import check_ranges
from .serve import Conversation, Event, KvDtype, Served, TextFormat, open_model

HELP = """/retry answers again, /edit TEXT asks something else instead, /reset forgets the conversation
/system TEXT sets the system prompt, /set NAME VALUE a parameter (temperature, top_p ...), /seed N fixes the dice
/inside colours tokens by probability, /quit ends"""
SETTABLE: dict[str, type] = {
    "max_tokens": int, "temperature": float, "top_k": int, "top_p": float, "min_p": float,
    "repetition_penalty": float, "seed": int,
}  # fmt: skip
RUNNERS_UP = 4
UNSURE = 3  # tokens listed after an answer
LABELS = {"text": "", "query": "searches: ", "result": "reads: "}
STYLES = {"text": "", "query": "cyan", "result": "dim", "note": "dim"}
# What a terminal would obey instead of show; a model can write anything.
CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


@dataclass(frozen=True)
class Command:
    """Chat with a model in the terminal."""

    model: tyro.conf.Positional[Path]
    """a run's folder, a Hugging Face directory, or a .gguf file"""
    temperature: Annotated[float, RANGES["temperature"]] = 0.7
    """0 always takes the most likely token"""
    top_k: Annotated[int, RANGES["top_k"]] = 0
    """keep only the k most likely tokens; 0 keeps all"""
    top_p: Annotated[float, RANGES["top_p"]] = 0.95
    """keep only the likeliest tokens that make up this share; 1 keeps all"""
    min_p: Annotated[float, RANGES["min_p"]] = 0.0
    """drop tokens whose probability is below this share of the likeliest one's; 0 keeps all"""
    repetition_penalty: Annotated[float, RANGES["repetition_penalty"]] = 1.0
    """above 1 makes repetition less likely; 1 changes nothing"""
    max_tokens: Annotated[int, RANGES["max_tokens"]] = 512
    """longest answer, in tokens"""
    seed: Annotated[int | None, RANGES["seed"]] = None
    """the same seed gives the same answers"""
    system: str = ""
    """system prompt"""
    search: Annotated[bool, tyro.conf.FlagConversionOff] = True
    """let the model search its run's index"""
    kv_dtype: KvDtype = "auto"
    """keep keys and values in the model's own type, or as int8 in half of bfloat16's memory"""
    device: str = "cpu"
    """where it computes: cpu, cuda or cuda:N"""
    inside: bool = False
    """colour tokens by probability, and show the runners-up of the least sure"""
    debug: bool = False
    """show the traceback of a mistake"""


class Terminal:
    """The loop of reading lines and showing answers; plain text when not a terminal."""

    def __init__(self, served: Served, talk: Conversation, console: Console, inside: bool = False):
        self.served, self.talk, self.console, self.inside = served, talk, console, inside
        self.interactive = sys.stdin.isatty() and console.is_terminal

    def run(self) -> None:
        if self.interactive:
            base = isinstance(self.served.format, TextFormat)
            kind = "base model: it continues your text" if base else "chat model"
            search = "with search" if self.served.engine.tools else "without search"
            self._note(f"{self.served.folder}, {kind}, {search}\n{HELP}")
        while (line := self._read()) is not None:
            if line.startswith("/"):
                if not self._command(*line.partition(" ")[::2]):
                    return
            elif line.strip():
                self._answer(line)

    def _read(self) -> str | None:
        try:
            return input("\n> ") if self.interactive else input()
        except (EOFError, KeyboardInterrupt):
            return None

    def _command(self, name: str, rest: str) -> bool:
        """Obey a line that begins with a slash; False ends the chat."""
        rest = rest.strip()
        if name == "/quit":
            return False
        last = self.talk.take_back() if name in ("/retry", "/edit") else None
        if last is not None:
            self._answer((rest or last) if name == "/edit" else last)
            return True
        if name == "/reset":
            self.talk.reset()
            self._note("forgotten")
        elif name == "/system":
            self.talk.system = rest
            self.talk.reset()
            self._note("system prompt set, conversation forgotten")
        elif name == "/inside":
            self.inside = not self.inside
            self._note(f"looking inside is {'on' if self.inside else 'off'}")
        elif name == "/set":
            self._set(*rest.partition(" ")[::2])
        elif name == "/seed" and rest:
            self._set("seed", rest)
        elif name == "/seed":
            self.talk.params = replace(self.talk.params, seed=None)
            self._note("no fixed seed")
        elif name in ("/retry", "/edit"):
            self._note("nothing was asked yet")
        else:
            self._note(HELP if name == "/help" else f"there is no {name}\n{HELP}")
        return True

    def _set(self, name: str, text: str) -> None:
        try:
            if name not in SETTABLE:
                raise UserError(f"expected one of {', '.join(SETTABLE)}, got {name!r}")
            value = SETTABLE[name](text)
            self.talk.params = replace(self.talk.params, **{name: value})
            self._note(f"{name} {value}")
        except UserError as error:
            self._note(f"error: {error}")
        except ValueError:
            self._note(f"error: {name} = {text!r}: expected a {'whole ' * (SETTABLE[name] is int)}number")

    def _answer(self, line: str) -> None:
        kind, start, first = None, time.perf_counter(), 0.0
        self.talk.params = replace(self.talk.params, logprobs=RUNNERS_UP if self.inside else None)
        try:
            for event in self.talk.ask(line):
                first = first or time.perf_counter()
                if event.kind != kind:
                    self._say(("" if kind is None else "\n") + LABELS[event.kind], event.kind)
                    kind = event.kind
                self._say(event.text, kind, self._shade(event))
        except KeyboardInterrupt:
            self._say(" [stopped]", "note")
        except UserError as error:
            self._say(f"error: {error}", "note")
        self._say("\n", "text")
        answer = self.talk.completion
        if answer and answer.error:
            self._note(answer.error)
        elif answer and first and (self.inside or self.interactive):
            sampled, seconds = answer.forced.count(False), time.perf_counter() - first
            speed = f", {(sampled - 1) / seconds:.0f} tokens/s" if sampled > 1 else ""
            self._note(f"[{sampled} tokens{speed}, first after {first - start:.2f} s]")
            if self.inside:
                self._least_sure(answer)

    def _shade(self, event: Event) -> str:
        """The background of a token: the less likely, the redder."""
        if not self.inside or not event.token or not event.token.detail:
            return ""
        doubt = 1 - math.exp(event.token.detail.logprob)
        return "" if doubt < 0.05 else f"on rgb({int(60 + 130 * doubt)},{int(60 - 20 * doubt)},40)"

    def _least_sure(self, answer: Completion) -> None:
        def spelled(token: int) -> str:
            return repr(self.served.tokenizer.decode([token]))

        seen = [(d.logprob, i, d) for i, d in zip(answer.ids, answer.details, strict=True) if d]
        for logprob, token, detail in sorted(seen, key=lambda entry: entry[0])[:UNSURE]:
            others = ", ".join(f"{spelled(i)} {math.exp(p):.1%}" for i, p in detail.top if i != token)
            self._note(f"  {spelled(token)} {math.exp(logprob):.1%}; others: {others}")

    def _say(self, text: str, kind: str, shade: str = "") -> None:
        style = f"{STYLES[kind]} {shade}".strip()
        self.console.print(text.translate(CONTROLS), style=style, end="", markup=False, highlight=False)

    def _note(self, text: str) -> None:
        self._say(text + "\n", "note")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    command = tyro.cli(Command, args=arguments, prog="pyengine.chat")
    return run(lambda: chat(command), command.debug)


def chat(command: Command) -> None:
    """Talk until the person leaves."""
    check_ranges(command)
    params = SamplingParams(
        command.max_tokens,
        command.temperature,
        command.top_k,
        command.top_p,
        command.seed,
        min_p=command.min_p,
        repetition_penalty=command.repetition_penalty,
        scored=False,
    )
    served = open_model(
        command.model, with_search=command.search, kv_dtype=command.kv_dtype, device=command.device
    )
    talk = Conversation(served.engine, served.tokenizer, served.format, params, command.system)
    Terminal(served, talk, Console(soft_wrap=True), command.inside).run()


if __name__ == "__main__":
    sys.exit(main())
