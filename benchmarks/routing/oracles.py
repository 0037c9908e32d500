"""What could be had: the most hits there are, and the best choice by one who sees into every engine."""

from collections import Counter
from collections.abc import Sequence

from benchmarks.routing.blocks import Blocks
from benchmarks.routing.demand import Request
from benchmarks.routing.engine import Engine, Job
from benchmarks.routing.simulation import Scene


def hit_rate(requests: Sequence[Request], block_tokens: int, capacity_tokens: int | None = None) -> float:
    """Share of prompt tokens that one cache would have had, all requests sent to it one after the other. `requests` are
    in the order in which they come; without a capacity nothing is ever evicted, and no placement can do better."""
    every = sum(len(request.blocks) + len(request.answer) + 1 for request in requests)
    most = every if capacity_tokens is None else capacity_tokens // block_tokens
    cache = Blocks(most)
    cached = prompt = 0
    for request in requests:
        prompt += request.prompt_tokens
        tail = max(1, len(request.answer))
        found = cache.take(request.blocks, tail, (request.prompt_tokens - 1) // block_tokens)
        if found is not None:
            hits, held = found
            cached += hits * block_tokens
            cache.rename(held, len(request.blocks), request.answer)
            cache.give_back(held)
    return cached / prompt if prompt else 0.0


class Clairvoyant:
    """The least wait, told from the engines themselves: what each still has to compute, at its true speed, what is in
    its KV cache, or will be once those that wait there are served. Nobody knows all this; it minds one request only."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._charges: list[dict[int, tuple[float, Job]]] = [{} for _ in scene.engines]
        self._promised: list[Counter[int]] = [Counter() for _ in scene.engines]

    def place(self, job: Job) -> int:
        request = job.request
        best, best_wait, best_own, best_decodes = 0, float("inf"), 0.0, 0
        for at, engine in enumerate(self._scene.engines):
            own_s = self._own_s(at, engine, request)
            wait_s = (self._ahead_s(at) + own_s) * _stretch(engine) * engine.slowness
            decodes = len(engine.decoding)
            if (wait_s, decodes) < (best_wait, best_decodes):
                best, best_wait, best_own, best_decodes = at, wait_s, own_s, decodes
        self._charges[best][job.number] = best_own, job
        self._promised[best].update(request.blocks)
        return best

    def first_token(self, job: Job) -> None:
        del self._charges[job.engine][job.number]
        promised = self._promised[job.engine]
        for value in job.request.blocks:
            promised[value] -= 1
            if not promised[value]:
                del promised[value]

    def finished(self, job: Job) -> None:
        """Seen in the engine."""

    def _own_s(self, at: int, engine: Engine, request: Request) -> float:
        promised, held, idle = self._promised[at], engine.blocks.held, engine.blocks.idle
        depth = 0
        for value in request.blocks:
            if value not in held and value not in idle and value not in promised:
                break
            depth += 1
        before = min(depth * engine.block_tokens, request.prompt_tokens - 1)
        return engine.card.prefill_s(request.prompt_tokens - before, before)

    def _ahead_s(self, at: int) -> float:
        ahead_s = 0.0
        for charge_s, job in self._charges[at].values():
            whole = job.request.prompt_tokens - job.cached_tokens
            ahead_s += charge_s * (job.left / whole if job.held else 1.0)
        return ahead_s


def _stretch(engine: Engine) -> float:
    """How much longer prompts take beside the decodes of an engine: its steps are shared."""
    card = engine.card
    decode_s = card.step_s + card.sequence_s * len(engine.decoding) + card.context_s * engine.context
    full_s = card.max_num_batched_tokens * card.token_s
    return 1 + decode_s / full_s
