"""What a model's weights weigh in memory, split by what parallelism does to them."""

from dataclasses import dataclass, replace
from typing import Literal

from sizing.gpu import HOPPER
from sizing.release import Release

Split = Literal["sharded", "kv", "replicated", "experts", "embedding", "output", "encoder"]
"""`sharded`: divided by the tensor-parallel size; `kv`: as far as there are key-value heads, repeated beyond;
`experts`: divided, or dealt out whole under expert parallelism; the vocabulary's two tables; a multimodal encoder."""
StageTables = Literal["none", "embedding", "both"]


@dataclass(frozen=True)
class Weight:
    """One parameter of the model as vLLM holds it, or several that are alike (a layer's experts)."""

    name: str
    """The checkpoint's name for its module; `*` stands for the number of an expert."""
    shape: tuple[int, ...]
    """Of one copy; a matrix is (outputs, inputs)."""
    split: Split = "replicated"
    layer: int | None = None
    """The decoder layer it belongs to; None: it stands before or behind them."""
    linear: bool = False
    """It is applied by a linear method of vLLM's, so a quantization may take it."""
    copies: int = 1

    @property
    def num_elements(self) -> int:
        count = self.copies
        for extent in self.shape:
            count *= extent
        return count


@dataclass(frozen=True)
class Portion:
    """Bytes of one decoder layer, or of all of them."""

    sharded: int = 0
    kv: int = 0
    replicated: int = 0
    experts: int = 0

    def __add__(self, other: "Portion") -> "Portion":
        return Portion(
            self.sharded + other.sharded,
            self.kv + other.kv,
            self.replicated + other.replicated,
            self.experts + other.experts,
        )

    def scaled(self, scale: float) -> "Portion":
        """The same parameters in a number type that is `scale` times as wide."""
        return Portion(*(round(size * scale) for size in (self.sharded, self.kv, self.replicated, self.experts)))

    @property
    def total(self) -> int:
        return self.sharded + self.kv + self.replicated + self.experts


@dataclass(frozen=True)
class ExpertTiles:
    """The size of one expert in MXFP4, whose kernels round both of its sides up."""

    hidden_size: int
    intermediate_size: int

    def growth(self, ranks: int, compute_major: int | None, release: Release) -> float:
        """What the kernel multiplies an expert's bytes by when `ranks` share its intermediate side.

        Marlin and TRT-LLM round the hidden side to 256, the other to 128 (vllm/model_executor/layers/fused_moe/oracle/
        mxfp4.py). On Hopper Triton's kernels are the default, see `_triton_bytes`.
        """
        hidden, share = self.hidden_size, self.intermediate_size / ranks
        if compute_major == HOPPER:
            return self._triton_bytes(share, release) / (3 * hidden * share * _MXFP4_BYTES)
        return _up(hidden, 256) * _up(share, 128) / (hidden * share)

    def _triton_bytes(self, exact: float, release: Release) -> float:
        """One expert's share of so many columns, with all that Triton's kernels add to it.

        The columns are rounded to 64 (oracle/mxfp4.py). Inputs are padded to 32 packed bytes by triton_kernels, and to
        64 by those that come with Triton 3.6 (tensor_details/layout_details/hopper_value.py there); the logs of an H100
        show the former in 0.14.1 and the latter in 0.19. The loaded scales stay beside their copy in the kernel's
        order, whose outputs are padded to 256 (hopper_scale.py), and biases become float32.
        """
        hidden, share = self.hidden_size, _up(exact, 64)
        inputs = 128 if release >= _WITH_TRITON_3_6 else 64
        values = (2 * share * _up(hidden, inputs) + hidden * _up(share, inputs)) / 2
        scales = (3 * share * hidden + _up(2 * share, 256) * hidden + _up(hidden, 256) * share) / 32
        return values + scales + 4 * (2 * share + hidden) - 2 * (2 * exact + hidden)


_MXFP4_BYTES = 17 / 32  # of one number: half a byte, and one for the scale of 32
_WITH_TRITON_3_6 = Release(15)


def _up(size: float, multiple: int) -> int:
    return -int(-size // multiple) * multiple


@dataclass(frozen=True)
class HeldWeights:
    """A whole model's bytes, undivided and without padding of the vocabulary."""

    layers: tuple[Portion, ...]
    decoder: Portion
    """All layers together."""
    embedding: int
    output: int
    """0 where it is the embedding's own table."""
    last_norm: int
    """And what else stands before the layers or behind them."""
    encoder: int
    buffers: int
    """Rotary tables: not in the checkpoint, but on every rank."""
    num_key_value_heads: int
    num_experts: int
    vocab_size: int
    tiles: ExpertTiles | None = None
    encoder_whole: int = 0
    """Of `encoder`: what every rank holds of it undivided."""
    encoder_by_heads: int = 0
    """Of `encoder`: what is undivided too where the ranks do not divide its `encoder_heads`."""
    encoder_heads: int = 1
    encoder_whole_in: tuple[Release, Release] = (Release(0), Release(0))
    """From the first of these releases to before the second that is all of it."""
    latent: bool = False
    """Whether some layers keep latent vectors, for which some releases hold a workspace from the start."""
    stage_tables: StageTables = "none"
    """What of the vocabulary's tables each pipeline stage has, whether it uses it or not."""
    tensors: tuple[tuple[Portion, int], ...] = ()
    """The layers' matrices as vLLM fuses them, and how many there are of each size."""

    @property
    def weights_bytes(self) -> int:
        """What the checkpoint's tensors weigh once loaded."""
        return self.decoder.total + self.embedding + self.output + self.last_norm + self.encoder

    def encoder_per_rank(self, ranks: int, release: Release) -> float:
        first, end = self.encoder_whole_in
        if first <= release < end:
            return self.encoder
        whole = self.encoder_whole + (self.encoder_by_heads if self.encoder_heads % ranks else 0)
        return whole + (self.encoder - whole) / ranks

    def scaled(self, scale: float) -> "HeldWeights":
        """The same model in a number type that is `scale` times as wide."""
        return replace(
            self,
            layers=tuple(portion.scaled(scale) for portion in self.layers),
            decoder=self.decoder.scaled(scale),
            embedding=round(self.embedding * scale),
            output=round(self.output * scale),
            last_norm=round(self.last_norm * scale),
            encoder=round(self.encoder * scale),
            encoder_whole=round(self.encoder_whole * scale),
            encoder_by_heads=round(self.encoder_by_heads * scale),
            buffers=round(self.buffers * scale),
            tensors=tuple((portion.scaled(scale), count) for portion, count in self.tensors),
        )
