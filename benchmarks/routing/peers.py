"""Other routers' published rules, written anew, with their defaults.

All see whole blocks of the trace where the originals see characters or smaller blocks, and count what they sent
themselves, except for llm-d, which reads queue and KV cache use from the engines (at most 50 ms old).
"""

import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from benchmarks.routing.engine import Job
from benchmarks.routing.simulation import MakeBalancer, Scene

_TREE_THRESHOLD = 0.3
_TREE_ABS = 64
_TREE_REL = 1.5
_LLMD_BLOCKS = 31_250
_LLMD_BLOCK_TOKENS = 64
_LLMD_SCRAPE_S = 0.05
_LLMD_WEIGHTS = (3.0, 2.0, 2.0)
"""Prefix, queue, KV cache."""
_LLMD_STICKY = 0.8
_LLMD_BREAK_S = 18.0
_LLMD_TOKENS_PER_S = 15_928


class _Counting:
    """Requests in flight by replica, counted by the router itself."""

    def __init__(self, scene: Scene) -> None:
        self._in_flight = [0] * len(scene.engines)
        self._random = random.Random(scene.seed)  # noqa: S311  (reproducible)
        self._scene = scene

    def place(self, job: Job) -> int:
        at = self._choose(job)
        self._in_flight[at] += 1
        return at

    def first_token(self, job: Job) -> None:
        """Of no interest."""

    def finished(self, job: Job) -> None:
        self._in_flight[job.engine] -= 1

    def _choose(self, job: Job) -> int:
        raise NotImplementedError

    def _least_in_flight(self) -> int:
        return self._in_flight.index(min(self._in_flight))


class PowerOfTwo(_Counting):
    """Of two at random, the one with fewer requests in flight."""

    def _choose(self, job: Job) -> int:
        one, other = self._random.sample(range(len(self._in_flight)), 2)
        return one if self._in_flight[one] <= self._in_flight[other] else other


class _Tree:
    """A radix tree over all prompts, with the workers that each prefix was sent to, latest last."""

    def __init__(self, workers: int) -> None:
        self.sizes = [0] * workers
        self._tenants: dict[int, dict[int, None]] = {}

    def match(self, chain: Sequence[int]) -> tuple[int, list[int]]:
        """Blocks of the longest known prefix, and the workers that were sent it."""
        depth = 0
        for value in chain:
            if value not in self._tenants:
                break
            depth += 1
        return depth, list(self._tenants[chain[depth - 1]]) if depth else []

    def insert(self, chain: Sequence[int], worker: int) -> None:
        """The worker was sent this."""
        for value in chain:
            tenants = self._tenants.setdefault(value, {})
            if worker in tenants:
                del tenants[worker]
            else:
                self.sizes[worker] += 1
            tenants[worker] = None


class CacheAware(_Counting):
    """sglang-router v1 and vllm-router: the worker with the longest prefix, or, where that is under 0.3 of the prompt,
    the one with the smallest tree; while in-flight counts are apart (by 64 and 1.5 times), the shortest queue."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._tree = _Tree(len(scene.engines))

    def _choose(self, job: Job) -> int:
        blocks = job.request.blocks
        at = self._of(job)
        self._tree.insert(blocks, at)
        return at

    def _of(self, job: Job) -> int:
        most, least = max(self._in_flight), min(self._in_flight)
        if most - least > _TREE_ABS and most > _TREE_REL * least:
            return self._least_in_flight()
        depth, tenants = self._tree.match(job.request.blocks)
        if depth * self._scene.block_tokens > _TREE_THRESHOLD * job.request.prompt_tokens:
            return tenants[-1]
        return self._tree.sizes.index(min(self._tree.sizes))


class Smg(CacheAware):
    """SMG: as above, but a miss goes to the fewest in flight, a hit to the holder with the fewest; and one request
    leaves a holder that is above the mean by 1.5 times and by 64."""

    def _of(self, job: Job) -> int:
        counts = self._in_flight
        depth, tenants = self._tree.match(job.request.blocks)
        if depth * self._scene.block_tokens <= _TREE_THRESHOLD * job.request.prompt_tokens:
            return self._least_in_flight()
        fewest = min(counts[at] for at in tenants)
        at = self._random.choice([tenant for tenant in tenants if counts[tenant] == fewest])
        mean = sum(counts) / len(counts)
        if counts[at] > mean * _TREE_REL and counts[at] > mean + _TREE_ABS:
            return self._least_in_flight()
        return at


class _Index:
    """llm-d's approximate index: an LRU of block hashes for each pod, as large as its KV cache, 31,250 blocks of 64
    tokens at most."""

    def __init__(self, scene: Scene) -> None:
        capacity = min(_LLMD_BLOCKS * _LLMD_BLOCK_TOKENS, scene.engines[0].card.kv_capacity_tokens)
        self._most = capacity // scene.block_tokens
        self._pods: list[OrderedDict[int, None]] = [OrderedDict() for _ in scene.engines]

    def match(self, chain: Sequence[int]) -> list[int]:
        """By pod, leading blocks that were sent there."""
        found = []
        for pod in self._pods:
            depth = 0
            for value in chain:
                if value not in pod:
                    break
                depth += 1
            found.append(depth)
        return found

    def insert(self, chain: Sequence[int], at: int) -> None:
        pod = self._pods[at]
        for value in chain:
            pod[value] = None
            pod.move_to_end(value)
        while len(pod) > self._most:
            pod.popitem(last=False)


class LlmD(_Counting):
    """llm-d: 3 x prefix + 2 x queue + 2 x KV cache, each in 0..1, the highest sum; equals by chance."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._index = _Index(scene)
        self._read_s = -1.0
        self._queues = [0] * len(scene.engines)
        self._usages = [0.0] * len(scene.engines)

    def _choose(self, job: Job) -> int:
        self._scrape()
        blocks = job.request.blocks
        depths = self._index.match(blocks)
        among = self._stay([depth / max(len(blocks), 1) for depth in depths])
        at = self._best(among, depths, max(len(blocks), 1))
        self._index.insert(blocks, at)
        return at

    def _stay(self, shares: Sequence[float]) -> Sequence[int]:
        return range(len(shares))

    def _best(self, among: Sequence[int], depths: Sequence[int], blocks: int) -> int:
        prefix, queue, cache = _LLMD_WEIGHTS
        longest = max(self._queues[at] for at in among)
        spread = longest - min(self._queues[at] for at in among)
        scores = {
            at: prefix * depths[at] / blocks
            + queue * ((longest - self._queues[at]) / spread if spread else 1.0)
            + cache * (1 - self._usages[at])
            for at in among
        }
        best = max(scores.values())
        return self._random.choice([at for at, score in scores.items() if score == best])

    def _scrape(self) -> None:
        now_s = self._scene.clock.now_s
        if now_s - self._read_s < _LLMD_SCRAPE_S and self._read_s >= 0:
            return
        self._read_s = now_s
        self._queues = [len(engine.waiting) for engine in self._scene.engines]
        self._usages = [engine.kv_usage for engine in self._scene.engines]


class LlmDAffinity(LlmD):
    """llm-d with its prefix-cache-affinity-filter: only pods with 0.8 of the prompt, unless the best of them would
    take 18 s longer than the best of the others, told by uncached tokens in flight at 15,928 tokens/s."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._uncached = [0] * len(scene.engines)
        self._charges: dict[int, int] = {}

    def place(self, job: Job) -> int:
        at = super().place(job)
        charge = self._charges[job.number] = self._charge
        self._uncached[at] += charge
        return at

    def first_token(self, job: Job) -> None:
        self._uncached[job.engine] -= self._charges.pop(job.number)

    def _stay(self, shares: Sequence[float]) -> Sequence[int]:
        sticky = [at for at, share in enumerate(shares) if share >= _LLMD_STICKY]
        others = [at for at, share in enumerate(shares) if share < _LLMD_STICKY]
        if not sticky or not others:
            return range(len(shares))
        ahead = min(self._uncached[at] for at in sticky) - min(self._uncached[at] for at in others)
        return range(len(shares)) if ahead / _LLMD_TOKENS_PER_S > _LLMD_BREAK_S else sticky

    def _best(self, among: Sequence[int], depths: Sequence[int], blocks: int) -> int:
        at = super()._best(among, depths, blocks)
        self._charge = (blocks - depths[at]) * self._scene.block_tokens
        return at


class Dynamo(_Counting):
    """Dynamo: prompt blocks not yet computed + own blocks that are not there + blocks of all in flight, the fewest;
    what is in the caches it knows from their events."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._prefill = [0] * len(scene.engines)
        self._active = [0] * len(scene.engines)
        self._charges: dict[int, tuple[int, int]] = {}

    def _choose(self, job: Job) -> int:
        blocks = job.request.blocks
        whole = len(blocks) + 1
        hits = [engine.blocks.match(blocks) for engine in self._scene.engines]
        costs = [
            max(waiting + whole - hit, 0) + active + whole
            for waiting, active, hit in zip(self._prefill, self._active, hits, strict=True)
        ]
        at = costs.index(min(costs))
        self._charges[job.number] = whole - hits[at], whole
        self._prefill[at] += whole - hits[at]
        self._active[at] += whole
        return at

    def first_token(self, job: Job) -> None:
        self._prefill[job.engine] -= self._charges[job.number][0]

    def finished(self, job: Job) -> None:
        super().finished(job)
        self._active[job.engine] -= self._charges.pop(job.number)[1]


PEERS: Mapping[str, MakeBalancer] = {
    "sglang v1, vllm-router": CacheAware,
    "SMG cache_aware": Smg,
    "llm-d 3:2:2": LlmD,
    "llm-d, affinity filter": LlmDAffinity,
    "Dynamo, KV events": Dynamo,
    "power of two": PowerOfTwo,
}
"""By the name the table gives them."""
