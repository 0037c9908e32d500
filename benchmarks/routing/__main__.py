"""Every policy through every scenario, as a table.

python -m benchmarks.routing TRACE [--replicas 8,16,64] [--scenarios NAME,...] [--speed 4] [--out TABLE.txt]
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from benchmarks.errors import BenchError, ConfigError
from benchmarks.routing.cards import CARDS, Card
from benchmarks.routing.oracles import Clairvoyant, hit_rate
from benchmarks.routing.ours import ours
from benchmarks.routing.peers import PEERS
from benchmarks.routing.report import Figures, Paper, figures, head, medians, table
from benchmarks.routing.scenarios import Name, Pace, build
from benchmarks.routing.simulation import MakeBalancer, simulate
from benchmarks.routing.traces import Trace, read_trace
from gateway.routing import POLICIES

SCENARIOS: tuple[Name, ...] = get_args(Name)
OURS: Mapping[str, MakeBalancer] = {f"berth {name}": ours(policy) for name, policy in POLICIES.items()}
ORACLE = "oracle: least true wait"
BALANCERS: Mapping[str, MakeBalancer] = {**OURS, **PEERS, ORACLE: Clairvoyant}


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line."""

    trace: Path
    replicas: tuple[int, ...]
    scenarios: tuple[Name, ...]
    card: Card
    pace: Pace
    seeds: int
    out: Path | None


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 and one line on stderr where nothing could be played."""
    try:
        asked = _asked(argv)
        _play(asked, read_trace(asked.trace))
    except BenchError as error:
        sys.stderr.write(f"bench-routing: {error}\n")
        return 2
    return 0


def _play(asked: Asked, trace: Trace) -> None:
    with Paper(asked.out) as write:
        write(head(trace, asked.card, asked.pace, asked.seeds))
        for replicas in asked.replicas:
            for name in asked.scenarios:
                write(_scenario(asked, trace, replicas, name))


def _scenario(asked: Asked, trace: Trace, replicas: int, name: Name) -> str:
    rows: dict[str, list[Figures]] = {balancer: [] for balancer in BALANCERS}
    bounds: list[tuple[float, float]] = []
    note = ""
    for seed in range(1, asked.seeds + 1):
        found = build(name, trace, asked.card, replicas, asked.pace, seed)
        demand = found.demand
        note = note or demand.note
        every, size = demand.every, demand.block_tokens
        fleet_tokens = replicas * asked.card.kv_capacity_tokens
        bounds.append((hit_rate(every, size), hit_rate(every, size, fleet_tokens)))
        for balancer, make in BALANCERS.items():
            rows[balancer].append(figures(simulate(demand, found.fleet, make, seed), bounds[-1][0]))
    return table(name, replicas, note, bounds, {balancer: medians(each) for balancer, each in rows.items()})


def _asked(argv: Sequence[str] | None) -> Asked:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing", description=__doc__)
    parser.add_argument("trace", type=Path, help="in Mooncake's or Azure's format, plain or .gz")
    parser.add_argument("--replicas", default="8,16,64", help="sizes of the fleet")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), help=f"of: {', '.join(SCENARIOS)}")
    parser.add_argument("--card", default="h100-8b", choices=sorted(CARDS), help="how fast an engine is")
    parser.add_argument("--speed", type=float, help="play the trace so many times as fast; default: by --utilisation")
    parser.add_argument("--utilisation", type=float, default=0.8, help="how busy the fleet is to be, in 0..1")
    parser.add_argument("--requests", type=int, default=12_000, help="in one run, at most")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each, of which the medians are shown")
    parser.add_argument("--out", type=Path, help="a file for the tables")
    given = parser.parse_args(argv)
    _check("--requests", given.requests, given.requests >= 1, "at least 1")
    _check("--seeds", given.seeds, given.seeds >= 1, "at least 1")
    _check("--utilisation", given.utilisation, 0 < given.utilisation <= 2, "above 0 and at most 2")
    _check("--speed", given.speed, given.speed is None or 0 < given.speed < 1e6, "above 0")
    pace = Pace(given.utilisation, given.speed, given.requests)
    replicas, names = _sizes(given.replicas), _names(given.scenarios)
    return Asked(given.trace, replicas, names, CARDS[given.card], pace, given.seeds, given.out)


def _check(option: str, value: object, is_good: bool, wanted: str) -> None:
    if not is_good:
        raise ConfigError(f"{option} is {value}; it has to be {wanted}")


def _sizes(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        _check("--replicas", part, part.isdecimal() and 2 <= int(part) <= 1024, "numbers from 2 to 1024, with commas")
    _check("--replicas", text, bool(parts), "numbers from 2 to 1024, with commas")
    return tuple(map(int, parts))


def _names(text: str) -> tuple[Name, ...]:
    parts = {part.strip() for part in text.split(",")}
    _check("--scenarios", text, parts <= set(SCENARIOS), f"some of {', '.join(SCENARIOS)}")
    return tuple(name for name in SCENARIOS if name in parts)


if __name__ == "__main__":
    sys.exit(main())
