"""The server's command line, before there is a server."""

import json
import socket
import ssl
import subprocess
import threading
import time

import httpx
import pytest

pytest.importorskip("uvicorn")
from pyengine import chat, quantize
from pyengine.errors import UserError
from pyengine.serve.__main__ import Command, check, main, options
from pyengine.serve.address import listen, open_at

from .live import served_model, serving


def test_an_address_that_cannot_be_had_is_told_before_the_model_is_loaded(capsys):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        taken.listen()
        assert main(["nowhere", "--port", str(port)]) == 1
        assert f"cannot listen on 127.0.0.1, port {port}: address already in use" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot listen on no.such"):
        listen("no.such.host.invalid", 1)


def test_any_free_port_is_taken_for_0():
    with listen("127.0.0.1", 0) as listener:
        assert listener.family == socket.AF_INET and listener.getsockname()[1] > 0


def test_who_is_told_the_address_may_connect():
    with listen("127.0.0.1", 0) as listener:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(listener.getsockname())
        assert open_at("127.0.0.1", listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
        socket.create_connection(listener.getsockname()).close()


def test_a_model_that_is_none_is_told(tmp_path, capsys):
    assert main([str(tmp_path), "--port", "0"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {tmp_path}: expected a run") and shown.count("\n") == 1


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A certificate for 127.0.0.1 and its key."""
    cert, key = (tmp_path_factory.mktemp("tls") / name for name in ("cert.pem", "key.pem"))
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
             "-addext", "subjectAltName=IP:127.0.0.1", "-out", cert, "-keyout", key],
            check=True, capture_output=True,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("openssl makes the certificate")
    return cert, key


def test_https_with_a_certificate_of_ones_own(tmp_path, pair):
    command = Command(tmp_path, tls_cert=pair[0], tls_key=pair[1])
    check(command)
    with serving(served_model(tmp_path), uvicorn=options(command)) as url:
        assert url.startswith("https://")
        trusted = ssl.create_default_context(cafile=pair[0])
        assert httpx.get(f"{url}/health", verify=trusted).json()["status"] == "ok"
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--tls-cert", "{0}"], "tls_cert and tls_key: expected both or neither"),
        (["--tls-cert", "{0}", "--tls-key", "none.pem"], "tls_key = none.pem: there is no such file"),
        (["--tls-cert", "{1}", "--tls-key", "{0}"], "expected a certificate and its key"),
        (["--api-key", "cl\u00e9"], "api_key: expected ASCII"),
        (["--cors", "example.org"], "cors = 'example.org': expected a site as https://name"),
        (["--cors", "https://a.example", "http://b.example/path"], "cors = 'http://b.example/path'"),
        (["--port", "70000"], "port = 70000: expected at least 0 and at most 65535"),
        (["--max-batch", "0"], "max_batch = 0: expected at least 1"),
        (["--pages", "-1"], "pages = -1: expected at least 0"),
        (["--max-seconds", "nan"], "max_seconds = nan: expected a finite number, above 0"),
        (["--grace", "-1"], "grace = -1.0: expected at least 0"),
    ],
)
def test_flags_that_cannot_be_served_with_are_told_first(pair, capsys, flags, told):
    assert main(["nowhere", *(flag.format(*pair) for flag in flags)]) == 1
    shown = capsys.readouterr().err
    assert told in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    "main, flags, told",
    [
        (chat.main, ["--temperature", "-1"], "temperature = -1.0: expected at least 0"),
        (chat.main, ["--top-p", "0"], "top_p = 0.0: expected above 0 and at most 1"),
        (chat.main, ["--max-tokens", "0"], "max_tokens = 0: expected at least 1"),
        (chat.main, ["--seed", "-3"], "seed = -3: expected at least 0"),
        (quantize.main, ["--tokens", "0"], "tokens = 0: expected at least 1"),
    ],
)
def test_flags_of_chat_and_quantize_have_ranges_too(capsys, main, flags, told):
    assert main(["nowhere", *flags]) == 1
    assert told in capsys.readouterr().err


def test_pages_of_other_sites_ask_only_where_they_may(tmp_path):
    site = "https://app.example:8443"
    asks = {
        "Origin": site,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    for origins, allowed in ((), False), ((site,), True), (("*",), True):
        with serving(served_model(tmp_path), api_key="secret", origins=origins) as url:
            before = httpx.options(f"{url}/v1/models", headers=asks)
            assert (before.status_code == 200) == allowed
            answer = httpx.get(f"{url}/v1/models", headers={"Origin": site, "Authorization": "Bearer secret"})
            assert (answer.status_code == 200) == allowed
            assert ("access-control-allow-origin" in answer.headers) == allowed
            assert httpx.get(f"{url}/v1/models", headers={"Origin": site}).status_code == (
                401 if allowed else 403
            )
            if origins == (site,):
                other = {"Origin": "https://evil.example", "Authorization": "Bearer secret"}
                assert httpx.get(f"{url}/v1/models", headers=other).status_code == 403


@pytest.mark.parametrize("grace, whole", [(20, True), (0.2, False)])
def test_answers_that_run_may_finish_when_the_server_stops(tmp_path, monkeypatch, grace, whole):
    served = served_model(tmp_path)
    step = served.engine.step

    def slow_step():
        time.sleep(0.02)
        return step()

    monkeypatch.setattr(served.engine, "step", slow_step)
    body = {"prompt": "Who", "max_tokens": 60, "ignore_eos": True, "stream": True}
    with serving(served, uvicorn=options(Command(tmp_path, grace=grace))) as url:
        lines = []

        def read():
            try:
                with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as answer:
                    lines.extend(answer.iter_lines())
            except httpx.RemoteProtocolError:
                lines.append("cut")

        reader = threading.Thread(target=read)
        reader.start()
        while not served.engine.stats.sampled:
            time.sleep(0.01)
    reader.join(30)
    told = [line for line in lines if line]
    assert (told[-1] == "data: [DONE]") == whole and (told[-1] == "cut") != whole
    assert not whole or json.loads(told[-2][6:])["choices"][0]["finish_reason"] == "length"
