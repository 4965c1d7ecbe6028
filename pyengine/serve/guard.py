"""Who may ask: the key, the host name, no web page of somebody else. Counts responses, too."""

import hmac
from collections import Counter
from urllib.parse import urlsplit

from starlette.responses import JSONResponse

from .asked import ApiError

OPEN = ("/", "/health")  # paths that need no key
PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/responses/input_tokens",
    "/v1/models",
    "/tokenize",
    "/detokenize",
    "/metrics",
    *OPEN,
)


class Guard:
    """ASGI middleware. A browser sends an Origin with what a page asks for: it must be the server's own, or one of
    `origins`."""

    def __init__(
        self,
        app,
        api_key: str | None,
        hosts: tuple[str, ...] | None,
        origins: tuple[str, ...],
        responses: Counter[tuple[str, int]],
    ):
        self._app, self._key, self._hosts, self._responses = app, api_key, hosts, responses
        self._origins = origins

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"] if scope["path"] in PATHS else "other"

        async def counted(message) -> None:
            if message["type"] == "http.response.start":
                self._responses[path, message["status"]] += 1
            await send(message)

        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check(scope["path"], headers)
        except ApiError as error:
            more = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
            return await JSONResponse(error.body, error.status, more)(scope, receive, counted)
        await self._app(scope, receive, counted)

    def _check(self, path: str, headers: dict[bytes, str]) -> None:
        host = headers.get(b"host", "")
        if self._hosts is not None and (urlsplit(f"//{host}").hostname or "") not in self._hosts:
            raise ApiError(f"this server does not answer to the name {host[:100]!r}", 403, "permission_error")
        origin = headers.get(b"origin")
        allowed = origin is None or "*" in self._origins or origin in self._origins
        if not allowed and urlsplit(origin).netloc != host:
            raise ApiError("pages of other sites may not ask this server", 403, "permission_error")
        if self._key and path not in OPEN:
            shown = headers.get(b"authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(shown.encode(), self._key.encode()):
                raise ApiError("the API key is missing or wrong", 401, code="invalid_api_key")
