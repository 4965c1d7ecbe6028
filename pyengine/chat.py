"""Chat with a model in the terminal.

    python -m pyengine.chat runs/default        the latest finished checkpoint of a run, with its search
    python -m pyengine.chat path/to/model       a Hugging Face directory, or a .gguf file
    echo "Who founded Tavor?" | python -m pyengine.chat runs/default

Answers stream as they are written; searches and what they found are shown. Ctrl-C stops an answer.
"""

import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from .engine import SamplingParams
from .errors import UserError
from .serve import Conversation, Served, TextFormat, open_model

HELP = (
    "/reset forgets the conversation, /system TEXT sets the system prompt, /seed N fixes the dice, /quit ends"
)
LABELS = {"text": "", "query": "searches: ", "result": "reads: "}
STYLES = {"text": "", "query": "cyan", "result": "dim", "note": "dim"}
# What a terminal would obey instead of show; a model can write anything.
CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


@dataclass(frozen=True)
class Command:
    """Chat with a model in the terminal."""

    model: tyro.conf.Positional[Path]
    """a run's folder, a Hugging Face directory, or a .gguf file"""
    temperature: float = 0.7
    """0 always takes the most likely token"""
    top_k: int = 0
    """keep only the k most likely tokens; 0 keeps all"""
    top_p: float = 0.95
    """keep only the likeliest tokens that make up this share; 1 keeps all"""
    max_tokens: int = 512
    """length of an answer at most"""
    seed: int | None = None
    """the same seed gives the same answers"""
    system: str = ""
    """system prompt"""
    search: Annotated[bool, tyro.conf.FlagConversionOff] = True
    """let the model search its run's index"""
    debug: bool = False
    """show the traceback of a mistake"""


class Terminal:
    """The loop of reading lines and showing answers; plain text when not a terminal."""

    def __init__(self, served: Served, talk: Conversation, console: Console):
        self.served, self.talk, self.console = served, talk, console
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
        if name == "/reset":
            self.talk.reset()
            self._note("forgotten")
        elif name == "/system":
            self.talk.system = rest
            self.talk.reset()
            self._note("system prompt set, conversation forgotten")
        elif name == "/seed" and (rest.isdigit() or not rest):
            self.talk.params = replace(self.talk.params, seed=int(rest) if rest else None)
            self._note(f"seed {rest}" if rest else "no fixed seed")
        else:
            self._note(HELP)
        return True

    def _answer(self, line: str) -> None:
        kind = None
        try:
            for event in self.talk.ask(line):
                if event.kind != kind:
                    self._say(("" if kind is None else "\n") + LABELS[event.kind], event.kind)
                    kind = event.kind
                self._say(event.text, kind)
        except KeyboardInterrupt:
            self._say(" [stopped]", "note")
        except UserError as error:
            self._say(f"error: {error}", "note")
        self._say("\n", "text")
        answer = self.talk.completion
        if answer and answer.error:
            self._note(answer.error)

    def _say(self, text: str, kind: str) -> None:
        self.console.print(
            text.translate(CONTROLS), style=STYLES[kind], end="", markup=False, highlight=False
        )

    def _note(self, text: str) -> None:
        self._say(text + "\n", "note")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 1 after a mistake."""
    command = tyro.cli(Command, args=arguments, prog="pyengine.chat")
    console = Console(soft_wrap=True)
    try:
        params = SamplingParams(
            command.max_tokens, command.temperature, command.top_k, command.top_p, command.seed
        )
        served = open_model(command.model, with_search=command.search)
        talk = Conversation(served.engine, served.tokenizer, served.format, params, command.system)
        Terminal(served, talk, console).run()
    except UserError as error:
        if command.debug:
            traceback.print_exc()
        Console(stderr=True, soft_wrap=True).print(
            f"error: {error}", style="red", markup=False, highlight=False
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
