"""What to run: the options of one benchmark run, checked when made."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.errors import ConfigError
from benchmarks.schedule import ARRIVALS, Arrivals
from benchmarks.slo import NO_SLO, Slo


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One run. Exactly one of `rate` (requests/s, open loop) and `concurrency` (in flight, closed loop) is set.

    `url` may end in /v1 or not. `out_dir` None means `runs/<UTC time>-<model>`. `run_id` None means a fresh one: it
    decides every prompt, so only a run given an older run's id can meet that run's prefix cache. Raises ConfigError.
    """

    url: str
    rate: float | None = None
    concurrency: int | None = None
    requests: int = 100
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    prompt_tokens: int = 128
    output_tokens: int = 64
    shared_prefix_tokens: int = 0
    arrivals: Arrivals = "poisson"
    ignore_eos: bool = False
    seed: int = 0
    slo: Slo = NO_SLO
    timeout_s: float = 600.0
    warmup: int = 1
    out_dir: Path | None = None
    run_id: str | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and self.concurrency is not None:
            raise ConfigError("rate and concurrency are both given: a run is an open loop or a closed one, keep one")
        if self.rate is None and self.concurrency is None:
            raise ConfigError("give a rate (requests/s, open loop) or a concurrency (in flight, closed loop)")
        if self.arrivals not in ARRIVALS:
            raise ConfigError(f"arrivals '{self.arrivals}' is not one of {', '.join(ARRIVALS)}")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise ConfigError("the API key is empty or holds characters that no HTTP header may carry: check it")
        for name in ("rate", "timeout_s"):
            _above_zero(name, getattr(self, name))
        for name, least in _LEAST.items():
            _at_least(name, getattr(self, name), least)
        _ = self.base_url

    @property
    def base_url(self) -> str:
        """The server's root, without /v1 and without a slash at the end; ConfigError when `url` is none."""
        url = self.url if "://" in self.url else f"http://{self.url}"
        try:
            parts = urlsplit(url)
            is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_web = False
        if not is_web or any(mark.isspace() for mark in url):
            raise ConfigError(f"'{self.url}' is not a web address: write it as http://HOST:PORT")
        if parts.username or parts.password:
            raise ConfigError(
                "the URL holds a user name or password: give the key as an API key, URLs are written down"
            )
        if parts.query or parts.fragment:
            raise ConfigError(f"'{self.url}' has a query or fragment: write it as http://HOST:PORT")
        return url.rstrip("/").removesuffix("/v1").rstrip("/")


_LEAST = {
    "concurrency": 1,
    "requests": 1,
    "prompt_tokens": 1,
    "output_tokens": 1,
    "shared_prefix_tokens": 0,
    "warmup": 0,
}


def _above_zero(name: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{_spelt(name)} must be a number above 0, not {value:g}")


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ConfigError(f"{_spelt(name)} must be {least} or more, not {value}")


def _spelt(name: str) -> str:
    return name.removesuffix("_s").replace("_", "-")
