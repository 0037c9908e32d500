"""The gateway's own policies: the code that serves, told what a gateway is told."""

from benchmarks.routing.engine import Job
from benchmarks.routing.simulation import Balancer, MakeBalancer, Scene
from gateway.routing import Chain, Load, Pick, Policy, Route, Router


class Ours:
    """A `Router` that sees prompts, times to first token and usage, and nothing of the engines but their capacity."""

    def __init__(self, policy: Policy[Load], scene: Scene) -> None:
        self._router: Router[Load] = Router(policy)
        self._scene = scene
        self._loads: list[Load] = []
        self._ends: list[int] = []
        for at, engine in enumerate(scene.engines):
            load = Load(f"replica-{at}", engine.card.kv_capacity_tokens)
            load.block_tokens = scene.block_tokens
            self._router.add(load)
            self._loads.append(load)

    def place(self, job: Job) -> int:
        request = job.request
        size = self._scene.block_tokens
        while len(self._ends) < len(request.blocks):
            self._ends.append((len(self._ends) + 1) * size)
        chain = Chain(request.blocks, self._ends, request.prompt_tokens)
        route = Route(chain, request.prompt_tokens, self._scene.output_tokens, request.session)
        job.ticket = pick = self._router.pick(route, self._loads)
        return self._loads.index(pick.load)

    def first_token(self, job: Job) -> None:
        self._pick(job).first_token(self._scene.clock.now_s - job.arrived_s)

    def finished(self, job: Job) -> None:
        pick = self._pick(job)
        pick.settle(job.request.prompt_tokens, job.cached_tokens)
        pick.release()

    def _pick(self, job: Job) -> Pick[Load]:
        assert isinstance(job.ticket, Pick)  # noqa: S101  (`place` put it there)
        return job.ticket


def ours(policy: Policy[Load]) -> MakeBalancer:
    """A balancer of that policy."""

    def make(scene: Scene) -> Balancer:
        return Ours(policy, scene)

    return make
