"""Which web pages may call from a browser (CORS): what their browsers are told, before a request and with its answer.

Source: https://fetch.spec.whatwg.org/#http-cors-protocol. Keys come in a header that the page itself sets, so nothing
is said of credentials. Starlette's own middleware is for the control plane, where the preflights of all paths arrive.
"""

from collections.abc import Sequence
from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

ANY: Final = "*"
_PREFLIGHT_S: Final = 600  # for which a browser need not ask again
_SEEN: Final = b"access-control-expose-headers: *\r\n"  # request ids, limits, retry-after


class Origins:
    """`allowed`: as browsers say them, scheme://host or scheme://host:port, or "*" for every page; empty: none."""

    __slots__ = ("_allowed", "_lines_of_all", "allowed")

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self.allowed = tuple(allowed)
        self._allowed = frozenset(origin.encode("latin-1") for origin in allowed)
        self._lines_of_all = b"access-control-allow-origin: *\r\n" + _SEEN if ANY in allowed else b""

    def lines(self, origin: bytes) -> bytes:
        """What an answer to a page of `origin` says of it, as header lines; empty where it may not be read there."""
        if self._lines_of_all:
            return self._lines_of_all
        if origin not in self._allowed:
            return b""
        return b"access-control-allow-origin: %b\r\n%bvary: Origin\r\n" % (origin, _SEEN)

    def around(self, control_plane: ASGIApp) -> ASGIApp:
        """The same for every other path, and the answer to every preflight."""
        if not self.allowed:
            return control_plane
        return CORSMiddleware(
            control_plane,
            allow_origins=self.allowed,
            allow_methods=("GET", "POST"),
            allow_headers=(ANY,),
            expose_headers=(ANY,),
            max_age=_PREFLIGHT_S,
        )
