"""Requests of which nothing matters but their size, placed without a gateway around them."""

from gateway.replica import Replica
from gateway.routing import CUTS, Chain, Pick, Route, Router
from gateway.routing.policies import least_work

_ROUTER: Router[Replica] = Router(least_work)


def route(tokens: int = 0) -> Route:
    """A prompt of so many tokens that has nothing in common with any other."""
    return Route(Chain((), CUTS, 4 * tokens), tokens, 0)


def placed(replica: Replica, tokens: int = 1) -> Pick[Replica]:
    """One more such request on `replica`."""
    return _ROUTER.place(route(tokens), replica)
