"""A gateway's /metrics as Prometheus sees it: the gateway's own instruments and figures, moved on by every scrape."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway import figures
from gateway.config import Timeouts
from gateway.cost import Cost
from gateway.metrics import Metrics
from gateway.replica import ModelCard, Replica
from gateway.settlement import Settlement
from gateway.upstream import Upstream
from gateway.wire import Usage
from tests.fake_engine import FakeEngine

MODEL = "smollm2"
_PREDICTED_TOKENS = 4000
_CONFIG_LABELS = 'block_size="16",num_gpu_blocks="250"'
_ENGINE = """\
vllm:kv_cache_usage_perc{{engine="0"}} 0.25
vllm:num_requests_running{{engine="0"}} 1
vllm:num_requests_waiting{{engine="0"}} 0
vllm:prefix_cache_queries_total{{engine="0"}} {queries}
vllm:prefix_cache_hits_total{{engine="0"}} {hits}
vllm:num_preemptions_total{{engine="0"}} 0
vllm:prompt_tokens_total{{engine="0"}} {queries}
vllm:generation_tokens_total{{engine="0"}} {queries}
vllm:cache_config_info{{{config}}} 1
"""


@dataclass
class LiveGateway:
    """Each scrape finds four more requests settled: three answered, one broken in its stream. Half the prompt tokens
    that the engine looked up were in its prefix cache."""

    engine: FakeEngine
    scrapes: int = 0

    def __post_init__(self) -> None:
        self._metrics = Metrics("0.0.0")
        self._metrics.registry.register(Cost(lambda: 1, lambda: {"busy": 1}))
        self._replica = Replica(
            f"{MODEL}/0",
            self.engine.url,
            (ModelCard(MODEL, 4096),),
            predicted_kv_tokens=_PREDICTED_TOKENS,
            state="ready",
        )
        self._metrics.expect(MODEL, self._replica.name)

    def scrape(self) -> str:
        """What GET /metrics answers."""
        self.scrapes += 1
        for number in range(4):
            self._settle(broken=number == 3)
        self._metrics.retried(MODEL, self._replica.name)
        self.engine.metrics_text = _ENGINE.format(
            queries=100 * self.scrapes, hits=50 * self.scrapes, config=_CONFIG_LABELS
        )
        return (generate_latest(self._metrics.registry) + asyncio.run(self._engines())).decode()

    def _settle(self, *, broken: bool) -> None:
        done = Settlement(
            request_id="req_1",
            caller="alice",
            model=MODEL,
            replica=self._replica.name,
            url=self._replica.url,
            dialect="chat",
            generates=True,
            stream=True,
            outcome="broken" if broken else "ok",
            status=200,
            arrived_s=0.0,
            ended_s=1.0,
            ttft_s=0.03,
            tpot_s=0.012,
            usage=Usage(prompt_tokens=100, output_tokens=10, cached_tokens=50),
        )
        self._metrics.tally(MODEL, self._replica.name, "chat").settle(done)

    async def _engines(self) -> bytes:
        async with Upstream(Timeouts()) as upstream:
            return await figures.exposition([self._replica], upstream, 2.0)


def exported_series(text: str) -> dict[str, set[str]]:
    """Every series name in an exposition, with the labels it carries."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@contextmanager
def serving(gateway: LiveGateway) -> Iterator[str]:
    """Serve it on a free loopback port; yields `host:port`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = gateway.scrape().encode()
            self.send_response(200)
            self.send_header("content-type", CONTENT_TYPE_LATEST)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="live gateway")
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
