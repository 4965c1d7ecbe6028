"""The server's command line, before there is a server."""

import socket

import pytest

from pyengine.errors import UserError
from pyengine.serve.__main__ import listen, main


def test_an_address_that_cannot_be_had_is_told_before_the_model_is_loaded(capsys):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        taken.listen()
        assert main(["nowhere", "--port", str(port)]) == 1
        assert f"cannot listen on 127.0.0.1, port {port}: address already in use" in capsys.readouterr().err
    for host, number, told in (
        ("127.0.0.1", 70_000, "expected 0 to 65535"),
        ("no.such.host.invalid", 1, "cannot listen on no.such"),
    ):
        with pytest.raises(UserError, match=told):
            listen(host, number)


def test_any_free_port_is_taken_for_0():
    with listen("127.0.0.1", 0) as listener:
        assert listener.family == socket.AF_INET and listener.getsockname()[1] > 0


def test_a_model_that_is_none_is_told(tmp_path, capsys):
    assert main([str(tmp_path), "--port", "0"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {tmp_path}: expected a run") and shown.count("\n") == 1
