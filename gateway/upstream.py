"""The only HTTP client of the gateway: opens requests to engines over TCP or Unix sockets, maps its errors to ours."""

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from types import TracebackType

import aiohttp

from gateway.config import Timeouts
from gateway.errors import BrokenError, ConnectError

_KEEP_ALIVE_S = 4.0  # vLLM closes idle connections after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE): retire ours before
_UNIX = "unix:"
_PIECE_BYTES = 2**18


class Answer:
    """An engine's answer with its body still arriving. `close` is synchronous and aborts a request that still runs."""

    def __init__(self, response: aiohttp.ClientResponse, where: str) -> None:
        self._response = response
        self._where = where
        self.status = response.status
        self.headers = response.raw_headers

    @property
    def is_event_stream(self) -> bool:
        """Whether the engine really streams: asked for a stream, some answer with one JSON document all the same."""
        return self._response.content_type == "text/event-stream"

    async def read_some(self) -> bytes:
        """The next bytes as they arrive; b"" at the end. Raises BrokenError."""
        with _mapped(self._where):
            return await self._response.content.readany()

    async def read_all(self) -> bytes:
        """The whole body. Raises BrokenError."""
        with _mapped(self._where):
            return await self._response.content.read()

    def close(self) -> None:
        """Hand the connection back when the body was read to its end; else cut it, so that the engine stops working."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


class Upstream:
    """Connections to all replicas: a pool for each, without a limit of its own."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def __aenter__(self) -> "Upstream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for url in list(self._sessions):
            await self.forget(url)

    async def post(self, url: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send a request and wait for the answer's head. Raises ConnectError or BrokenError."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._timeouts.connect_s, sock_read=self._timeouts.silence_s
        )
        data = body if len(body) <= _PIECE_BYTES else _pieces(body)
        headers = {**headers, "content-length": str(len(body))}
        with _mapped(url):
            response = await self._session(url).post(
                _target(url, path), data=data, headers=headers, timeout=timeout, allow_redirects=False
            )
            if 300 <= response.status < 400:
                response.close()
                raise BrokenError(f"{url} answered {response.status}, a redirect: not followed, keys must not travel")
        return Answer(response, url)

    async def get(self, url: str, path: str, api_key: str | None, timeout_s: float) -> tuple[int, bytes]:
        """A small control request: status and body. Raises ConnectError or BrokenError."""
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=timeout_s)
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        with _mapped(url):
            async with self._session(url).get(
                _target(url, path), headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                return response.status, await response.read()

    async def forget(self, url: str) -> None:
        """Close the pool of a replica that is gone."""
        session = self._sessions.pop(url, None)
        if session:
            await session.close()

    def _session(self, url: str) -> aiohttp.ClientSession:
        session = self._sessions.get(url)
        if session is None:
            session = self._sessions[url] = aiohttp.ClientSession(
                connector=_connector(url),
                cookie_jar=aiohttp.DummyCookieJar(),  # one caller's cookies must not reach another's request
                auto_decompress=False,
                skip_auto_headers=("user-agent", "accept", "accept-encoding"),
                trust_env=False,
            )
        return session


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    """A large body in pieces, so that writing it (images, long prompts) never holds up other streams."""
    for start in range(0, len(body), _PIECE_BYTES):
        yield body[start : start + _PIECE_BYTES]


def _connector(url: str) -> aiohttp.BaseConnector:
    if url.startswith(_UNIX):
        return aiohttp.UnixConnector(url.removeprefix(_UNIX), limit=0, keepalive_timeout=_KEEP_ALIVE_S)
    return aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S)


def _target(url: str, path: str) -> str:
    return f"http://engine{path}" if url.startswith(_UNIX) else f"{url}{path}"


@contextlib.contextmanager
def _mapped(where: str) -> Iterator[None]:
    """aiohttp's errors as ours."""
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        raise ConnectError(f"cannot connect to {where}: {error.os_error.strerror or error.os_error}") from error
    except aiohttp.ConnectionTimeoutError as error:
        raise ConnectError(f"cannot connect to {where}: no answer in time") from error
    except TimeoutError as error:
        raise BrokenError(f"{where} was silent for too long") from error
    except aiohttp.ClientResponseError as error:  # its text quotes the engine's bytes, over several lines
        raise BrokenError(f"{where} answered with what is not HTTP") from error
    except (aiohttp.ClientError, OSError) as error:
        raise BrokenError(f"the connection to {where} broke: {str(error) or type(error).__name__}") from error
