"""Goodput under overload, with and without admission: an open loop up to three times what an engine can do.

    python -m benchmarks.overload --out benchmarks/results/overload.txt

One real engine (the embedded model) behind `berth serve`. How fast it is alone sets the SLO; the rate of the fastest
closed loop, whatever that does to the SLO, is its capacity. Then the same requests are offered at multiples of it, each
rate with the gateway's queue and without it (a reload switches). Goodput: requests that met the SLO, for each second of
the offer. Nobody comes again after a refusal, and everybody gives up after `--patience` seconds.
"""

import argparse
import asyncio
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from benchmarks import schedule, workload
from benchmarks.client import ChatClient, open_session
from benchmarks.load import closed_loop, open_loop
from benchmarks.measure import send_lag_s, slos_met, tpot_s, ttft_co_s, ttft_s
from benchmarks.output import machine, publish
from benchmarks.record import RequestRecord
from benchmarks.slo import Slo
from benchmarks.stack import serving
from benchmarks.workload import Prompt

_MODEL = "smollm2"
_PROMPT_TOKENS = 64
_OUTPUT_TOKENS = 16
_ALONE = 6
_CROWDS = (4, 16, 32)
_ROUNDS = 2
_TPOT_OF_ALONE = 3.0
_TTFT_OF_ALONE = 5.0
_LEAST_TTFT_S = 1.0
_CONFIG = """\
calibrate: false
gateway:
  port: 0
  queue: {{enabled: {queue}}}
models:
  - model: demo
    dtype: float32
    max_model_len: 512
    max_num_seqs: 64
    kv_cache_memory_bytes: 1500000000
    slo: {{ttft_s: {ttft_s}, tpot_s: {tpot_s}}}
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """One rate, with the queue or without."""

    factor: float
    offered: float
    """Requests per second."""
    queue: bool
    records: tuple[RequestRecord, ...]
    seconds: float
    """How long requests were offered."""

    def goodput(self, slo: Slo) -> float:
        """Requests per second that met the SLO."""
        return sum(all(slos_met(record, slo).values()) for record in self.records) / self.seconds


def table(cells: Sequence[Cell], slo: Slo) -> list[str]:
    """One line for each cell."""
    lines = [
        f"{'load':>5} {'offered/s':>9} {'admission':>9} {'goodput/s':>9} {'of best':>7} {'answered':>8} {'refused':>7} "
        f"{'gave up':>7} {'TTFT p50':>8} {'p90':>8} {'TPOT p50':>8} {'p90':>8}"
    ]
    goodputs = [cell.goodput(slo) for cell in cells]
    for cell, good in zip(cells, goodputs, strict=True):
        best = max(other for other, of in zip(goodputs, cells, strict=True) if of.queue == cell.queue)
        ok = [record for record in cell.records if record.is_ok]
        refused = sum(record.status == 503 for record in cell.records)
        ttfts = sorted(s for s in map(ttft_co_s, ok) if s is not None)
        tpots = sorted(s for s in map(tpot_s, ok) if s is not None)
        times = (_at(ttfts, 0.5), _at(ttfts, 0.9), _at(tpots, 0.5), _at(tpots, 0.9))
        lines.append(
            f"{cell.factor:>4g}x {cell.offered:>9.2f} {'on' if cell.queue else 'off':>9} {good:>9.2f} "
            f"{good / best if best else 0:>7.0%} {len(ok):>8} {refused:>7} "
            f"{len(cell.records) - len(ok) - refused:>7} " + " ".join(map(_ms, times))
        )
    return lines


def _ms(time_s: float) -> str:
    return f"{'-':>8}" if math.isnan(time_s) else f"{time_s * 1e3:>6.0f}ms"


def _at(ranked: Sequence[float], quantile: float) -> float:
    return ranked[min(len(ranked) - 1, int(len(ranked) * quantile))] if ranked else float("nan")


class _Stack:
    """A running `berth serve`, the file it reads, and the session that asks it."""

    def __init__(self, url: str, file: Path, session: aiohttp.ClientSession, patience_s: float) -> None:
        self._url = url
        self._file = file
        self._session = session
        self._patience_s = patience_s
        self._prompts = 0

    async def set(self, *, queue: bool, slo: Slo) -> None:
        """Reload with these."""
        self._file.write_text(_config(queue=queue, slo=slo))
        async with self._session.post(f"{self._url}/admin/reload") as answer:
            if answer.status != 200:
                raise SystemExit(f"overload: the reload was refused: {await answer.text()}")

    async def rest(self) -> None:
        """Until nothing runs any more."""
        while True:
            async with self._session.get(f"{self._url}/status") as answer:
                status = await answer.json()
            busy = [replica["in_flight"] or replica["waiting"] for replica in status["replicas"]]
            if not any(busy):
                return
            await asyncio.sleep(0.5)

    async def closed(self, count: int, concurrency: int) -> tuple[list[RequestRecord], float]:
        """So many requests, that many at once; and how long they took, in seconds."""
        records: list[RequestRecord] = []
        client = self._client()

        async def send(prompt: Prompt, intended_s: float | None) -> None:
            records.append(await client.ask(prompt, intended_s))

        await closed_loop(self._some(count), concurrency, send)
        return records, client.elapsed_s()

    async def open(self, rate: float, seconds: float, seed: int) -> list[RequestRecord]:
        """Poisson arrivals at `rate` per second for so long, and all their ends."""
        records: list[RequestRecord] = []
        client = self._client()

        async def send(prompt: Prompt, intended_s: float | None) -> None:
            records.append(await client.ask(prompt, intended_s))

        count = max(2, round(rate * seconds))
        await open_loop(self._some(count), schedule.poisson(rate, count, seed), send, client.elapsed_s)
        return records

    def _client(self) -> ChatClient:
        return ChatClient(self._session, self._url, _MODEL, timeout_s=self._patience_s, ignore_eos=True)

    def _some(self, count: int) -> tuple[Prompt, ...]:
        """Prompts that nobody has seen: a prefix cache would answer for the engine."""
        self._prompts += 1
        return workload.build(
            count,
            prompt_tokens=_PROMPT_TOKENS,
            output_tokens=_OUTPUT_TOKENS,
            shared_prefix_tokens=0,
            seed=self._prompts,
            run_id="overload",
        )


def _config(*, queue: bool, slo: Slo) -> str:
    return _CONFIG.format(queue=str(queue).lower(), ttft_s=slo.ttft_s, tpot_s=slo.tpot_s)


async def _measured(stack: _Stack) -> tuple[Slo, float, list[str]]:
    """The SLO from what it does alone, and the capacity under it."""
    await stack.closed(4, 2)  # the first ones pay for what is only done once
    alone, _ = await stack.closed(_ALONE, 1)
    ttft, tpot = (_at(sorted(s for s in map(of, alone) if s is not None), 0.5) for of in (ttft_s, tpot_s))
    slo = Slo(ttft_s=round(max(_LEAST_TTFT_S, _TTFT_OF_ALONE * ttft), 2), tpot_s=round(_TPOT_OF_ALONE * tpot, 3))
    await stack.set(queue=False, slo=slo)
    runs = [await stack.closed(_ROUNDS * crowd, crowd) for crowd in _CROWDS]
    capacity = max(len(records) / s for records, s in runs)
    rates = ", ".join(f"{crowd}: {len(records) / s:.2f}" for crowd, (records, s) in zip(_CROWDS, runs, strict=True))
    return (
        slo,
        capacity,
        [
            f"alone: TTFT {ttft * 1e3:.0f} ms, TPOT {tpot * 1e3:.1f} ms",
            f"SLO: TTFT {slo.ttft_s:g} s, TPOT {slo.tpot_s:g} s",
            f"closed loops, requests/s by how many at once: {rates}",
            f"capacity, the fastest of them: {capacity:.2f} requests/s",
        ],
    )


async def _sweep(url: str, file: Path, options: argparse.Namespace) -> list[str]:
    cells: list[Cell] = []
    async with open_session(None) as session:
        stack = _Stack(url, file, session, options.patience)
        slo, capacity, said = await _measured(stack)
        sys.stderr.write("\n".join([*said, ""]))
        for factor in (float(part) for part in options.factors.split(",")):
            for queue in (True, False):
                await stack.set(queue=queue, slo=slo)
                await stack.rest()
                records = await stack.open(factor * capacity, options.seconds, seed=round(factor * 100))
                cells.append(Cell(factor, factor * capacity, queue, tuple(records), options.seconds))
                sys.stderr.write(table(cells, slo)[-1] + "\n")
    lags = sorted(lag for cell in cells for lag in map(send_lag_s, cell.records) if lag is not None)
    late = f"the load generator was late by {_at(lags, 0.5) * 1e3:.0f} ms (p50), {_at(lags, 0.99) * 1e3:.0f} ms (p99)"
    return [*said, "", *table(cells, slo), "", late]


def main() -> None:
    """Entry point of `make bench-overload`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factors", default="0.5,1,1.5,2,3", help="multiples of the capacity")
    parser.add_argument("--seconds", type=float, default=20.0, help="of requests, for each rate")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds after which a caller gives up")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="berth-overload-") as folder:
        file = Path(folder) / "berth.yaml"
        with serving(Path(folder), _config(queue=False, slo=Slo(ttft_s=60.0, tpot_s=60.0))) as (_, url):
            lines = asyncio.run(_sweep(url, file, options))
    load = f"prompts of {_PROMPT_TOKENS}, answers of {_OUTPUT_TOKENS} tokens, Poisson, {options.seconds:g} s a rate"
    title = f"overload of one engine (SmolLM2-135M, float32, max_num_seqs 64): {load}; {machine()}"
    busy = f"load average of the last 5 minutes, with what else ran on this machine: {os.getloadavg()[1]:.1f}"
    report = "\n".join([title, "", *lines, busy, ""])
    publish(report, options.out)


if __name__ == "__main__":
    main()
