"""How fast one engine computes, and how much it holds: a few calibrated numbers, as data."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Card:
    """A model on a card. One step takes

    step_s + prompt tokens x (token_s + attention_s x tokens before each) + sequences x sequence_s
           + context tokens read by all sequences x context_s
    """

    name: str
    step_s: float
    """Whatever is in it: weights are read, kernels launched."""
    token_s: float
    """One more prompt token."""
    attention_s: float
    """One prompt token and one token before it."""
    sequence_s: float
    """One more sequence that gets a token."""
    context_s: float
    """One token in the KV cache of such a sequence."""
    kv_capacity_tokens: int
    source: str
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 1024

    def prefill_s(self, tokens: int, before: int) -> float:
        """What `tokens` of a prompt, behind `before` others of it, add to steps."""
        return tokens * (self.token_s + self.attention_s * (before + tokens / 2))


CARDS: Mapping[str, Card] = {
    "h100-8b": Card(
        name="Llama-3.1-8B on one H100",
        step_s=6.7e-3,
        token_s=25e-6,
        attention_s=9.75e-10,
        sequence_s=1.45e-5,
        context_s=8.7e-8,
        kv_capacity_tokens=440_000,
        source="the roofline of `berth size`, fitted to public runs",
    ),
    "reference": Card(
        name="vllm-router's reference fit (the model is not named)",
        step_s=10.6e-3,
        token_s=57e-6,
        attention_s=8.8e-9,
        sequence_s=0.42e-3,
        context_s=1.42e-7,
        kv_capacity_tokens=440_000,
        source="vllm-router's program scheduling: prefill 0.057 s/k + 0.0044 s/k^2, decode 10.6 ms + 0.42 ms/request "
        "+ 1.42e-7 s/context token; its 0.066 s a prompt are left out, the KV cache is a guess",
    ),
}
