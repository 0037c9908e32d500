"""What drafts tokens for a model, and what it adds to an engine: layers, weights, and buffers of its own."""

from dataclasses import dataclass, field, replace

from sizing.errors import QuestionError
from sizing.layers import Layers
from sizing.model import ModelShape

WEIGHTLESS = ("ngram", "ngram_gpu", "suffix")
"""Methods that look drafts up in the text: they keep neither weights nor a cache on the card."""
_SCHEDULED_ASYNC = ("mtp", "eagle", "eagle3", "draft_model", "ngram_gpu")
_AUX_STATES = 3  # of an EAGLE-3 head whose config names none (models/llama_eagle3.py)


@dataclass(frozen=True)
class Drafter:
    """What proposes tokens ahead of the model: prediction layers of its own (`mtp`), an EAGLE head or a small model."""

    method: str
    num_speculative_tokens: int
    layers: Layers = ()
    """What its layers keep; they are on the last pipeline stage, and none for n-grams."""
    name: str = ""
    """Of the draft model."""
    aux_hidden_states: int = 0
    """Hidden states of the model's layers that an EAGLE-3 head reads, beside the last."""
    probabilistic: bool = False
    """Its logits are kept for the next step's verification."""
    model: ModelShape | None = field(default=None, compare=False, repr=False)
    """Its weights, as vLLM holds them beside the model's: tables that are the model's own are not among them."""

    @property
    def retained_tokens(self) -> int:
        """What a chain of prediction modules reads past a window (config/vllm.py: num_prefill_lookahead_tokens)."""
        chained = self.method == "mtp" and min(len(self.layers), self.num_speculative_tokens) > 1
        return self.num_speculative_tokens - 1 if chained else 0

    @property
    def scheduled_async(self) -> bool:
        """Whether vLLM still overlaps batches with it (config/vllm.py: __post_init__)."""
        return self.method in _SCHEDULED_ASYNC

    def stretched_bytes(self, max_model_len: int) -> int:
        """What a head's rotary table grows by: it has a row for each position of the model that is served.

        config/speculative.py: _maybe_override_draft_max_position_embeddings.
        """
        if self.method not in ("eagle", "eagle3") or self.model is None or self.model.held is None:
            return 0
        own = self.model.max_model_len
        return self.model.held.buffers * max(0, max_model_len - own) // own

    def state_bytes(self, *, max_num_seqs: int, max_num_batched_tokens: int, dtype_bytes: int) -> int:
        """Buffers it holds from the start (v1/worker/gpu/spec_decode: speculator.py, target_dependent_ar).

        The hidden states it reads, one of each batched token, and the logits it drafted by, where they are kept.
        """
        if self.model is None:
            return 0
        read = max_num_batched_tokens * self.model.hidden_size if self.method != "draft_model" else 0
        logits = max_num_seqs * self.num_speculative_tokens * self.model.vocab_size if self.probabilistic else 0
        return (read + logits) * dtype_bytes


def prediction_drafter(model: ModelShape, num_speculative_tokens: int | None, *, probabilistic: bool) -> Drafter:
    """The prediction layers that a model brings itself (`--speculative-config '{"method": "mtp"}'`).

    Raises:
        QuestionError: the model has none, or not so many tokens can be drafted with them.
    """
    layers = model.predictor
    if layers is None:
        raise QuestionError(
            f"{model.name} has no prediction layers of its own (or its files leave them out); "
            'speculate with another method, such as {"method": "ngram", "num_speculative_tokens": 3}'
        )
    count = layers.num_hidden_layers
    tokens = count if num_speculative_tokens is None else num_speculative_tokens
    if tokens > count and tokens % count:
        raise QuestionError(
            f"num_speculative_tokens is {tokens}, no multiple of the {count} prediction layers of {model.name}; "
            f"use {tokens // count * count} or {(tokens // count + 1) * count}"
        )
    return Drafter("mtp", tokens, layers.cache_layers, model.name, 0, probabilistic, layers)


def head_drafter(
    model: ModelShape, head: ModelShape, method: str, num_speculative_tokens: int, *, probabilistic: bool
) -> Drafter:
    """An EAGLE or EAGLE-3 head, as `sizing.heads` reads it, served in the model's number type."""
    aux = (head.aux_hidden_states or _AUX_STATES) if method == "eagle3" else 0
    served = head.served_as(model.dtype)
    return Drafter(method, num_speculative_tokens, head.cache_layers, head.name, aux, probabilistic, served)


def small_drafter(model: ModelShape, small: ModelShape, num_speculative_tokens: int, *, probabilistic: bool) -> Drafter:
    """A smaller model of the same vocabulary, whole, served in the model's number type.

    Raises:
        QuestionError: the vocabularies differ (config/speculative.py: verify_equal_vocab_size_if_draft_model).
    """
    if small.vocab_size != model.vocab_size:
        raise QuestionError(
            f"{small.name} has a vocabulary of {small.vocab_size:,} and {model.name} of {model.vocab_size:,}; "
            "draft with a smaller model of the same family"
        )
    served = small.served_as(model.dtype)
    return Drafter("draft_model", num_speculative_tokens, small.cache_layers, small.name, 0, probabilistic, served)


def following(drafter: Drafter | None, model: ModelShape) -> Drafter | None:
    """The same drafter for the model packed otherwise: prediction layers are packed with it."""
    if drafter is None or drafter.method != "mtp":
        return drafter
    return replace(drafter, model=model.predictor)
