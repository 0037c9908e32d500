"""One engine as vLLM's scheduler runs it: continuous batching with chunked prefill, step by step.

Each step has `max_num_batched_tokens`: one for every running sequence, the rest for prompts, first come first served.
Steps in which only decodes go on are taken together, until one ends or a request comes. The room for an answer is kept
from the start, so that nothing is ever preempted; a request for which there is no room waits, and all behind it.
"""

import math
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush

from benchmarks.routing.blocks import Blocks
from benchmarks.routing.cards import Card
from benchmarks.routing.demand import Request


class Job:
    """A request at an engine."""

    __slots__ = ("arrived_s", "before", "cached_tokens", "engine", "held", "left", "number", "request", "ticket")

    def __init__(self, request: Request, arrived_s: float, number: int) -> None:
        self.request = request
        self.arrived_s = arrived_s
        self.number = number
        self.engine = -1
        self.cached_tokens = 0
        self.left = request.prompt_tokens
        """Prompt tokens still to compute."""
        self.before = 0
        """Prompt tokens that are in the KV cache."""
        self.held: list[int] = []
        self.ticket: object = None
        """What a balancer wants to remember of it."""


Hook = Callable[[Job], None]


class Engine:
    """Time is given to it: `begin` plans the next steps, `end` is what they bring about."""

    __slots__ = (
        "block_tokens", "blocks", "card", "context", "decoding", "end_s", "prefilling", "slowness", "started_s",
        "steps", "until", "waiting",
    )  # fmt: skip

    def __init__(self, card: Card, block_tokens: int, slowness: float = 1.0) -> None:
        self.card = card
        self.block_tokens = block_tokens
        self.slowness = slowness
        self.blocks = Blocks(card.kv_capacity_tokens // block_tokens)
        self.waiting: deque[Job] = deque()
        self.prefilling: list[Job] = []
        self.decoding: list[tuple[int, int, Job]] = []
        """By the step that brings the last token."""
        self.context = 0
        """Tokens in the KV cache of all that decode."""
        self.steps = 0
        self.until = 0
        """The step after which something is to be done."""
        self.started_s = 0.0
        self.end_s = math.inf
        """When the steps under way are done; infinite while there is nothing to do."""

    @property
    def kv_usage(self) -> float:
        """As `vllm:kv_cache_usage_perc` has it: what is held, in 0..1."""
        return self.blocks.used / self.blocks.capacity

    def fits(self, request: Request) -> bool:
        """Whether it could ever run."""
        tokens = request.prompt_tokens + request.output_tokens
        return math.ceil(tokens / self.block_tokens) <= self.blocks.capacity

    def arrive(self, job: Job, now_s: float) -> None:
        """A request is there. Steps of decodes alone are cut short for it, unless it has to wait anyway."""
        if not self.waiting and self.end_s < math.inf and not self.prefilling:
            self._cut(now_s)
        self.waiting.append(job)
        if self.end_s == math.inf:
            self.begin(now_s)

    def begin(self, now_s: float) -> None:
        """Plan the steps from now on."""
        card = self.card
        count = len(self.decoding)
        prefill_s = self._fill(card.max_num_batched_tokens - count)
        self.started_s = now_s
        if self.prefilling:
            self.until = self.steps + 1
            duration_s = prefill_s * self.slowness + self._decode_s(1) if count else self._alone_s(prefill_s)
        elif count:
            self.until = self.decoding[0][0]
            duration_s = self._decode_s(self.until - self.steps)
        else:
            self.end_s = math.inf
            return
        self.end_s = now_s + duration_s

    def end(self, first_token: Hook, finished: Hook) -> None:
        """The planned steps are done; `begin` comes next."""
        done = self.until - self.steps
        self.steps = self.until
        self.context += done * len(self.decoding)
        over: list[Job] = []
        if self.prefilling:
            self._first_tokens(first_token, over)
        while self.decoding and self.decoding[0][0] <= self.steps:
            job = heappop(self.decoding)[2]
            self.context -= job.request.prompt_tokens + job.request.output_tokens
            over.append(job)
        for job in over:
            request = job.request
            if request.answer:
                self.blocks.rename(job.held, len(request.blocks), request.answer)
            self.blocks.give_back(job.held)
            finished(job)

    def restart(self) -> None:
        """Its KV cache is empty for all that come from now on."""
        renamed = self.blocks.wipe()
        for job in (*self.prefilling, *(entry[2] for entry in self.decoding)):
            job.held = [renamed[value] for value in job.held]

    def _first_tokens(self, first_token: Hook, over: list[Job]) -> None:
        still: list[Job] = []
        for job in self.prefilling:
            if job.left:
                still.append(job)
                continue
            request = job.request
            first_token(job)
            if request.output_tokens <= 1:
                over.append(job)
            else:
                last = self.steps + request.output_tokens - 1
                heappush(self.decoding, (last, job.number, job))
                self.context += request.prompt_tokens + 1
        self.prefilling = still

    def _fill(self, budget: int) -> float:
        """Spend the step's tokens on prompts; the time that takes, at full speed."""
        spent_s = 0.0
        for job in self.prefilling:
            if budget <= 0:
                return spent_s
            tokens = min(job.left, budget)
            budget -= tokens
            spent_s += self._compute(job, tokens)
        while self.waiting and budget > 0 and len(self.prefilling) + len(self.decoding) < self.card.max_num_seqs:
            job = self.waiting[0]
            if not self._admit(job):
                break
            self.waiting.popleft()
            self.prefilling.append(job)
            tokens = min(job.left, budget)
            budget -= tokens
            spent_s += self._compute(job, tokens)
        return spent_s

    def _admit(self, job: Job) -> bool:
        request, size = job.request, self.block_tokens
        whole = math.ceil((request.prompt_tokens + request.output_tokens) / size)
        found = self.blocks.take(request.blocks, whole - len(request.blocks), (request.prompt_tokens - 1) // size)
        if found is None:
            return False
        hits, job.held = found
        job.cached_tokens = job.before = hits * size
        job.left = request.prompt_tokens - job.before
        return True

    def _compute(self, job: Job, tokens: int) -> float:
        spent_s = self.card.prefill_s(tokens, job.before)
        job.left -= tokens
        job.before += tokens
        return spent_s

    def _alone_s(self, prefill_s: float) -> float:
        return (self.card.step_s + prefill_s) * self.slowness

    def _decode_s(self, steps: int) -> float:
        """So many steps of all that decode, whose contexts grow by one token each."""
        card, count = self.card, len(self.decoding)
        one_s = card.step_s + card.sequence_s * count + card.context_s * self.context
        grown = card.context_s * count * steps * (steps - 1) / 2
        return (steps * one_s + grown) * self.slowness

    def _cut(self, now_s: float) -> None:
        """End the decodes under way with the step that runs now."""
        least, most = 1, self.until - self.steps
        elapsed_s = now_s - self.started_s
        while least < most:
            middle = (least + most) // 2
            if self._decode_s(middle) < elapsed_s:
                least = middle + 1
            else:
                most = middle
        self.until = self.steps + least
        self.end_s = self.started_s + self._decode_s(least)
