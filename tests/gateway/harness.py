"""A running gateway in front of scripted engines: a real server on loopback, in a thread and event loop of its own."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import uvicorn

from gateway.app import Gateway
from gateway.config import GatewayConfig, Timeouts
from gateway.replica import Replica
from gateway.wire import Dialect, EventSplitter
from tests.fake_engine import FakeEngine, Script, Seen

GOLDEN = Path(__file__).parent / "golden"
STREAMING: tuple[Dialect, ...] = ("chat", "completions", "responses", "messages")
PATHS: dict[Dialect, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "embeddings": "/v1/embeddings",
}
CONFIG = GatewayConfig(
    probe_interval_s=0.05, timeouts=Timeouts(connect_s=2.0, first_token_s=30.0, gap_s=30.0, probe_s=2.0)
)


def golden(name: str) -> bytes:
    """A stream as a real vLLM 0.32 sent it."""
    return (GOLDEN / f"{name}.sse").read_bytes()


def golden_events(dialect: Dialect) -> tuple[bytes, ...]:
    """The same, event by event."""
    return tuple(EventSplitter().feed(golden(dialect)))


def stream_of(dialect: Dialect) -> Script:
    """A script that plays the recorded stream of `dialect`, one event a write."""
    return Script(chunks=tuple((0.0, event) for event in golden_events(dialect)))


def body_for(dialect: Dialect, *, stream: bool = False, model: str = "fake") -> dict[str, object]:
    """A minimal request; its stream asks for usage, so that the answer is relayed byte for byte."""
    body: dict[str, object] = {"model": model, "stream": stream}
    if stream and dialect in ("chat", "completions"):
        body["stream_options"] = {"include_usage": True}
    if dialect in ("chat", "messages"):
        return {**body, "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]}
    return {**body, ("prompt" if dialect == "completions" else "input"): "hi"}


def wait_until(claim: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Return as soon as `claim()` holds; fail when it does not in time (generous: two loaded cores)."""
    deadline = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < deadline, "still not true"
        time.sleep(0.002)


def free_port() -> int:
    """A loopback port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class HandClock:
    """The gateway's clock where a test sets it: no time passes unless it says so."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Door:
    """Handle on a running gateway."""

    gateway: Gateway
    port: int
    loop: asyncio.AbstractEventLoop
    """The one it runs on, in a thread of its own."""

    def do(self, step: Callable[[], object]) -> None:
        """Call `step` where the gateway itself would: its sockets belong to its thread."""

        async def stepped() -> None:
            step()

        asyncio.run_coroutine_threadsafe(stepped(), self.loop).result(20)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def in_flight(self) -> float:
        """The gauge berth_requests_in_flight, over all its labels."""
        return self.total("berth_requests_in_flight")

    @property
    def is_at_rest(self) -> bool:
        """Whether every counter of running work is back at zero."""
        pool = self.gateway.pool.replicas
        busy = [replica for replica in pool if replica.in_flight or replica.work_tokens]
        return not busy and self.gateway.admission.in_flight == 0 and self.in_flight == 0

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples called `name` whose labels include `labels`."""
        samples = (s for family in self.gateway.metrics.registry.collect() for s in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def wait_ready(self, replicas: int | None = None) -> None:
        """Until /ready says 200 and so many replicas (all, when not said) are routed to."""
        wanted = len(self.gateway.pool.replicas) if replicas is None else replicas
        wait_until(lambda: sum(r.state == "ready" for r in self.gateway.pool.replicas) >= wanted)
        with httpx2.Client(base_url=self.url) as client:
            wait_until(lambda: client.get("/ready").status_code == 200)

    def client(self, **headers: str) -> httpx2.Client:
        """A plain HTTP client for this door; close it."""
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60)

    def post(self, path: str, json: object = None, content: bytes | None = None, **headers: str) -> httpx2.Response:
        """One request on a connection of its own."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        with self.client(**headers) as client:
            return client.post(path, json=json, content=content)

    def get(self, path: str, **headers: str) -> httpx2.Response:
        """One GET on a connection of its own."""
        with self.client(**{name.replace("_", "-"): value for name, value in headers.items()}) as client:
            return client.get(path)

    @contextmanager
    def connection(self) -> Iterator[socket.socket]:
        """A bare connection, to send exactly what a test wants and to leave when it wants."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as sock:
            yield sock


class _Server(uvicorn.Server):
    """uvicorn without the fifths of a second it sleeps on the way out; answers still open are cut."""

    async def main_loop(self) -> None:
        await self.on_tick(0)
        while not self.should_exit:  # noqa: ASYNC110  (set by the test's thread)
            await asyncio.sleep(0.005)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for task in self.server_state.tasks:
            task.cancel()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await asyncio.gather(*self.server_state.tasks, return_exceptions=True)
        await self.lifespan.shutdown()


@contextmanager
def opened(gateway: Gateway) -> Iterator[Door]:
    """Serve `gateway` until the block ends; open answers are cut then."""
    config = uvicorn.Config(
        gateway,
        http=gateway.protocol,
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
    )
    server = _Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="gateway", daemon=True)
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield Door(gateway, listener.getsockname()[1], server.servers[0].get_loop())
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()


@contextmanager
def door_before(
    *engines: FakeEngine,
    config: GatewayConfig = CONFIG,
    wait: bool = True,
    clock: Callable[[], float] = time.perf_counter,
    **changes: object,
) -> Iterator[Door]:
    """A gateway in front of `engines` (already running), named e0, e1, ...; `changes` are fields of its config."""
    changed = replace(config, **changes)  # type: ignore[arg-type]  # field names are checked by replace itself
    gateway = Gateway(changed, clock=clock)
    for i, engine in enumerate(engines):
        gateway.add(Replica(f"e{i}", engine.url))
    with opened(gateway) as door:
        if wait:
            door.wait_ready()
        yield door


def request_bytes(path: str, body: bytes, *headers: str) -> bytes:
    """A POST as it goes over the wire."""
    head = [f"POST {path} HTTP/1.1", "host: test", "content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*head, *headers, "", ""]).encode() + body


def receive_until(sock: socket.socket, mark: bytes) -> bytes:
    """What arrives up to and including `mark` (with whatever came in the same read)."""
    got = b""
    while mark not in got:
        data = sock.recv(65536)
        assert data, f"closed before {mark!r}; got {got!r}"
        got += data
    return got


def receive_rest(sock: socket.socket) -> bytes:
    """Everything until the other side closes."""
    got = b""
    with suppress(ConnectionResetError):
        while data := sock.recv(65536):
            got += data
    return got


def first_seen(engine: FakeEngine) -> Seen:
    """The first request the engine got, once it is there."""
    wait_until(lambda: engine.seen)
    return engine.seen[0]
