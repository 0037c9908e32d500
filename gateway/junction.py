"""Leads requests to the models that the rules name, and learns from how they end. No I/O.

Everything that a caller is told speaks of the model it asked for: rules say who exists and for whom, and that is the
operator's business alone. (What an engine answers is passed on as it is, its `model` included, as with stand-ins.)
"""

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.canary import REASONS, Split
from gateway.headers import Header
from gateway.members import with_text
from gateway.mirror import Mirrors, Shadow
from gateway.owners import Owner
from gateway.replica import ModelCard
from gateway.routing.chain import of_model
from gateway.rules import Asked, Mirror, Rule, chosen, first_rule
from gateway.settlement import Settlement
from gateway.wire import Call, Fault, with_model

_log = logging.getLogger("berth.gateway")
_RANDOM_BITS = 64


class Side(NamedTuple):
    """One model of a split, for `/status` and metrics."""

    route: str
    model: str
    split: Split
    weight: float
    """Now: 0 when it was taken back."""


class Junction(Collector):
    """The rules in force and the record of each split. A rule that a reload leaves as it is keeps its record: to rotate
    a key must not bring a bad canary back. `is_there`: whether somebody can answer for a model now."""

    def __init__(
        self, is_there: Callable[[str], bool], mirrors: Mirrors, clock: Callable[[], float], luck: random.Random
    ) -> None:
        self.rules: tuple[Rule, ...] = ()
        self._is_there = is_there
        self._mirrors = mirrors
        self._clock = clock
        self._luck = luck
        self._splits: dict[Rule, Split] = {}

    def use(self, rules: Sequence[Rule]) -> None:
        """Put these rules in force."""
        known = self._splits
        self._splits = {
            rule: known.get(rule) or Split(dict(rule.split), rule.rollback, self._clock)
            for rule in rules
            if len(rule.split) > 1
        }
        self.rules = tuple(rules)

    def lead(self, call: Call, caller: str, session: bytes | None, headers: Sequence[Header]) -> "Led | None":
        """Where a request goes; None when no rule is about it. `session` is the one its headers name."""
        asked = Asked(call, caller, session, headers)
        rule = first_rule(self.rules, asked)
        if rule is None:
            return None
        split = self._splits.get(rule)
        target = rule.split[0][0] if rule.split else call.model
        if split is not None:
            target = self._side(rule, split, asked)
        return Led(call.model, moved(call, target), split, rule.mirror, self._mirrors)

    def _side(self, rule: Rule, split: Split, asked: Asked) -> str:
        """Of the sides where somebody is there; of none, the stable one answers for all."""
        if not asked.call.endpoint.generates:
            return split.stable  # tokens are counted the same way each time
        weights = [(model, weight) for model, weight in split.weights() if weight and self._is_there(model)]
        if not weights:
            return split.stable
        key = asked.conversation if rule.sticky else None
        return chosen(key or self._luck.getrandbits(_RANDOM_BITS).to_bytes(_RANDOM_BITS // 8, "big"), weights)

    def kept(self, call: Call, owner: Owner | None) -> Call:
        """A call that goes on from a kept response: it stays with the model that made it, if a rule for the model it
        asks for leads there."""
        if owner is None or not call.model or owner.model == call.model:
            return call
        targets = {model for rule in self.rules if rule.name in (None, call.model) for model, _ in rule.split}
        return moved(call, owner.model) if owner.model in targets else call

    def cards(self, served: Sequence[ModelCard], caller: str | None = None) -> list[ModelCard]:
        """What `caller` may ask for: the models served, and each name of its own that a rule for this caller has, with
        the longest request that such a rule takes. None: what all callers may ask for."""
        lengths = {card.name: card.max_model_len for card in served}
        own: dict[str, list[int | None]] = {}
        for rule in self.rules:
            if rule.name is not None and rule.name not in lengths and rule.when.is_for(caller):
                own.setdefault(rule.name, []).append(_shortest(rule, lengths))
        return [*served, *(ModelCard(name, max(filter(None, each), default=None)) for name, each in own.items())]

    def sides(self) -> Iterator[Side]:
        """Every side of every split, in the order of the rules."""
        for label, rule in _labelled(self.rules):
            split = self._splits.get(rule)
            if split is not None:
                for model, weight in split.weights():
                    yield Side(label, model, split, weight)

    def collect(self) -> Iterator[Metric]:
        """What each split does now, read when somebody scrapes."""
        weights = GaugeMetricFamily(
            "berth_split_weight", "A model's weight in a split now; 0: taken back", labels=("route", "model")
        )
        rollbacks = CounterMetricFamily(
            "berth_split_rollbacks", "Times a canary was taken back, by reason", labels=("route", "model", "reason")
        )
        for side in self.sides():
            weights.add_metric((side.route, side.model), side.weight)
            if side.model != side.split.stable:  # at zero from the start, so that the first is seen as an increase
                for reason in REASONS:
                    rollbacks.add_metric(
                        (side.route, side.model, reason), side.split.rollbacks.get((side.model, reason), 0)
                    )
        yield from (weights, rollbacks)


class Led:
    """One request that a rule is about, until its end."""

    __slots__ = ("_mirror", "_mirrors", "_shadow", "_split", "asked", "call")

    def __init__(self, asked: str, call: Call, split: Split | None, mirror: Mirror | None, mirrors: Mirrors) -> None:
        self.asked = asked
        """The model as the caller knows it."""
        self.call = call
        self._split = split
        self._mirror = mirror
        self._mirrors = mirrors
        self._shadow: Shadow | None = None

    def placed(self, forwarded: bytes) -> None:
        """The request is on its way: so is its shadow, if it gets one."""
        mirror, call = self._mirror, self.call
        if mirror is None or call.response_id is not None or not call.endpoint.generates or mirror.to == call.model:
            return
        if self._mirrors.is_chosen(mirror):
            self._shadow = self._mirrors.start(mirror, call.model, moved(call, mirror.to), forwarded)

    def told(self, fault: Fault) -> Fault:
        """A refusal of the gateway's own, in words that name nothing but the model that was asked for."""
        if self.asked == self.call.model or fault.code not in ("not_ready", "model_not_found"):
            return fault
        message = f"no replica of '{self.asked}' is ready"
        return replace(fault, status=503, message=message, code="not_ready", param=None, retry_after_s=5)

    def settled(self, done: Settlement) -> None:
        """The request is over."""
        if self._shadow is not None and done.outcome == "client_gone":
            self._shadow.leave()
        if self._split is None:
            return
        ttft_s, moved_on = done.ttft_s, any(move.kind == "fallback" for move in done.moves)
        if done.outcome == "client_gone" and ttft_s is None and done.stream:
            ttft_s = done.duration_s  # so long at least: of those who gave up waiting not to speak would be flattery
        # a status below 500 is about the request: one client's mistakes must not take a version back
        is_error = moved_on or done.outcome == "broken" or done.status >= 500
        for back in self._split.ended(self.call.model, is_error=is_error, ttft_s=None if moved_on else ttft_s):
            stable = self._split.stable
            _log.error("'%s' is taken back: its %s are worse than those of '%s'", back.model, back.reason, stable)


def moved(call: Call, model: str) -> Call:
    """The same request for another model; every other byte stays the caller's own."""
    if model == call.model:
        return call
    if call.endpoint.body == "form":
        return call.but(model=model, body=with_model(call.body, model))
    chain = of_model(call.chain, model)
    return call.but(model=model, body=with_text(call.body, "model", model), chain=chain)


def _shortest(rule: Rule, lengths: Mapping[str, int | None]) -> int | None:
    """What all of a rule's models take; None when that is not known of each."""
    each = [lengths.get(model) for model, _ in rule.split]
    known = [length for length in each if length is not None]
    return min(known, default=None) if len(known) == len(each) else None


def _labelled(rules: Sequence[Rule]) -> Iterator[tuple[str, Rule]]:
    """Rules with a name each: the public one or that of the model, numbered where several have the same."""
    seen: dict[str, int] = {}
    for rule in rules:
        name = rule.name or rule.when.model or "*"
        seen[name] = seen.get(name, 0) + 1
        yield (name if seen[name] == 1 else f"{name}#{seen[name]}"), rule
