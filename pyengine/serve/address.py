"""Where a server listens."""

import socket

from ..errors import UserError

# Seconds that an idle connection is kept: longer than clients keep theirs (httpx, and so the openai client: 5), since a
# request that is sent while the server hangs up is lost.
KEEP_ALIVE = 75
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, before the model is loaded: who cannot have it is told at once. It takes no
    connections yet."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise _taken(host, port, error) from None
    return listener


def open_at(host: str, listener: socket.socket, scheme: str = "http") -> str:
    """Let connections wait for the server, so that who is told the address is not refused; returns it as a browser
    takes it."""
    try:
        listener.listen()
    except OSError as error:  # another that was bound at the same time was sooner
        raise _taken(host, listener.getsockname()[1], error) from None
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{listener.getsockname()[1]}"


def _taken(host: str, port: int, error: OSError) -> UserError:
    why = (error.strerror or str(error)).lower()
    return UserError(f"cannot listen on {host}, port {port}: {why}; choose another --host or --port")
