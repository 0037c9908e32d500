"""What a door says for people: where it is, and what its file was understood as."""

from collections.abc import Callable

from gateway.app import Gateway
from serving.front import FrontConfig

Say = Callable[[str], object]
"""Takes one line; it is neither wrapped nor cut."""


def say_door(say: Say, gateway: Gateway, url: str) -> None:
    """Where the gateway is, what it serves and who may use it."""
    keys = len(gateway.config.keys)
    who = f"{keys} known" if keys else "none: only this machine can reach it"
    models = ", ".join(card.name for card in gateway.pool.cards()) or "asking the upstreams"
    lines = (f"Berth is at {url}/v1", f"  models    {models}", f"  API keys  {who}", f"  metrics   {url}/metrics")
    for line in lines:
        say(line)


def say_front(say: Say, config: FrontConfig) -> None:
    """What a file of `berth gateway` says, as it was understood."""
    engines = [f"  {engine.name:20}  {engine.url}" for engine in config.engines]
    models = [
        f"  {model.name}: {', '.join(sorted(model.model_fields_set - {'name'})) or 'as all'}" for model in config.models
    ]
    counts = (("remotes", config.remotes), ("routes", config.routes), ("keys", config.gateway.keys))
    rest = ", ".join(f"{len(found)} {what}" for what, found in counts)
    for line in ("engines", *engines, *(("models", *models) if models else ()), rest):
        say(line)
