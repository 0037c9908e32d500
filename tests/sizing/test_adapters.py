"""LoRA adapters: bytes worked by hand, what they change in a budget, and what is refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sizing.adapter_settings import RANKS, Adapters, read_adapters
from sizing.adapters import adapter_bytes, punica_bytes, shrunk_bytes
from sizing.config_json import parse_config
from sizing.errors import QuestionError, UnsupportedModelError
from sizing.gpu import GIB, Device, gpu
from sizing.log_lines import log_lines
from sizing.memory import Term
from sizing.model import ModelShape
from sizing.plan import answer
from sizing.question import Answer, Question
from sizing.release import Release
from tests.sizing.models import published, smollm2
from tests.sizing.test_layers_oracle import CHANGED
from tests.sizing.wrapper_models import WRAPPED

LLAMA_8B = published("meta-llama/Llama-3.1-8B-Instruct")
QWEN_30B = published("Qwen/Qwen3-30B-A3B")
QWEN_7B = published("Qwen/Qwen2.5-7B-Instruct")


def wrapped(name: str) -> ModelShape:
    return parse_config(WRAPPED[name].config, name=name)


def exact(model: ModelShape, adapters: Adapters, tp: int = 1, **how: int | bool) -> int:
    sizes = {"tensor_parallel_size": tp, "as_allocated": False, **how}
    return adapter_bytes(model, adapters, **sizes)  # type: ignore[arg-type]  # each is what its name takes


def term(found: Answer, name: str = "LoRA adapters") -> Term:
    return next(each for each in found.terms if each.name == name)


def test_llama_8b_by_hand() -> None:
    """A is rank x inputs and B outputs x rank; q, k, v and gate, up have an A each; both tables have adapters too."""
    attention = 3 * 4096 + (4096 + 1024 + 1024) + 4096 + 4096
    feed_forward = 2 * 4096 + 2 * 14336 + 14336 + 4096
    tables = 2 * (128256 + 4096)
    assert exact(LLAMA_8B, Adapters(1, 16)) == 16 * 2 * (32 * (attention + feed_forward) + tables) == 92_356_608
    assert exact(LLAMA_8B, Adapters(8, 64)) == 8 * 4 * 92_356_608


def test_ranks_divide_b_of_columns_and_a_of_rows_alone() -> None:
    attention = 3 * 4096 + (4096 + 1024 + 1024) // 4 + 4096 // 4 + 4096
    feed_forward = 2 * 4096 + 2 * 14336 // 4 + 14336 // 4 + 4096
    whole = 2 * (128256 + 4096)
    where = 8 * 128256  # each logit's place in the whole vocabulary
    assert exact(LLAMA_8B, Adapters(1, 16), 4) == 16 * 2 * (32 * (attention + feed_forward) + whole) + where


def test_fully_sharded_ranks_divide_both() -> None:
    attention = 3 * 4096 // 4 + (4096 + 1024 + 1024) // 4 + 4096 // 4 + 4096 // 4
    feed_forward = 2 * 4096 // 4 + 2 * 14336 // 4 + 14336 // 4 + 4096 // 4
    whole = 2 * (128256 + 4096)
    expected = 16 * 2 * (32 * (attention + feed_forward) + whole) + 8 * 128256
    assert exact(LLAMA_8B, Adapters(1, 16, fully_sharded_loras=True), 4) == expected


def test_every_expert_has_its_own() -> None:
    attention = 3 * 2048 + (4096 + 512 + 512) + 4096 + 2048
    router = 2048 + 128
    expert = 2 * 2048 + 2 * 768 + 768 + 2048
    tables = 2 * (151936 + 2048)
    flags = 48 * 4 * 2  # for one slot and none
    by_hand = 8 * 2 * (48 * (attention + router + 128 * expert) + tables) + flags
    assert exact(QWEN_30B, Adapters(1, 8)) == by_hand
    assert exact(QWEN_30B, Adapters(1, 8)) / 2**20 == pytest.approx(811, abs=1)  # where Llama-8B's are 44 MiB


def test_experts_are_dealt_out_whole_under_expert_parallelism() -> None:
    dense = exact(QWEN_30B, Adapters(2, 8, lora_target_modules=("experts",)))
    dealt = exact(QWEN_30B, Adapters(2, 8, lora_target_modules=("experts",)), 4, enable_expert_parallel=True)
    flags = 48 * 4 * 3
    assert dealt - flags == (dense - flags) / 4


def test_tables_are_on_the_ends_of_a_pipeline() -> None:
    adapters, table = Adapters(1, 16), 16 * 2 * (128256 + 4096)
    first, last = (exact(LLAMA_8B, adapters, pipeline_parallel_size=2, stage=stage) for stage in (0, 1))
    assert first == last == exact(LLAMA_8B, adapters) / 2
    middle = exact(LLAMA_8B, adapters, pipeline_parallel_size=4, stage=1)
    assert first - table == 2 * middle


@given(
    loras=st.integers(1, 64),
    rank=st.sampled_from(RANKS),
    tp=st.sampled_from((1, 2, 4, 8)),
    model=st.sampled_from((LLAMA_8B, QWEN_30B, QWEN_7B)),
)
def test_bytes_follow_slots_and_rank(loras: int, rank: int, tp: int, model: ModelShape) -> None:
    """Beside the indexes, whatever is twice as many or twice the rank takes twice the bytes."""

    def matrices(slots: int, of_rank: int) -> int:
        """Without the flags of mixtures and the places of logits."""
        flags = 4 * (slots + 1) * model.num_moe_layers
        tables = model is not QWEN_7B and tp > 1
        places = 8 * -(-model.vocab_size // 64) * 64 if tables else 0
        return exact(model, Adapters(slots, of_rank), tp) - flags - places

    assert matrices(loras, rank) == loras * rank * matrices(1, 1)
    assert matrices(loras, rank) >= exact(model, Adapters(loras, rank), 2 * tp) - 8 * (model.vocab_size + 64 * loras)


@given(named=st.sets(st.sampled_from(("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "embed_tokens", "lm_head"))))
def test_layers_that_are_named_add_up(named: set[str]) -> None:
    every = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "embed_tokens", "lm_head")
    one = {name: exact(LLAMA_8B, Adapters(2, 8, lora_target_modules=(name,))) for name in every}
    wanted = Adapters(2, 8, lora_target_modules=tuple(named))
    assert exact(LLAMA_8B, wanted) == sum(one[name] for name in named or every)


def test_one_part_of_a_fused_layer_names_all_of_it() -> None:
    assert exact(LLAMA_8B, Adapters(lora_target_modules=("k_proj",))) == exact(
        LLAMA_8B, Adapters(lora_target_modules=("qkv_proj",))
    )


def test_the_kernels_indexes() -> None:
    """Four int64 and twice two int32 a token, three int64 a sequence, and twice 3 x 4 + 4 int32 for four slots."""
    assert punica_bytes(Adapters(4), max_num_seqs=256, max_num_batched_tokens=8192) == 48 * 8192 + 24 * 256 + 128


def test_products_with_a_matrices() -> None:
    """Two of 8,192 tokens and rank 16: in float32, or for each of eight experts in bfloat16."""
    assert shrunk_bytes(Adapters(8, 16), LLAMA_8B, 8192) == 2 * 8192 * 16 * 4
    assert shrunk_bytes(Adapters(8, 16), QWEN_30B, 8192) == 2 * 8192 * 16 * 8 * 2


def test_they_take_kv_cache_and_are_loaded_with_the_model() -> None:
    plain = Question(LLAMA_8B, gpu("H100"), max_model_len=8192)
    without, found = answer(plain), answer(replace(plain, adapters=Adapters(8, 64)))
    taken = term(found)
    assert taken.bytes / GIB == pytest.approx(8 * 4 * 92_356_608 / GIB, abs=0.03)
    assert taken.low_bytes == taken.bytes == taken.high_bytes
    assert without.kv_cache_bytes - found.kv_cache_bytes > taken.bytes  # graphs are captured with and without them
    loaded = log_lines(replace(plain, adapters=Adapters(8, 64)), found)[0]
    assert loaded.value == pytest.approx((term(found, "weights").bytes + taken.bytes) / GIB, abs=1e-6)


def test_graphs_are_captured_with_adapters_and_without() -> None:
    assert Adapters(4).graph_cases == 2
    assert Adapters(4, specialize_active_lora=True).graph_cases == 5  # none, 1, 2, 4, and any with the model alone
    eager = Question(LLAMA_8B, gpu("H100"), max_model_len=8192, enforce_eager=True, adapters=Adapters())
    assert term(answer(eager), "CUDA graphs").bytes == 0


def test_fewer_at_once_is_a_way_out() -> None:
    """57 GiB of weights and 3.2 for each slot of rank 32: four are too many for a card of 79 GiB."""
    found = answer(Question(QWEN_30B, gpu("H100"), max_model_len=8192, adapters=Adapters(4, 32)))
    assert found.way_out is not None
    assert "--max-loras 2" in found.way_out


def test_older_releases_are_not_known_as_well() -> None:
    found = term(answer(Question(LLAMA_8B, gpu("H100"), adapters=Adapters(), release=Release(10))))
    assert found.low_bytes < found.bytes < found.high_bytes
    assert "as 0.32" in found.why


def test_on_a_processor() -> None:
    cpu = Device("cpu", "x86_64", 16 * GIB, 16 * GIB)
    found = answer(Question(smollm2(), cpu, max_model_len=2048, adapters=Adapters(2, 8)))
    attention, feed_forward = 3 * 576 + (576 + 2 * 192) + 2 * 576, 2 * 576 + 2 * 1536 + 1536 + 576
    each = 30 * (attention + feed_forward) + 2 * (49152 + 576)
    indexes = 48 * 2048 + 24 * 128 + 2 * 4 * (3 * 2 + 4)
    assert term(found).bytes == 2 * 8 * 2 * each + indexes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapters": Adapters(1, 8, lora_target_modules=("query",))}, "'query', which .* has not; it has .*q_proj"),
        (
            {"adapters": Adapters(1, 8, fully_sharded_loras=True), "enable_expert_parallel": True},
            "fully_sharded_loras does not go with enable_expert_parallel",
        ),
        (
            {"adapters": Adapters(1, 1, fully_sharded_loras=True), "count": 2, "tensor_parallel_size": 2},
            "tensor_parallel_size 2 does not divide the max_lora_rank 1",
        ),
    ],
)
def test_settings_that_contradict(changes: dict[str, object], said: str) -> None:
    with pytest.raises(QuestionError, match=said):
        answer(replace(Question(QWEN_30B, gpu("H200")), **changes))  # type: ignore[arg-type]  # as the names say


def test_fully_sharded_adapters_keep_to_sizes_that_divide_their_rank() -> None:
    adapters = Adapters(1, 1, fully_sharded_loras=True)
    found = answer(Question(LLAMA_8B, gpu("L4"), count=4, max_model_len=8192, adapters=adapters))
    assert found.settings.tensor_parallel_size == 1


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (parse_config(CHANGED["Gemma 3n"], name="m"), "m: vLLM serves no LoRA adapters for Gemma3nForCausalLM; leave"),
        (published("zai-org/GLM-5"), "which of its layers vLLM gives LoRA adapters to is not known here"),
        (smollm2(architectures=["NewForCausalLM"]), "is not known here"),
        (wrapped("Qwen2-Audio-7B"), "vLLM serves no LoRA adapters for Qwen2AudioForConditionalGeneration; leave"),
        (wrapped("SmolVLM-256M"), "is not known here \\(SmolVLMForConditionalGeneration\\)"),  # vLLM has some for it
    ],
)
def test_models_without_adapters(model: ModelShape, said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        answer(Question(model, gpu("H200"), count=8, adapters=Adapters()))


def test_a_vocabulary_that_is_too_large() -> None:
    large = published("meta-llama/Llama-3.1-8B-Instruct", vocab_size=262_144)
    with pytest.raises(QuestionError, match=r"up to 258,048 tokens, and this one has 262,144; name the other layers"):
        answer(Question(large, gpu("H200"), adapters=Adapters()))
    some = Adapters(lora_target_modules=("qkv_proj",))
    assert answer(Question(large, gpu("H200"), adapters=some)).fits


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, None),
        ({"enable_lora": False, "fully_sharded_loras": False}, None),
        ({"enable_lora": True}, Adapters(1, 16)),
        ({"enable_lora": True, "max_loras": 4, "max_lora_rank": 320, "lora_dtype": "auto"}, Adapters(4, 320)),
        ({"enable_lora": True, "lora_dtype": "float16"}, Adapters(lora_dtype="float16")),
        ({"enable_lora": True, "lora_target_modules": ["o_proj"]}, Adapters(lora_target_modules=("o_proj",))),
    ],
)
def test_reading(values: dict[str, object], expected: Adapters | None) -> None:
    assert read_adapters(values) == expected


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_loras": 4}, "max_loras says how adapters are kept; add enable_lora, or leave it out"),
        ({"enable_lora": "yes"}, "enable_lora is 'yes'; it has to be true or false"),
        ({"enable_lora": True, "max_loras": 0}, "max_loras is 0; it must be at least 1"),
        ({"enable_lora": True, "max_loras": -2}, "max_loras is -2"),
        ({"enable_lora": True, "max_loras": 1.5}, "max_loras is 1.5; it has to be a whole number"),
        ({"enable_lora": True, "max_loras": float("inf")}, "max_loras is inf; it has to be a whole number"),
        ({"enable_lora": True, "max_lora_rank": 24}, "max_lora_rank is 24; vLLM takes 1, 8, 16, 32, 64, 128, 256"),
        ({"enable_lora": True, "lora_dtype": "float32"}, "lora_dtype is 'float32'; use auto, float16, bfloat16"),
        ({"enable_lora": True, "lora_target_modules": "o_proj"}, "has to be a list of names"),
    ],
)
def test_bad_values(values: dict[str, object], said: str) -> None:
    with pytest.raises(QuestionError, match=said):
        read_adapters(values)
