"""Conversations with shared system prompts over two real engines, under one routing policy after the other.

    python -m benchmarks.routing_replay --policies round_robin,least_work,prefix --out benchmarks/results/replay.txt

The same conversations each time, told apart by a cache salt, so that no policy finds what another has left behind.
The oracle is one endless cache that has whatever any replica has computed: token ids of every prompt and answer, in the
engine's own blocks.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import orjson

from benchmarks.output import machine, publish
from benchmarks.stack import metric, serving
from benchmarks.statistics import percentile
from benchmarks.workload import WORDS
from gateway.wire import EventSplitter, read_event

_MODEL = "smollm2"
_CONFIG = """\
calibrate: false
gateway: {{port: 0, routing: {policy}}}
models:
  - model: demo
    replicas: 2
    max_model_len: 4096
    max_num_seqs: 16
    dtype: bfloat16
    kv_cache_memory_bytes: {kv_bytes}
"""
_TOKENS_A_WORD = 1.35


@dataclass(frozen=True, slots=True)
class Plan:
    """How much there is to say."""

    tenants: int = 6
    """Each with a system prompt of its own, which all its conversations share."""
    conversations: int = 24
    turns: int = 8
    system_tokens: int = 600
    user_tokens: int = 120
    output_tokens: int = 16
    arrivals_s: float = 1.5
    """Between two conversations, on average."""
    think_s: float = 4.0
    """Between an answer and the next question, on average."""


@dataclass(slots=True)
class Turn:
    """One request and what came of it. Moments are seconds since the start of the run."""

    conversation: int
    messages: list[dict[str, str]]
    sent_s: float = 0.0
    first_s: float | None = None
    done_s: float = 0.0
    replica: str = ""
    predicted_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    text: str = ""
    error: str | None = None
    prompt_ids: tuple[int, ...] = ()
    told_ids: tuple[int, ...] = field(default=(), repr=False)
    """Of the prompt and its answer."""


def _words(chance: random.Random, tokens: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(int(tokens / _TOKENS_A_WORD)))


class _Run:
    """All conversations under one policy."""

    def __init__(self, session: aiohttp.ClientSession, url: str, plan: Plan, seed: int, salt: str) -> None:
        self._session = session
        self._url = url
        self._plan = plan
        self._seed = seed
        self._salt = salt
        self.turns: list[Turn] = []

    async def play(self) -> None:
        chance = random.Random(self._seed)  # noqa: S311  (a workload, not a secret)
        systems = [_words(chance, self._plan.system_tokens) for _ in range(self._plan.tenants)]
        self._started_s = time.perf_counter()
        at_s, tasks = 0.0, []
        for number in range(self._plan.conversations):
            own = random.Random(f"{self._seed}/{number}")  # noqa: S311  (see above)
            system = systems[own.randrange(len(systems))]
            tasks.append(asyncio.create_task(self._converse(number, system, at_s, own)))
            at_s += chance.expovariate(1 / self._plan.arrivals_s)
        await asyncio.gather(*tasks)
        for turn in self.turns:
            answered = [*turn.messages, {"role": "assistant", "content": turn.text}]
            turn.prompt_ids = await self._ids(turn.messages, continued=False)
            turn.told_ids = await self._ids(answered, continued=True)

    async def _converse(self, number: int, system: str, at_s: float, chance: random.Random) -> None:
        await asyncio.sleep(at_s)
        messages = [{"role": "system", "content": system}]
        for _ in range(self._plan.turns):
            messages.append({"role": "user", "content": _words(chance, self._plan.user_tokens)})
            turn = Turn(number, list(messages))
            self.turns.append(turn)
            await self._ask(turn)
            messages.append({"role": "assistant", "content": turn.text})
            await asyncio.sleep(chance.expovariate(1 / self._plan.think_s))

    async def _ask(self, turn: Turn) -> None:
        body = {
            "model": _MODEL,
            "messages": turn.messages,
            "max_tokens": self._plan.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "cache_salt": self._salt,
        }
        turn.sent_s = self._now_s()
        splitter = EventSplitter()
        texts: list[str] = []
        async with self._session.post(f"{self._url}/v1/chat/completions", json=body) as answer:
            turn.replica = answer.headers.get("x-berth-replica", "")
            turn.predicted_tokens = int(answer.headers.get("x-berth-predicted-cached-tokens", 0))
            if answer.status != 200:
                turn.error = f"{answer.status}: {(await answer.text())[:200]}"
            while turn.error is None and (data := await answer.content.readany()):
                for event in splitter.feed(data):
                    self._read(turn, event, texts)
        turn.text = "".join(texts)
        turn.done_s = self._now_s()

    def _read(self, turn: Turn, event: bytes, texts: list[str]) -> None:
        sign = read_event("chat", event)
        if sign.token is not None:
            if turn.first_s is None:
                turn.first_s = self._now_s()
            texts.append(_content(event))
        if sign.usage is not None:
            turn.prompt_tokens = sign.usage.prompt_tokens or 0
            turn.cached_tokens = sign.usage.cached_tokens or 0
        if sign.error is not None:
            turn.error = sign.error

    async def _ids(self, messages: Sequence[dict[str, str]], *, continued: bool) -> tuple[int, ...]:
        body = {"model": _MODEL, "messages": messages, "add_generation_prompt": not continued}
        async with self._session.post(f"{self._url}/tokenize", json=body) as answer:
            return tuple((await answer.json())["tokens"])

    def _now_s(self) -> float:
        return time.perf_counter() - self._started_s


def _content(event: bytes) -> str:
    payload = orjson.loads(event.partition(b"data: ")[2].strip())
    return payload["choices"][0]["delta"].get("content") or ""


def oracle_tokens(turns: Sequence[Turn], block_tokens: int) -> int:
    """The prompt tokens that one endless cache would have found: whole blocks of what was computed before a request
    was sent, never a prompt's last token."""
    found = 0
    for turn in turns:
        known: set[tuple[int, ...]] = set()
        for other in turns:
            if other.first_s is not None and other.first_s <= turn.sent_s:
                known |= _prefixes(other.prompt_ids, block_tokens)
            if other.done_s <= turn.sent_s:
                known |= _prefixes(other.told_ids, block_tokens)
        most = (len(turn.prompt_ids) - 1) // block_tokens
        blocks = 0
        while blocks < most and turn.prompt_ids[: (blocks + 1) * block_tokens] in known:
            blocks += 1
        found += blocks * block_tokens
    return found


def _prefixes(ids: tuple[int, ...], block_tokens: int) -> set[tuple[int, ...]]:
    return {ids[:end] for end in range(block_tokens, len(ids) + 1, block_tokens)}


@dataclass(frozen=True, slots=True)
class Row:
    """One policy."""

    policy: str
    turns: int
    errors: int
    hit_share: float
    oracle_share: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    max_over_mean: float
    """Work of the busiest replica (uncached prompt and output tokens) over the mean."""
    predicted_share: float


def row(policy: str, turns: Sequence[Turn], block_tokens: int, replicas: int, output_tokens: int) -> Row:
    """The figures of one run."""
    good = [turn for turn in turns if turn.error is None and turn.first_s is not None]
    prompt = sum(turn.prompt_tokens for turn in good)
    work: dict[str, int] = {}
    for turn in good:
        cost = turn.prompt_tokens - turn.cached_tokens + output_tokens
        work[turn.replica] = work.get(turn.replica, 0) + cost
    ttfts = sorted(turn.first_s - turn.sent_s for turn in good if turn.first_s is not None)
    return Row(
        policy,
        len(turns),
        len(turns) - len(good),
        sum(turn.cached_tokens for turn in good) / prompt,
        oracle_tokens(good, block_tokens) / prompt,
        percentile(ttfts, 0.5),
        percentile(ttfts, 0.9),
        percentile(ttfts, 0.99),
        max(work.values()) / (sum(work.values()) / replicas),
        sum(turn.predicted_tokens for turn in good) / prompt,
    )


def table(rows: Sequence[Row]) -> list[str]:
    """One line a policy; round robin, if there, is what the others are compared with."""
    lines = [
        "policy         requests errors  hit %  oracle %  of oracle %  predicted %"
        "  TTFT p50     p90     p99  max/mean work"
    ]
    for r in rows:
        lines.append(
            f"{r.policy:<14} {r.turns:>8} {r.errors:>6} {100 * r.hit_share:>6.1f} {100 * r.oracle_share:>9.1f}"
            f" {100 * r.hit_share / r.oracle_share if r.oracle_share else 100:>12.1f} {100 * r.predicted_share:>12.1f}"
            f"  {r.ttft_p50_s:>8.3f} {r.ttft_p90_s:>7.3f} {r.ttft_p99_s:>7.3f} {r.max_over_mean:>14.2f}"
        )
    base = next((r for r in rows if r.policy == "round_robin"), None)
    if base is not None:
        for r in rows:
            if r is not base:
                lines.append(f"TTFT p90 of {r.policy}: {r.ttft_p90_s / base.ttft_p90_s:.2f} of round robin's")
    return lines


async def _play(url: str, config: Path, options: argparse.Namespace, plan: Plan) -> list[Row]:
    rows = []
    timeout = aiohttp.ClientTimeout(total=3600)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        for name in options.policies.split(","):
            text = _CONFIG.format(policy=name, kv_bytes=options.kv_cache_memory_bytes)
            await asyncio.to_thread(config.write_text, text)
            async with session.post(f"{url}/admin/reload") as answer:
                if answer.status != 200:
                    raise SystemExit(f"routing replay: '{name}': {await answer.text()}")
            run = _Run(session, url, plan, options.seed, f"{name}-{options.seed}-{time.time_ns()}")
            await run.play()
            tokens, blocks = [await metric(url, f"berth_engine_kv_cache_{unit}") for unit in ("tokens", "blocks")]
            block_tokens = int(tokens / blocks)
            rows.append(row(name, run.turns, block_tokens, 2, plan.output_tokens))
            sys.stderr.write(table(rows)[-1] + "\n")
    return rows


def main() -> None:
    """Entry point of `make bench-replay`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default="round_robin,least_work,prefix")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kv-cache-memory-bytes", type=int, default=268_435_456)
    for name, value in (("tenants", 6), ("conversations", 24), ("turns", 8), ("system-tokens", 600)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--arrivals-s", type=float, default=1.5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    plan = Plan(
        tenants=options.tenants,
        conversations=options.conversations,
        turns=options.turns,
        system_tokens=options.system_tokens,
        arrivals_s=options.arrivals_s,
    )
    config = _CONFIG.format(policy="prefix", kv_bytes=options.kv_cache_memory_bytes)
    with tempfile.TemporaryDirectory(prefix="berth-replay-") as folder, serving(Path(folder), config) as (_, url):
        rows = asyncio.run(_play(url, Path(folder) / "berth.yaml", options, plan))
    title = (
        f"{plan.conversations} conversations of {plan.turns} turns, {plan.tenants} system prompts of about"
        f" {plan.system_tokens} tokens; two engines, vLLM on CPU, SmolLM2-135M, {options.kv_cache_memory_bytes:,} bytes"
        f" of KV cache each; seed {options.seed}; {machine()}"
    )
    report = "\n".join([title, "", *table(rows), ""])
    publish(report, options.out)


if __name__ == "__main__":
    main()
