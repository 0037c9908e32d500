"""Which of vLLM's rules hold in which release, each with the file it was read from.

Read by comparing the sources of 0.8.5 to 0.32.0; a development build is taken as the release it is named after, unless
its number says that it is a few commits after the one before ("0.11.1.dev12").
"""

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from sizing.gpu import GIB

Engine = Literal["V0", "V1"]
Usage = Literal["server", "offline"]
Refusal = Literal["tokens", "layers", "first group of all stages", "first group", "groups", "groups and null block"]
MambaCacheMode = Literal["none", "align", "all"]

_VERSION = re.compile(r"(?<![\w.])v?([01])\.(\d+)(?![\dx])(?:\.(\d+))?")
_COMMITS = re.compile(r"\d\.dev(\d+)")  # since the last release's tag, where no candidate's (rc) is named
_FEW_COMMITS = 100
_AFTER_V0 = re.compile(r"\(20(?:2[6-9]|[3-9]\d)-\d\d")  # a date behind a build without a number
_LAST_V0_DEFAULT = 7
_LAST_OF_TWO_ENGINES = 11  # V0 was removed in it: what names its engine after that has no reason to


@dataclass(frozen=True, order=True)
class Release:
    """A version of vLLM, 0.`minor`.`patch`. Releases compare by these two alone."""

    minor: int
    patch: int = 0
    known: bool = field(default=True, compare=False)
    """False where the version was not given or not understood, and this one is assumed."""
    named_engine: Engine | None = field(default=None, compare=False)
    """What the log or the operator says ran; None: the release's default."""

    def __str__(self) -> str:
        return f"{self.minor // 1000}.{self.minor % 1000}.{self.patch}"

    @cached_property
    def engine(self) -> Engine:
        """V1 is the default from 0.8.0 on (engine/arg_utils.py), where the card and the features allow it."""
        return self.named_engine or ("V1" if self >= Release(8) else "V0")

    def on_card(self, compute_major: int) -> "Release":
        """The release as it runs there: before 0.10.2 cards before Ampere fell back to V0 (engine/arg_utils.py)."""
        falls_back = self.named_engine is None and Release(8) <= self < Release(10, 2) and compute_major < 8
        return replace(self, named_engine="V0") if falls_back else self

    @property
    def gpu_memory_utilization(self) -> float:
        """The default (config/cache.py)."""
        return 0.92 if self >= Release(20) else 0.9

    @property
    def cudagraphs_in_budget(self) -> bool:
        """Whether an estimate for CUDA graphs comes off the KV cache (envs.py, v1/worker/gpu_worker.py)."""
        return self.engine == "V1" and self >= Release(20)

    @property
    def second_runner_estimates_graphs(self) -> bool:
        """Before, its estimate was a placeholder that said 0 (v1/worker/gpu/model_runner.py)."""
        return self >= Release(29)

    @property
    def estimates_graphs_on_rocm(self) -> bool:
        """Before, the estimate was made on NVIDIA's cards alone (v1/worker/gpu_worker.py)."""
        return self >= Release(26)

    @property
    def times_joined_kernels(self) -> bool:
        """Whether compiling joins independent kernels where timing them says so (config/compilation.py)."""
        return self.engine == "V1" and self >= Release(11, 1)

    @property
    def counts_what_stays(self) -> bool:
        """Whether all that is gone from the card since the start counts: before, only the weights, what the profile run
        adds at its peak and what PyTorch does not see, and nothing made in between (utils/mem_utils.py).
        """
        return self >= Release(27)

    @property
    def counts_cuda_context(self) -> bool:
        """Whether all that PyTorch did not take itself counted, CUDA's context too (v1/worker/gpu_worker.py)."""
        return self.engine == "V1" and self < Release(9, 1)

    @property
    def async_scheduling(self) -> bool:
        """Whether the next batch is scheduled before the last is settled by default (config/vllm.py)."""
        return self.engine == "V1" and self >= Release(14)

    @property
    def tokens_from_concurrency(self) -> bool:
        """Logged tokens: max_concurrency x max_model_len, before blocks // groups x tokens (kv_cache_utils.py)."""
        return self >= Release(21)

    @property
    def concurrency_from_tokens(self) -> bool:
        """Max concurrency: tokens / max_model_len, since 0.9.1 blocks / a request's blocks (kv_cache_utils.py)."""
        return self.engine == "V0" or self < Release(9, 1)

    @cached_property
    def refusal(self) -> Refusal:
        """What has to fit for a start (v1/core/kv_cache_utils.py; V0: worker/worker.py).

        `tokens`: a request's tokens in the blocks. `layers`: a request in every layer of a stage. `first group...`: the
        first group's blocks for all layers, once even those of other stages. `groups`: all groups' blocks.
        """
        if self.engine == "V0":
            return "tokens"
        since: tuple[tuple[int, Refusal], ...] = (
            (29, "groups and null block"),
            (19, "groups"),
            (17, "first group"),
            (14, "first group of all stages"),
        )
        return next((refusal for minor, refusal in since if self >= Release(minor)), "layers")

    def in_flight_tokens(self, max_num_batched_tokens: int, pipeline_parallel_size: int, *, overlapped: bool) -> int:
        """Tokens a window holds on to beside itself (v1/kv_cache_interface.py, config/vllm.py).

        One batch before 0.26, then every batch that may be under way: `overlapped` is async scheduling, which the
        model runner that is the default since 0.29 combines with pipeline parallelism.
        """
        if self < Release(26):
            return max_num_batched_tokens
        ahead = overlapped and (pipeline_parallel_size == 1 or self >= Release(29))
        return (pipeline_parallel_size + int(ahead)) * max_num_batched_tokens

    @property
    def latent_workspace_bytes(self) -> int:
        """What looking for a kernel for latent attention leaves on a CUDA card, and loading the model counts.

        Each kernel's module was imported to be asked, and FlashInfer's allocated its workspace when imported
        (v1/attention/backends/mla/flashinfer_mla.py, platforms/cuda.py); before, only what ran was imported.
        """
        return 128 * 1024**2 if Release(11, 2) <= self < Release(25) else 0

    # How layers are grouped (v1/core/kv_cache_utils.py).

    @property
    def windows_keep_every_token(self) -> bool:
        """Windows beside full attention were allocated like it until the hybrid KV cache manager came (0.9.1)."""
        return self.engine == "V0" or self < Release(9, 1)

    @property
    def chunks_turn_hybrid_off(self) -> bool:
        """Models with chunked local attention ran without the hybrid manager by default before 0.14 (envs.py)."""
        return self.engine == "V0" or self < Release(14)

    @property
    def groups_unequal_pages(self) -> bool:
        """Layers that need the same blocks share a group whatever their pages' sizes (UniformTypeKVCacheSpecs)."""
        return self >= Release(11)

    @property
    def projects_groups(self) -> bool:
        """Before 0.17 a stage's block in a group of unequal pages counted the layers of the other stages too."""
        return self.engine == "V0" or self >= Release(17)

    @property
    def keeps_all_beside_latent(self) -> bool:
        """Windows beside latent attention keep every token where no page size fits both, instead of a refusal."""
        return self >= Release(27)

    @property
    def unifies_pages(self) -> bool:
        """Blocks grow until all pages are equally large (unify_kv_cache_spec_page_size)."""
        return self >= Release(12)

    @property
    def pads_states(self) -> bool:
        return self >= Release(26)

    @property
    def pads_attention(self) -> bool:
        """Pages that do not divide are padded: since 0.24 where the kernel allows it, as the default ones do."""
        return self >= Release(24)

    @property
    def packs_pages(self) -> bool:
        """Pages of one block side by side, whatever the kinds (_get_packed_kv_cache_groups)."""
        return self >= Release(29)

    @property
    def longest_group_ratio(self) -> float:
        """Groups are as long as the commonest kind where that has fewer than so many times the rarest's layers."""
        if self >= Release(18):
            return 1.5
        return 1.25 if self >= Release(12) else 1.0

    # Recurrent layers (model_executor/models/config.py, config/model.py, kv_cache_interface.py).

    @property
    def prefix_caching_beside_states(self) -> bool:
        """Whether prefix caching is on by default for models with recurrent layers."""
        return self >= Release(28)

    def mamba_cache_mode(self, *, prefix_caching: bool, all_supported: bool) -> MambaCacheMode:
        """`all` keeps the state of every block, `align` of the last boundary too, `none` the current one alone."""
        if not prefix_caching or self < Release(11) or (self < Release(15) and not all_supported):
            return "none"
        return "all" if all_supported and self < Release(32) else "align"

    @property
    def state_checkpoints(self) -> bool:
        """Whether a Mamba-2 kernel exports states inside a prefill (layers/mamba/mamba_mixer2.py)."""
        return self >= Release(32)

    # What a cache type means where an indexer picks tokens (models/config.py, layers/attention/mla_attention.py).

    def packs_sparse_latents(self, kv_cache_dtype: str, compute_major: int) -> bool:
        """Whether latent vectors beside an indexer are packed into 656 bytes (fp8_ds_mla).

        fp8 on Hopper always is; 0.11 packed even when told nothing, consumer Blackwell still does, and B200-class cards
        keep a plain byte per element since 0.18.
        """
        if kv_cache_dtype == "fp8_ds_mla":
            return True
        if compute_major == 12:
            return kv_cache_dtype in ("auto", "fp8", "fp8_e4m3")
        if kv_cache_dtype == "auto":
            return self < Release(12)
        return kv_cache_dtype.startswith("fp8") and (compute_major == 9 or self < Release(18))

    def sparse_auto_dtype(self, architecture: str, compute_major: int) -> str:
        """What `auto` becomes beside an indexer before it is laid out: fp8 for GLM on B200-class cards since 0.29."""
        fp8 = architecture == "GlmMoeDsaForCausalLM" and compute_major == 10 and self >= Release(29)
        return "fp8_e4m3" if fp8 else "auto"

    def hybrid_latent_alignment(self, block_size: int) -> int:
        """Tokens that a block beside recurrent layers is a multiple of, with latent attention (platforms/interface.py).

        128 since 0.26, the kernel's own since 0.20, and before 64 (models/config.py).
        """
        if self >= Release(26):
            return max(block_size, 128)
        return block_size if self >= Release(20) else 64


NEWEST = Release(32)
OLDEST = Release(6)
"""The first whose rules are known; what is older is answered by these, and newer ones by the newest's."""


def parse_release(text: str | None, engine: Engine | None = None) -> Release:
    """What people and logs write, "v0.10.1+g1234" or "0.8.x (log 03-29)"; what says nothing is the newest release.

    `engine` is what the log names: V0 without a version is the last release that started it by default, and V1 the
    last that had both, unless a date behind it says that V0 was gone ("dev 4d2a68d64 (2026-08)").
    """
    found = _VERSION.search(text) if text else None
    if found is None and text and _AFTER_V0.search(text):
        return Release(NEWEST.minor, known=False, named_engine=engine)
    if found is None:
        minor = {"V0": _LAST_V0_DEFAULT, "V1": _LAST_OF_TWO_ENGINES}.get(engine or "", NEWEST.minor)
        return Release(minor, known=False, named_engine=engine)
    major, minor, patch = (int(part or 0) for part in found.groups())
    commits = _COMMITS.match(text or "", found.end() - 1)
    if commits and patch and int(commits[1]) < _FEW_COMMITS:
        patch -= 1
    return Release(major * 1000 + minor, patch, named_engine=engine)  # a 1.0 is newer than every rule here


def batch_defaults(
    release: Release,
    *,
    memory_bytes: int,
    name: str,
    unified: bool = False,
    usage: Usage = "server",
    max_model_len: int | None = None,
) -> tuple[int, int]:
    """max_num_seqs and max_num_batched_tokens on a card (engine/arg_utils.py: get_batch_defaults).

    V0 takes whole prompts, so its batch is as long as the context; past 32K tokens it chunks them.
    """
    if release.engine == "V0":
        length = max_model_len or 0
        return 256, 2048 if length > 32_768 else max(2048, length)
    offline = usage == "offline"
    if unified:  # NVML cannot tell vLLM the memory of such a card, which then counts as small
        return 256, 8192 if offline else 2048
    if memory_bytes >= 160 * GIB and release >= Release(28):
        return 1024, 16384
    if memory_bytes >= 70 * GIB and (release < Release(9) or "a100" not in name.lower()):
        return 1024, 16384 if offline else 8192
    return 256, 8192 if offline else 2048
