"""Recurrent mixers other than delta nets: what one remembers of a sequence, and its parameters."""

from dataclasses import dataclass

from sizing.held import Split, Weight
from sizing.layers import Recurrent
from sizing.matrices import Parts, linear, norm

_MAMBA1_CHUNK = 2048  # vllm/config/model.py: get_mamba_chunk_size, for a kernel that knows no chunks


@dataclass(frozen=True)
class Mamba2:
    """A Mamba-2 mixer (vllm/model_executor/layers/mamba/mamba_mixer2.py)."""

    heads: int
    head_dim: int
    groups: int
    """Of states that heads share. A sole one is repeated on every rank, several are dealt out."""
    state_size: int
    conv_kernel: int
    conv_bias: bool
    bias: bool = False
    """Of the projections in and out."""
    normed: bool = True
    state_bytes: int | None = None
    """Bytes per element of the states; None: as wide as the served type."""
    chunk_tokens: int = 256

    @property
    def inner(self) -> int:
        """Channels of the heads together."""
        return self.heads * self.head_dim

    def state(self) -> Recurrent:
        return Recurrent(
            conv_channels=self.inner,
            conv_tokens=self.conv_kernel - 1,
            heads=self.heads,
            head_elements=self.head_dim * self.state_size,
            state_bytes=self.state_bytes,
            groups=self.groups,
            group_channels=2 * self.state_size,
            checkpoints=1,
            chunk_tokens=self.chunk_tokens,
        )

    def weights(self, name: str, hidden: int) -> Parts:
        """Gate, input, groups and time steps in; the convolution; three numbers per head; the norm; the output."""
        grouped = 2 * self.groups * self.state_size
        split: Split = "replicated" if self.groups == 1 else "sharded"
        per_channel = self.conv_kernel + int(self.conv_bias)
        yield linear(f"{name}.in_proj", 2 * self.inner + self.heads, hidden)
        yield linear(f"{name}.in_proj", grouped, hidden, split)
        yield linear(f"{name}.out_proj", hidden, self.inner)
        yield Weight(f"{name}.conv1d", (self.inner, per_channel), "sharded")
        yield Weight(f"{name}.conv1d", (grouped, per_channel), split)
        yield Weight(f"{name}.A_log", (3 * self.heads,), "sharded")
        if self.normed:
            yield Weight(f"{name}.norm", (self.inner,), "sharded")
        if self.bias:
            yield Weight(f"{name}.in_proj.bias", (2 * self.inner + self.heads,), "sharded")
            yield Weight(f"{name}.in_proj.bias", (grouped,), split)
            yield norm(f"{name}.out_proj.bias", hidden)


@dataclass(frozen=True)
class Mamba1:
    """A Mamba mixer (vllm/model_executor/layers/mamba/mamba_mixer.py), whose channels each have a state."""

    inner: int
    state_size: int
    conv_kernel: int
    time_step_rank: int
    conv_bias: bool
    bias: bool = False
    normed: bool = False
    """With weighted norms of what selects the states (Jamba); those of Falcon Mamba have no weights."""

    def state(self) -> Recurrent:
        return Recurrent(
            conv_channels=self.inner,
            conv_tokens=self.conv_kernel - 1,
            heads=self.inner,
            head_elements=self.state_size,
            state_bytes=None,
            chunk_tokens=_MAMBA1_CHUNK,
        )

    def weights(self, name: str, hidden: int) -> Parts:
        """vLLM gives no quantization to these matrices, and keeps the decay in float32."""
        selected = self.time_step_rank + 2 * self.state_size
        yield Weight(f"{name}.in_proj", (2 * self.inner, hidden), "sharded")
        yield Weight(f"{name}.x_proj", (selected, self.inner), "sharded")
        yield Weight(f"{name}.dt_proj", (self.inner, self.time_step_rank + 1), "sharded")  # and its bias
        yield Weight(f"{name}.out_proj", (hidden, self.inner), "sharded")
        yield Weight(f"{name}.conv1d", (self.inner, self.conv_kernel + int(self.conv_bias)), "sharded")
        yield Weight(f"{name}.A_log", (self.inner, self.state_size), "sharded")
        yield Weight(f"{name}.D", (self.inner,), "sharded")
        if self.normed:
            yield norm(f"{name}.layernorm", selected)
        if self.bias:
            yield Weight(f"{name}.in_proj.bias", (2 * self.inner,), "sharded")
            yield norm(f"{name}.out_proj.bias", hidden)


@dataclass(frozen=True)
class ShortConvolution:
    """A gated convolution over a few tokens, whose inputs are all it remembers (layers/mamba/short_conv.py)."""

    channels: int
    kernel: int
    bias: bool

    def state(self) -> Recurrent:
        return Recurrent(self.channels, self.kernel - 1, heads=self.channels, head_elements=0, state_bytes=None)

    def weights(self, name: str, hidden: int) -> Parts:
        yield linear(f"{name}.in_proj", 3 * self.channels, hidden)
        yield linear(f"{name}.out_proj", hidden, self.channels)
        yield Weight(f"{name}.conv", (self.channels, self.kernel + int(self.bias)), "sharded")
        if self.bias:
            yield Weight(f"{name}.in_proj.bias", (3 * self.channels,), "sharded")
            yield norm(f"{name}.out_proj.bias", hidden)
