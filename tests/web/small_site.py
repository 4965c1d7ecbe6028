"""A small web site on the loopback interface whose every answer a test decides."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, dict[str, str], bytes]
HTML = {"Content-Type": "text/html; charset=utf-8"}


def page(*links: str, text: str = "", head: str = "") -> Answer:
    """A page with links and some text of its own."""
    anchors = "".join(f'<a href="{link}">{link}</a> ' for link in links)
    return 200, HTML, f"<html><head>{head}</head><body><p>{text}</p>{anchors}</body></html>".encode()


class Site:
    """`answers` by path (with query): an answer, or a function of how often the path was asked for."""

    def __init__(self, answers: dict[str, Answer | Callable[[int], Answer]]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.agents: set[str] = set()
        self.base = ""

    def answer(self, path: str) -> Answer:
        self.asked.append(path)
        found = self.answers.get(path, (404, HTML, b"<h1>404</h1>"))
        return found(self.asked.count(path)) if callable(found) else found


@contextmanager
def serve(answers: dict[str, Answer | Callable[[int], Answer]]) -> Iterator[Site]:
    """Serve `answers` while the context is open."""
    site = Site(answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_GET(self) -> None:
            site.agents.add(self.headers.get("User-Agent", ""))
            status, headers, body = site.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, client_address) -> None:
            """A client that hangs up is no error."""

    server = Server(("127.0.0.1", 0), Handler)
    site.base = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
