"""One engine step by a roofline: the time to read what it needs or to compute it, whichever is longer."""

from dataclasses import dataclass

from sizing.cards import Card
from sizing.efficiency import Efficiency
from sizing.errors import QuestionError
from sizing.gpu import Link
from sizing.speed_shape import BYTES_PER_PARAMETER, FOUR_BIT, SpeedShape, WeightFormat

_ACTIVATION_BYTES = 2
_WAY_OUT = "describe the machine by its memory and clock (sizing.cards.processor)"


@dataclass(frozen=True)
class Engine:
    """The cards of one engine. Experts are spread over all cards of a stage, attention over tensor parallel ranks."""

    card: Card
    link: Link
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    """Replicas of the attention layers that share one set of experts and so keep step with each other."""
    max_running: int | None = None
    """Requests that run at once at most: `max_num_seqs`, or what the KV cache holds. None: all of them."""
    max_num_batched_tokens: int = 8192
    pipeline_parallel_size: int = 1
    """Stages that hold a part of the layers each, and as many batches in flight."""

    def __post_init__(self) -> None:
        sizes = (self.tensor_parallel_size, self.data_parallel_size, self.pipeline_parallel_size)
        if min(sizes) < 1 or (self.max_running is not None and self.max_running < 1):
            raise QuestionError("tensor, data and pipeline parallel sizes and max_running have to be at least 1")

    @property
    def stage_cards(self) -> int:
        """Cards that work on one layer together."""
        return self.tensor_parallel_size * self.data_parallel_size

    @property
    def num_cards(self) -> int:
        return self.stage_cards * self.pipeline_parallel_size


@dataclass(frozen=True)
class Roofline:
    """A model on an engine, as times in seconds."""

    shape: SpeedShape
    engine: Engine
    efficiency: Efficiency

    @property
    def fixed_s(self) -> float:
        """What every step costs whatever it holds: launches, the latency of all-reduces, and of hops between stages."""
        e, shape, link = self.efficiency, self.shape, self.engine.link
        exchange_s = e.layer_all_reduce_s(link) if self.engine.stage_cards > 1 else 0.0
        hops_s = (self.engine.pipeline_parallel_size - 1) * e.hop_s(link)
        layer_s = e.layer_s + self._quantizing_s(shape.dense_format) + exchange_s
        expert_layer_s = e.expert_layer_s + self._quantizing_s(shape.expert_format)
        return shape.layers * layer_s + shape.moe_layers * expert_layer_s + hops_s

    def decode_s(self, running: float, context: float) -> float:
        """One token for each of `running` sequences of `context` tokens, spread over the replicas and the stages."""
        e, tp = self.efficiency, self.engine.tensor_parallel_size
        running = max(1.0, running / self.engine.pipeline_parallel_size)  # of one batch in flight
        batch = running / self.engine.data_parallel_size  # sequences of one replica
        kv_s = self._read_s(batch * self.shape.kv_bytes(context, tp), e.kv_bandwidth, e.on_chip_bandwidth)
        weights_s = self._dense_s(batch) + self._experts_s(running) + self._output_s(batch)
        return weights_s + kv_s + self._exchange_s(batch) + self.fixed_s + e.step_s + e.sequence_s * batch

    def decode_computes(self, running: float) -> bool:
        """Whether such a step takes longer in arithmetic than in reading weights."""
        running = max(1.0, running / self.engine.pipeline_parallel_size)
        dense, experts = self._dense(running / self.engine.data_parallel_size), self._experts(running)
        return dense.compute_s + experts.compute_s > dense.read_s + experts.read_s

    def prefill_s(self, tokens: float, cached: float = 0.0, *, beside: float = 0.0, together: float = 1.0) -> float:
        """What `tokens` of a prompt, after `cached` ones, add to steps that advance `beside` sequences anyway.

        Weights that those sequences read are not read again, and `together` prompts in one step read them once for all.
        What does not fit in a step takes several.
        """
        shape, e = self.shape, self.efficiency
        steps = max(1.0, tokens * together / self.engine.max_num_batched_tokens)
        chunk, batch = tokens * together / steps, beside / self.engine.data_parallel_size
        linear_s = self._dense_s(chunk + batch) + self._experts_s(chunk + beside)
        if beside:
            linear_s -= self._dense_s(batch) + self._experts_s(beside)
        attention_flops = 2 * tokens * shape.attention_macs(cached + tokens / 2)
        rate = self._rate("16bit", e.dense_compute) * self.engine.tensor_parallel_size
        step_s = linear_s + self._exchange_s(chunk) + shape.layers * e.prefill_layer_s
        return steps * step_s / together + attention_flops / rate

    def touched_experts(self, tokens: float) -> float:
        """Of one layer's experts, how many `tokens` of one step are expected to need."""
        experts = self.shape.experts
        if not experts:
            return 0.0
        missed = 1 - self.shape.experts_per_token / experts
        touched: float = experts * (1 - missed ** (tokens**self.efficiency.routing_independence))
        return touched

    def _read_s(self, read_bytes: float, reached: float, on_chip_bandwidth: float) -> float:
        """Reading from memory at a share of its bandwidth, and moving what was read through the chip after it."""
        bandwidth = self.engine.card.bandwidth
        if bandwidth is None:
            raise QuestionError(f"the memory bandwidth of {self.engine.card.name} is not known; {_WAY_OUT}")
        return read_bytes / (reached * bandwidth) + read_bytes / on_chip_bandwidth

    def _dense_s(self, tokens: float) -> float:
        return self._dense(tokens).longer_s

    def _experts_s(self, tokens: float) -> float:
        return self._experts(tokens).longer_s

    def _dense(self, tokens: float) -> "_Product":
        """`tokens` through what all of them pass, on one replica."""
        e, fmt, tp = self.efficiency, self.shape.dense_format, self.engine.tensor_parallel_size
        on_chip = e.on_chip_bandwidth_4bit if fmt in FOUR_BIT else e.on_chip_bandwidth
        parameters = self.shape.dense_parameters / tp
        return _Product(
            self._read_s(parameters * BYTES_PER_PARAMETER[fmt], e.dense_bandwidth, on_chip),
            2 * parameters * tokens / self._rate(fmt, e.dense_compute),
        )

    def _experts(self, tokens: float) -> "_Product":
        """`tokens` through the experts that they choose, on all cards of a stage."""
        shape, e, fmt = self.shape, self.efficiency, self.shape.expert_format
        if not shape.experts:
            return _Product(0.0, 0.0)
        fused = self._fused_experts
        on_chip = e.expert_on_chip_bandwidth_fused if fused else e.expert_on_chip_bandwidth
        compute = e.expert_compute_fused if fused else e.expert_compute
        parameters = shape.moe_layers * shape.expert_parameters / self.engine.stage_cards
        return _Product(
            self._read_s(
                parameters * self.touched_experts(tokens) * BYTES_PER_PARAMETER[fmt], e.dense_bandwidth, on_chip
            ),
            2 * parameters * shape.experts_per_token * tokens / self._rate(fmt, compute),
        )

    def _quantizing_s(self, fmt: WeightFormat) -> float:
        """What bringing the activations to the weights' format costs a layer, where the matrix units take that."""
        return 0.0 if _native_rate(self.engine.card, fmt) is None else self.efficiency.narrow_layer_s

    @property
    def _fused_experts(self) -> bool:
        """On B200-class cards vLLM has FlashInfer's kernels for a layer's experts; elsewhere Triton's or Marlin's."""
        capability = self.engine.card.compute_capability
        return capability is not None and capability[0] == 10

    def _output_s(self, tokens: float) -> float:
        e = self.efficiency
        parameters = self.shape.output_parameters / self.engine.tensor_parallel_size
        read_s = self._read_s(parameters * BYTES_PER_PARAMETER["16bit"], e.dense_bandwidth, e.on_chip_bandwidth)
        return max(read_s, 2 * parameters * tokens / self._rate("16bit", e.dense_compute))

    def _exchange_s(self, tokens: float) -> float:
        """The bytes of two all-reduces per layer: each rank sends and receives 2 (n - 1) / n of the activations."""
        tp = self.engine.tensor_parallel_size
        if tp == 1:
            return 0.0
        link = self.engine.card.link_bandwidth
        if link is None:
            raise QuestionError(f"the link of {self.engine.card.name} is not known; use tensor_parallel_size 1")
        moved = 2 * 2 * (tp - 1) / tp * tokens * self.shape.hidden_size * _ACTIVATION_BYTES
        return self.shape.layers * moved / (self.efficiency.link_share * link / 2)

    def _rate(self, fmt: WeightFormat, reached: float) -> float:
        """FLOP/s that weights of that format reach on one card."""
        half = half_rate(self.engine.card)
        gain = max(1.0, (_native_rate(self.engine.card, fmt) or half) / half)
        rate: float = reached * half * gain**self.efficiency.narrow_gain
        return rate


@dataclass(frozen=True)
class _Product:
    """Activations times weights: the time to read the weights, and to multiply."""

    read_s: float
    compute_s: float

    @property
    def longer_s(self) -> float:
        return max(self.read_s, self.compute_s)


def half_rate(card: Card) -> float:
    """The card's 16-bit FLOP/s; where only FP4's is published, a quarter of that, as on every card that gives both.

    Raises:
        QuestionError: neither is known.
    """
    if card.flops_16bit is not None:
        return card.flops_16bit
    if card.flops_fp4 is not None:
        return card.flops_fp4 / 4
    raise QuestionError(f"the arithmetic rate of {card.name} is not known; {_WAY_OUT}")


def _native_rate(card: Card, fmt: WeightFormat) -> float | None:
    """What the matrix units do with that format; None where it is widened to 16 bits first."""
    if fmt == "fp8":
        return _fp8_rate(card)
    if fmt == "int8":
        return card.ops_int8
    if fmt == "nvfp4":
        return card.flops_fp4
    return None  # MXFP4 too: of the kernels for gpt-oss vLLM prefers those that leave activations in 16 bits


def _fp8_rate(card: Card) -> float | None:
    """Where only FP4's rate is published, half of that."""
    if card.flops_fp8 is None and card.flops_16bit is None and card.flops_fp4 is not None:
        return card.flops_fp4 / 2
    return card.flops_fp8
