"""A server on a real socket, in a thread, for the tests of what only a real client shows."""

import asyncio
import threading
import time
from contextlib import contextmanager

from uvicorn import Config, Server

from pyengine.engine import Engine, Tools
from pyengine.files import write_json
from pyengine.model import ModelConfig, Transformer
from pyengine.serve import OwnFormat, Served, TemplateFormat
from pyengine.serve.address import KEEP_ALIVE
from pyengine.serve.api import Limits, make_app
from pyengine.text import SearchTool, Tokenizer

TEXT = [
    'Who founded Tavor? Ada Lovelace founded Tavor in 1815. I do not know. {"name": [1, 2]} \u00e9t\u00e9'
] * 3

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Index:
    def search(self, query, k):
        return [{"text": "Ada founded Tavor.<|end|>", "title": "Tavor"}]


def small_model(tokenizer: Tokenizer, context: int = 256) -> Transformer:
    config = ModelConfig.from_depth(1, tokenizer.vocab_size, hidden_size=32, max_position_embeddings=context)
    model = Transformer(config, seed=3)
    model.embedding.data.mul_(4)  # with tastes of its own
    return model


def served_model(folder, search: bool = False, context: int = 256, **options) -> Served:
    tokenizer = Tokenizer.train(TEXT, 330)
    tools = Tools.for_search(SearchTool(Index(), tokenizer), tokenizer, max_calls=1) if search else None
    engine = Engine(small_model(tokenizer, context), tokenizer, tools, **{"max_batch": 8, **options})
    return Served(engine, tokenizer, OwnFormat(tokenizer, searches=search), folder)


def other_model(folder, tags_as_tokens: bool = False) -> Served:
    """A model of another family, whose template has no place for tools."""
    tags = ["<tool_call>", "</tool_call>"] * tags_as_tokens
    tokenizer = Tokenizer.train(
        TEXT, 330, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", *tags]
    )
    tokenizer.chat_template = TEMPLATE
    write_json(folder / "generation_config.json", {"eos_token_id": tokenizer.special_ids["<|im_end|>"]})
    engine = Engine(small_model(tokenizer, 1024), tokenizer, None, max_batch=8)
    return Served(engine, tokenizer, TemplateFormat(tokenizer, folder), folder)


@contextmanager
def running(app, routes=(), uvicorn=None):
    """The base URL of a server of an application, with more routes; stops it at the end. uvicorn: how it is run."""
    app.routes.extend(routes)
    how = uvicorn or {"log_level": "warning", "timeout_keep_alive": KEEP_ALIVE}
    server = Server(Config(app, port=0, lifespan="on", **how))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http{'s' * bool(how.get('ssl_certfile'))}://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


@contextmanager
def serving(served: Served, limits: Limits | None = None, routes=(), uvicorn=None, **options):
    """The base URL of a server over `served`; stops it at the end and checks that nothing is left. uvicorn: how it is
    run, where the answers that run at the end are the test's matter."""
    with running(make_app(served, "small", limits, **options), routes, uvicorn) as url:
        try:
            yield url
        finally:
            if uvicorn is None:
                idle(served.engine)
    idle(served.engine)


def idle(engine: Engine, seconds: float = 10) -> None:
    """Waits until nothing is being answered; AssertionError if a page is still held then."""
    end = time.monotonic() + seconds
    while engine.unfinished and time.monotonic() < end:
        time.sleep(0.01)
    assert engine.unfinished == 0
    engine._scheduler.pool.check()
    assert engine.pages_held == 0
