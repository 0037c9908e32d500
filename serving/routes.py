"""The part of `berth.yaml` about which model a request is led to, checked, as the gateway's rules."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from gateway.canary import RollbackConfig
from gateway.rules import Mirror, Rule, When
from serving.sections import Count, Seconds, Section, Share

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
_ROLLBACK, _MIRROR = RollbackConfig(), Mirror("")
_SECRET_HEADERS = frozenset({"authorization", "x-api-key", "cookie", "proxy-authorization"})


class TokensSection(Section):
    """How long a prompt is; an estimate, a quarter of the body's bytes."""

    over: Annotated[int, Field(ge=0, strict=True)] | None = None
    under: Count | None = None

    @model_validator(mode="after")
    def _can_be(self) -> "TokensSection":
        if self.over is None and self.under is None:
            raise ValueError("say 'over', 'under' or both")
        if self.over is not None and self.under is not None and self.under <= self.over + 1:
            raise ValueError(f"no prompt is over {self.over} and under {self.under}")
        return self


class WhenSection(Section):
    """Conditions, which all have to hold; texts are exact or globs."""

    model: Text | None = None
    caller: Text | None = None
    headers: Mapping[Text, Text] = Field(default_factory=dict)
    metadata: Mapping[Text, Text] = Field(default_factory=dict)
    prompt_tokens: TokensSection | None = None

    @field_validator("headers")
    @classmethod
    def _no_secrets(cls, headers: Mapping[str, str]) -> Mapping[str, str]:
        for name in headers:
            if not name.isascii():
                raise ValueError(f"no header is named '{name}'")
            if name.lower() in _SECRET_HEADERS:
                raise ValueError(f"keys do not stand in files: use 'caller' instead of '{name}'")
        return headers

    def parsed(self) -> When:
        """As the gateway takes it."""
        tokens = self.prompt_tokens
        return When(
            model=self.model,
            caller=self.caller,
            headers=tuple((name.lower(), pattern) for name, pattern in self.headers.items()),
            metadata=tuple(self.metadata.items()),
            over_tokens=tokens.over if tokens else None,
            under_tokens=tokens.under if tokens else None,
        )


class RollbackSection(Section):
    """When a canary is taken back; the keys and defaults are those of `gateway.canary.RollbackConfig`."""

    window_s: Seconds = _ROLLBACK.window_s
    min_requests: Annotated[int, Field(ge=1, le=1000, strict=True)] = _ROLLBACK.min_requests
    error_factor: Annotated[float, Field(ge=1)] = _ROLLBACK.error_factor
    error_margin: Annotated[float, Field(ge=0, le=1)] = _ROLLBACK.error_margin
    ttft_factor: Annotated[float, Field(ge=1)] = _ROLLBACK.ttft_factor
    ttft_margin_s: Annotated[float, Field(ge=0)] = _ROLLBACK.ttft_margin_s
    ttft_quantile: Annotated[float, Field(ge=0.5, lt=1)] = _ROLLBACK.ttft_quantile
    retry_after_s: Seconds | None = _ROLLBACK.retry_after_s


class MirrorSection(Section):
    """A model that gets a copy of a share of the requests, and whose answers nobody gets."""

    to: Text
    share: Share = _MIRROR.share
    max_in_flight: Count = _MIRROR.max_in_flight


class RouteSection(Section):
    """One rule: the first whose conditions hold leads the request to a model, or one of several by weight."""

    name: Text | None = None
    """A public name of its own, or one of a model; without it the rule is for the models that `when` names."""
    when: WhenSection = WhenSection()
    to: Text | None = None
    split: Mapping[Text, Weight] = Field(default_factory=dict)
    sticky: bool = True
    rollback: RollbackSection | Literal[False] = RollbackSection()
    mirror: MirrorSection | None = None

    @model_validator(mode="after")
    def _leads_somewhere(self) -> "RouteSection":
        if self.to is not None and self.split:
            raise ValueError("'to' and 'split' both say where to: give one of them")
        if self.to is None and not self.split and self.mirror is None:
            raise ValueError("it leads nowhere: give it 'to', 'split' or 'mirror'")
        if self.split and not any(self.split.values()):
            raise ValueError("every weight of its split is 0")
        if self.name is not None and self.when.model is not None:
            raise ValueError("'name' says which model it is for already: leave 'model' out of 'when'")
        if len(self.split) < 2 and self.model_fields_set & {"sticky", "rollback"}:
            raise ValueError("'sticky' and 'rollback' are about a split of several models")
        return self

    def targets(self) -> list[str]:
        """Every model it names."""
        return [*([self.to] if self.to else []), *self.split, *([self.mirror.to] if self.mirror else [])]

    def parsed(self) -> Rule:
        """As the gateway takes it."""
        weights = self._weights()
        is_judged = self.rollback and len(weights) > 1
        return Rule(
            when=self.when.parsed(),
            split=weights,
            name=self.name,
            sticky=self.sticky,
            rollback=RollbackConfig(**self.rollback.model_dump()) if self.rollback and is_judged else None,
            mirror=Mirror(**self.mirror.model_dump()) if self.mirror else None,
        )

    def _weights(self) -> tuple[tuple[str, float], ...]:
        if self.to is not None:
            return ((self.to, 1.0),)
        return tuple((model, weight) for model, weight in self.split.items() if weight > 0)


def check_routes(routes: Sequence[RouteSection], models: Sequence[str] | None, remotes: Sequence[str]) -> None:
    """Raises ValueError, in one line, for a rule that leads to what is not served, or that no request can reach.
    `models` None: which there are is not known yet."""
    for at, route in enumerate(routes):
        where = f"routes.{at}"
        if route.name in remotes:
            raise ValueError(f"{where}: '{route.name}' is the name of a remote")
        for target in route.targets():
            if target in remotes:
                raise ValueError(f"{where}: '{target}' is a remote: those only stand in, in a model's 'fallbacks'")
        if models is not None:
            _check_names(where, route, models)
        for before, earlier in enumerate(routes[:at]):
            if _takes_all_of(earlier, route):
                raise ValueError(f"{where}: no request reaches it, because routes.{before} takes them all")


def _check_names(where: str, route: RouteSection, models: Sequence[str]) -> None:
    if route.name is not None and route.name not in models and not (route.to or route.split):
        raise ValueError(f"{where}: '{route.name}' is no model here, so the rule needs 'to' or 'split'")
    for target in route.targets():
        if target not in models:
            near = difflib.get_close_matches(target, models, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"served: {', '.join(models)}"
            raise ValueError(f"{where}: no model is named '{target}'; {hint}")


def _takes_all_of(earlier: RouteSection, later: RouteSection) -> bool:
    if not earlier.when.parsed().is_open:
        return False
    mine, others = earlier.name or earlier.when.model, later.name or later.when.model
    return mine in (None, "*") or mine == others
