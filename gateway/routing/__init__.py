"""Which replica takes a request: pure policies over what each has to do and what is in its KV cache. No I/O.

chain      a prompt as a chain of block hashes
index      which replica holds which blocks
load       what a replica has been given, and how fast it is (rate)
route      one request
estimates  how many tokens its text and its answer are likely to have
policies   one function each
router     all of them together; corrects itself by what engines answer
precise    which engine holds which blocks, where engines say it themselves
alignment  where a place in our text of a prompt is in the engine's tokens of it
fate       why prompt tokens were computed that might have been found
"""

from gateway.routing.chain import CUTS, Chain, chain_of
from gateway.routing.estimates import Estimates
from gateway.routing.fate import Fate
from gateway.routing.load import Load
from gateway.routing.policies import POLICIES, Policy, PolicyName
from gateway.routing.route import Route
from gateway.routing.router import Pick, Router

__all__ = [
    "CUTS",
    "POLICIES",
    "Chain",
    "Estimates",
    "Fate",
    "Load",
    "Pick",
    "Policy",
    "PolicyName",
    "Route",
    "Router",
    "chain_of",
]
