"""The latency targets a run is judged by, and their spelling on the command line."""

import math
from dataclasses import dataclass, fields

from benchmarks.errors import ConfigError

_UNITS_S = {"ms": 1e-3, "s": 1.0, "": 1.0}


@dataclass(frozen=True, slots=True)
class Slo:
    """Upper bounds in seconds, each inclusive; None is no bound."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    @property
    def is_set(self) -> bool:
        """Whether there is anything to meet."""
        return any(getattr(self, field.name) is not None for field in fields(self))


NO_SLO = Slo()


def parse_slo(text: str) -> Slo:
    """Read `ttft=0.5,tpot=50ms,e2e=10s` (seconds unless a unit says so); ConfigError says which part is wrong."""
    bounds: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in ("ttft", "tpot", "e2e"):
            raise ConfigError(f"SLO '{part}' is not NAME=SECONDS with NAME one of ttft, tpot, e2e (ttft=0.5,tpot=50ms)")
        if name in bounds:
            raise ConfigError(f"SLO '{name}' is given twice: keep one")
        bounds[name] = _seconds(name, value)
    if not bounds:
        raise ConfigError("the SLO is empty: write it as ttft=0.5,tpot=50ms, or leave it out")
    return Slo(ttft_s=bounds.get("ttft"), tpot_s=bounds.get("tpot"), e2e_s=bounds.get("e2e"))


def _seconds(name: str, value: str) -> float:
    number = value.rstrip("ms")
    try:
        seconds = float(number) * _UNITS_S[value[len(number) :]]
    except (ValueError, KeyError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"SLO {name}='{value}' is not a time above 0: write seconds ({name}=0.5) or {name}=500ms")
    return seconds
