"""What one routing decision costs: the chain of a long prompt, who holds it, the policy over all replicas, the record.

    python -m benchmarks.routing_cost [--replicas 64] [--prompt-bytes 131072] [--decisions 4000]

The replicas are as a busy fleet has them: their indexes full, all loaded, and each request a turn of a conversation
that one of them holds, or a new one behind a system prompt that all hold. Processor time: what else the machine does
is not counted.
"""

import argparse
import os
import platform
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.routing.report import Paper
from benchmarks.statistics import percentile
from gateway.routing import POLICIES, Load, Pick, Policy, Route, Router, chain_of, router

BAR_US = 50.0
_KV_TOKENS = 440_000
_SYSTEM_BYTES = 8192
_BYTES_PER_TOKEN = 4
_OUTPUT_TOKENS = 250
_IN_FLIGHT = 512
_STEPS = ("hash chain", "match", "policy", "charge and record", "all")
_WARM_UP = 0.2
_COMPILED = "" if str(router.__file__).endswith(".py") else ", compiled"


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line."""

    replicas: int
    prompt_bytes: int
    decisions: int


def times_us(asked: Asked, policy: Policy[Load]) -> Mapping[str, Sequence[float]]:
    """Microseconds of each step, by decision; the first fifth, which fills the indexes, left out."""
    rng = random.Random(1)  # noqa: S311  (reproducible)
    router: Router[Load] = Router(policy)
    loads = [Load(f"replica-{at}", _KV_TOKENS) for at in range(asked.replicas)]
    for load in loads:
        router.add(load)
    system = rng.randbytes(_SYSTEM_BYTES)
    texts = [_prompt(rng, system, asked.prompt_bytes) for _ in range(16)]
    spent: dict[str, list[float]] = {step: [] for step in _STEPS}
    waiting: list[Pick[Load]] = []
    for number in range(asked.decisions):
        prompt = texts[number % len(texts)]
        if number % 2:  # a new conversation, else another turn of a known one
            prompt = texts[number % len(texts)] = _prompt(rng, system, asked.prompt_bytes)
        _decide(router, loads, prompt, spent, waiting)
        if len(waiting) > _IN_FLIGHT:
            _answer(waiting.pop(rng.randrange(len(waiting))))
    return {step: found[int(_WARM_UP * len(found)) :] for step, found in spent.items()}


def _prompt(rng: random.Random, system: bytes, size: int) -> bytes:
    return system + rng.randbytes(max(size - len(system), 0))


def _decide(
    router: Router[Load],
    loads: Sequence[Load],
    prompt: bytes,
    spent: Mapping[str, list[float]],
    waiting: list[Pick[Load]],
) -> None:
    clock = time.thread_time
    begun = clock()
    chain = chain_of(17, prompt)
    hashed = clock()
    route = Route(chain, len(prompt) // _BYTES_PER_TOKEN, _OUTPUT_TOKENS, None, 1 / _BYTES_PER_TOKEN)
    router.look(route)
    matched = clock()
    chosen = router.policy(route, loads)
    decided = clock()
    waiting.append(router.place(route, chosen))
    done = clock()
    for step, from_s, to_s in zip(
        _STEPS, (begun, hashed, matched, decided, begun), (hashed, matched, decided, done, done), strict=True
    ):
        spent[step].append((to_s - from_s) * 1e6)


def _answer(pick: Pick[Load]) -> None:
    pick.first_token(0.5)
    pick.settle(pick.route.prompt_tokens, pick.predicted_tokens)
    pick.release()


def table(asked: Asked, found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """`found`: by policy and step, in microseconds."""
    lines = [
        f"A decision over {asked.replicas} replicas for a prompt of {asked.prompt_bytes:,} bytes "
        f"({asked.prompt_bytes // _BYTES_PER_TOKEN:,} tokens); Python {platform.python_version()} on "
        f"{platform.machine()}, {os.cpu_count()} cores{_COMPILED}; microseconds of processor time, bar {BAR_US:g}",
        "",
        "| policy | " + " | ".join(f"{step}: median | p99" for step in _STEPS) + " |",
        "|---|" + "---|" * 2 * len(_STEPS),
    ]
    lines += [
        f"| {policy} | "
        + " | ".join(f"{percentile(steps[step], 0.5):.1f} | {percentile(steps[step], 0.99):.1f}" for step in _STEPS)
        + " |"
        for policy, steps in found.items()
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; 1 where the median of `prefix` is above the bar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing_cost", description=__doc__)
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--prompt-bytes", type=int, default=131_072)
    parser.add_argument("--decisions", type=int, default=4000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    asked = Asked(max(given.replicas, 1), max(given.prompt_bytes, 1), max(given.decisions, 10))
    found = {str(name): times_us(asked, policy) for name, policy in POLICIES.items()}
    with Paper(given.out) as write:
        write(table(asked, found))
    return 0 if percentile(found["prefix"]["all"], 0.5) <= BAR_US else 1


if __name__ == "__main__":
    sys.exit(main())
