"""Speed by hand at published rates, beside public measurements, and moving the right way with every input."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sizing.cards import Card, card
from sizing.efficiency import EFFICIENCY, FIT, FITTED, SHARES, Efficiency
from sizing.errors import QuestionError
from sizing.least_squares import least_squares, solve
from sizing.roofline import Engine, Roofline
from sizing.speed import Load, outside, pace, speed
from sizing.speed_fit import Measurement, fit, log_errors
from sizing.speed_shape import CacheRead, SpeedShape, WeightFormat, speed_shape_of
from tests.sizing.models import published
from tests.sizing.speed_models import IDEAL, ROUND, SHAPES, engine, shape

DENSE = SpeedShape(
    name="dense",
    layers=10,
    hidden_size=1000,
    output_parameters=0,
    embedding_parameters=0,
    dense_parameters=5_000_000_000,
    expert_parameters=0,
    moe_layers=0,
    experts=0,
    experts_per_token=0,
    dense_format="16bit",
    expert_format="16bit",
    caches=(CacheRead(layers=10, bytes_per_token=1000, heads=4, width=2000),),
)
EXPERTS = replace(
    DENSE, dense_parameters=0, experts=8, experts_per_token=2, moe_layers=10, expert_parameters=25_000_000
)


def roofline(shape: SpeedShape, tp: int = 1, dp: int = 1) -> Roofline:
    return Roofline(shape, Engine(ROUND, "nvlink", tp, dp), IDEAL)


# Shapes


@pytest.mark.parametrize(
    ("name", "total", "active", "kv_bytes"),
    [
        ("llama", 70.55e9, 69.5e9, 327_680),  # 80 layers x 8 heads x 256 x 2 bytes
        ("gpt-oss", 116.8e9, 5.12e9, 73_728),  # 36 x 8 x 128 x 2
        ("minimax", 228.6e9, 10.42e9, 253_952),  # 62 x 8 x 256 x 2
        ("kimi", 1026e9, 31.6e9, 70_272),  # 61 x 576 x 2
    ],
)
def test_parameters_and_cache_are_the_model_cards(name: str, total: float, active: float, kv_bytes: int) -> None:
    found = SHAPES[name]
    assert found.total_parameters == pytest.approx(total, rel=0.005)
    assert found.active_parameters == pytest.approx(active, rel=0.012)  # biases of all experts are dense
    assert found.kv_bytes(1, 1) == kv_bytes


def test_a_window_ends_what_is_read_and_a_latent_cache_is_not_divided() -> None:
    per_layer = 8 * 128 * 2  # heads x (key + value) x bytes
    assert SHAPES["gpt-oss"].kv_bytes(1128, 1) == (18 * 1128 + 18 * 128) * per_layer
    assert SHAPES["gpt-oss"].attention_macs(1128) == (18 * 1128 + 18 * 128) * 64 * 128
    assert SHAPES["kimi"].kv_bytes(100, 8) == SHAPES["kimi"].kv_bytes(100, 1)
    assert SHAPES["kimi"].attention_macs(1) == 61 * 64 * (128 + 64 + 128)  # plain and position key, value
    assert SHAPES["llama"].kv_bytes(100, 4) == SHAPES["llama"].kv_bytes(100, 1) / 4
    assert SHAPES["llama"].kv_bytes(100, 16) == SHAPES["llama"].kv_bytes(100, 8)  # eight heads, then copies


def test_a_recurrent_state_is_read_and_written_whatever_the_context() -> None:
    hybrid = speed_shape_of(published("Qwen/Qwen3.5-27B"))
    state = 3_207_168  # bytes of one layer, as vLLM logs it for this model
    attention = 16 * 4 * 2 * 256 * 2  # 16 layers x 4 heads x key and value x 256 x 2 bytes
    assert hybrid.kv_bytes(10, 1) == 2 * 48 * state + 10 * attention
    assert any("recurrent" in reason for reason in hybrid.approximations)


def test_shared_experts_are_dense_and_no_router_picks_them() -> None:
    found = speed_shape_of(published("deepseek-ai/DeepSeek-R1", quantization_config=None))
    assert (found.experts, found.experts_per_token, found.moe_layers) == (256, 8, 58)
    assert found.active_parameters == pytest.approx(36.7e9, rel=0.01)  # 37 B with the input embedding's row
    assert speed_shape_of(published("Qwen/Qwen3.5-35B-A3B")).experts_per_token == 8
    assert speed_shape_of(published("meta-llama/Llama-4-Scout-17B-16E-Instruct")).experts_per_token == 1


def test_a_cache_in_fp8_is_half() -> None:
    narrow = speed_shape_of(published("meta-llama/Llama-3.1-70B-Instruct"), kv_cache_dtype="fp8")
    assert narrow.kv_bytes(100, 1) == SHAPES["llama"].kv_bytes(100, 1) / 2


@pytest.mark.parametrize(
    ("name", "method", "bytes_per_parameter", "dense", "experts"),
    [
        ("meta-llama/Llama-3.1-70B-Instruct", None, 2.0, "16bit", "16bit"),
        ("meta-llama/Llama-3.1-70B-Instruct", "awq", 0.56, "int4", "int4"),
        ("meta-llama/Llama-3.1-70B-Instruct", "gptq", 1.0, "int8", "int8"),
        ("meta-llama/Llama-3.1-70B-Instruct", "compressed-tensors", 1.0, "fp8", "fp8"),
        ("meta-llama/Llama-3.1-70B-Instruct", "modelopt_fp4", 0.56, "nvfp4", "nvfp4"),
        ("openai/gpt-oss-120b", "mxfp4", 0.56, "16bit", "mxfp4"),
        ("MiniMaxAI/MiniMax-M2.5", "fp8", 1.0, "fp8", "fp8"),
    ],
)
def test_formats_are_told_by_method_and_bytes(
    name: str, method: str | None, bytes_per_parameter: float, dense: WeightFormat, experts: WeightFormat
) -> None:
    model = published(name, quantization_config=None)
    ends = 2 * model.vocab_size * model.hidden_size  # kept in 16 bits
    weights_bytes = int((model.num_parameters - ends) * bytes_per_parameter + 2 * ends)
    found = speed_shape_of(replace(model, quantization=method, weights_bytes=weights_bytes))
    assert (found.dense_format, found.expert_format) == (dense, experts)


# Steps, by hand on the card of round numbers


def test_decode_reads_the_weights_once_and_every_cache() -> None:
    # 10 GB of weights and 2 sequences of 1,000 tokens x 10 layers x 1,000 bytes = 20 MB, at 1 TB/s
    assert roofline(DENSE).decode_s(2, 1000) == pytest.approx(10e-3 + 20e-6)
    # halved over two cards, and 10 layers x 2 all-reduces x 1 of (2 sequences x 1,000 x 2 bytes) at 100 GB/s
    assert roofline(DENSE, tp=2).decode_s(2, 1000) == pytest.approx(5e-3 + 10e-6 + 10 * 2 * 4000 / 100e9)


def test_a_large_batch_is_bound_by_arithmetic() -> None:
    # 2 x 5e9 x 1,000 = 1e13 operations at 1e14/s, more than the 10 ms of reading
    assert roofline(DENSE).decode_s(1000, 1) == pytest.approx(0.1 + 1000 * 1e4 / 1e12)


def test_prefill_is_linear_layers_and_attention() -> None:
    # 2 x 5e9 x 1,000 operations, and 2 x 2,000 x 1,000 tokens x 10 layers x 500 seen on average
    assert roofline(DENSE).prefill_s(1000) == pytest.approx((1e13 + 2e10) / 100e12)
    fp8 = replace(DENSE, dense_format="fp8")
    assert roofline(fp8).prefill_s(1000) == pytest.approx(1e13 / 200e12 + 2e10 / 100e12)


def test_distinct_experts_by_hand() -> None:
    by_hand = roofline(EXPERTS)
    assert by_hand.touched_experts(1) == pytest.approx(2)
    assert by_hand.touched_experts(2) == pytest.approx(8 * (1 - 0.75**2))  # 3.5: one of the second's is often new
    assert by_hand.touched_experts(1000) == pytest.approx(8)
    # 10 layers x 3.5 experts x 25 million x 2 bytes, and 20 kB of cache
    assert by_hand.decode_s(2, 1) == pytest.approx(10 * 3.5 * 50e6 / 1e12 + 2 * 1e4 / 1e12)
    assert roofline(DENSE).touched_experts(5) == 0


def test_experts_are_spread_over_all_replicas_of_the_attention() -> None:
    one, two = roofline(EXPERTS), roofline(EXPERTS, dp=2)
    assert two.decode_s(2, 1) < one.decode_s(2, 1) / 1.9


def test_four_bits_are_native_only_where_the_card_has_them() -> None:
    blackwell = card("B200")
    widened = replace(blackwell, flops_fp4=None)

    def prefill_s(fmt: WeightFormat, on: Card) -> float:
        found = replace(SHAPES["gpt-oss"], expert_format=fmt)
        return Roofline(found, Engine(on, "nvlink"), EFFICIENCY).prefill_s(4096)

    assert prefill_s("nvfp4", blackwell) < prefill_s("nvfp4", widened)
    assert prefill_s("mxfp4", blackwell) == prefill_s("mxfp4", widened)  # its activations stay in 16 bits


def test_a_quantized_model_gains_most_where_memory_is_slow() -> None:
    """Unpacking goes one after the other with reading: a share of little bandwidth is lost to it, and much of a lot."""
    ratios = []
    for name in ("RTX5060Ti-16GB", "A100-80GB", "B200"):
        whole, packed = (
            Roofline(replace(DENSE, dense_format=fmt), Engine(card(name), "none"), EFFICIENCY)._dense(1).read_s
            for fmt in ("16bit", "int4")
        )
        ratios.append(whole / packed)
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > 3  # 2 bytes against 0.5625 would be 3.56
    assert ratios[-1] > 1


# The steady state, by hand


def test_one_request_alone() -> None:
    found = pace(DENSE, Engine(ROUND, "none"), Load(1000, 101, 1), efficiency=IDEAL)
    step, prompt = 10e-3 + 1050.5 * 1e4 / 1e12, (1e13 + 2e10) / 100e12
    assert found.tpot_s == pytest.approx(step)
    assert found.ttft_s == pytest.approx(prompt)  # alone, no step is under way that it has to wait for
    assert found.requests_s == pytest.approx(1 / (prompt + 100 * step))
    assert found.output_tokens_s == pytest.approx(101 * found.requests_s)
    assert found.prefill_share == pytest.approx(prompt * found.requests_s)


def test_the_balance_holds() -> None:
    """What the closed form says is what its two equations say."""
    load = Load(1000, 200, 8)
    found = pace(DENSE, Engine(ROUND, "none"), load, efficiency=IDEAL)
    by_hand = roofline(DENSE)
    beside, step = by_hand.decode_s(7, 1100), by_hand.decode_s(8, 1100)
    added = by_hand.prefill_s(1000, beside=7)
    assert added == pytest.approx((2 * 5e9 * 1007 + 2e10) / 100e12 - 10e-3)  # the weights are read once for all
    share = found.requests_s * added * 7 / 8
    assert found.tpot_s == pytest.approx(step / (1 - share), rel=1e-9)
    assert found.ttft_s == pytest.approx((added + beside + 7 / 16 * step) / (1 - share), rel=1e-9)
    assert found.requests_s * (found.ttft_s + 199 * (found.tpot_s or 0)) == pytest.approx(8)


def test_prompts_of_one_step_read_the_weights_once_for_all() -> None:
    experts = Roofline(replace(EXPERTS, caches=()), Engine(ROUND, "nvlink"), IDEAL)
    alone, four = experts.prefill_s(8), experts.prefill_s(8, together=4)
    assert alone == pytest.approx(10 * experts.touched_experts(8) * 50e6 / 1e12)  # about 7.2 of 8 experts
    assert 4 * four == pytest.approx(10 * experts.touched_experts(32) * 50e6 / 1e12)  # all 8, for four prompts


def test_one_token_has_no_time_per_token() -> None:
    found = speed(DENSE, Engine(ROUND, "none"), Load(100, 1, 4))
    assert found.tpot_s is None
    assert found.pace.tpot_s is None
    assert found.output_tokens_s.value == pytest.approx(found.pace.requests_s)


def test_requests_beyond_the_limit_wait_and_add_nothing() -> None:
    free = pace(DENSE, Engine(ROUND, "none"), Load(1000, 200, 32))
    limited = pace(DENSE, Engine(ROUND, "none", max_running=32), Load(1000, 200, 128))
    assert limited.running == 32
    assert limited.tpot_s == free.tpot_s
    assert limited.output_tokens_s == pytest.approx(free.output_tokens_s, rel=0.1)
    assert limited.ttft_s > 3 * (free.tpot_s or 0) * 200 * 0.9  # three generations ahead of it


def test_replicas_without_experts_are_engines_of_their_own() -> None:
    one = pace(DENSE, Engine(ROUND, "nvlink"), Load(1000, 200, 8), efficiency=IDEAL)
    two = pace(DENSE, Engine(ROUND, "nvlink", 1, 2), Load(1000, 200, 16), efficiency=IDEAL)
    assert two.output_tokens_s == pytest.approx(2 * one.output_tokens_s)
    assert two.ttft_s == pytest.approx(one.ttft_s)


# Beside public measurements


@pytest.mark.parametrize(
    ("weights", "name", "tp", "measured_s"),
    [("fp8", "H200", 1, 21.5e-3), ("fp8", "H200", 4, 9.9e-3), ("fp8", "B200", 1, 16.3e-3), ("fp8", "B200", 4, 8.0e-3)],
)
def test_a_dense_70b_at_four_in_flight(weights: WeightFormat, name: str, tp: int, measured_s: float) -> None:
    """ai-dynamo/aiconfigurator, systems/silicon_sample.csv: what the held coefficients were chosen by."""
    found = shape("meta-llama/Llama-3.1-70B-Instruct", weights)
    assert pace(found, engine(name, tp), Load(1024, 1024, 4)).tpot_s == pytest.approx(measured_s, rel=0.15)


@pytest.mark.parametrize(
    ("model", "name", "tp", "load", "ttft_s", "tpot_s"),
    [  # the same table, rows that the fit did not see
        ("gpt-oss", "B200", 1, Load(1024, 1024, 4), 46.33e-3, 3.487e-3),
        ("gpt-oss", "B200", 1, Load(8192, 1024, 4), 115.82e-3, 3.734e-3),
        ("minimax", "H200", 8, Load(1024, 1024, 128), 246.54e-3, 23.722e-3),
        ("minimax", "H200", 8, Load(8192, 1024, 128), 1265.9e-3, 40.826e-3),
    ],
)
def test_measured_runs_lie_within_their_bands(
    model: str, name: str, tp: int, load: Load, ttft_s: float, tpot_s: float
) -> None:
    found = speed(SHAPES[model], engine(name, tp), load)
    assert found.outside == ()
    assert found.tpot_s is not None
    assert found.ttft_s.low < ttft_s < found.ttft_s.high
    assert found.tpot_s.low < tpot_s < found.tpot_s.high


# Bands


def test_the_band_is_the_fits_own_where_it_has_rows() -> None:
    found = speed(SHAPES["gpt-oss"], engine("B200"), Load(1024, 1024, 4))
    assert found.tpot_s is not None
    assert found.tpot_s.high / found.tpot_s.value == pytest.approx(2.718281828**FIT.few.tpot)
    assert found.output_tokens_s_per_card.value == found.output_tokens_s.value


def test_every_reason_widens_the_band() -> None:
    llama = SHAPES["llama"]
    inside = speed(llama, engine("H200", 8), Load(1024, 1024, 4))
    staged = speed(llama, replace(engine("H200", 8), pipeline_parallel_size=2), Load(1024, 1024, 4))
    elsewhere = speed(llama, Engine(card("A10G"), "pcie", 4), Load(100, 1024, 4, prefix_hit_rate=0.5))
    widths = [found.ttft_s.high / found.ttft_s.value for found in (inside, staged, elsewhere)]
    assert widths == sorted(widths)
    assert [len(found.outside) for found in (inside, staged, elsewhere)] == [0, 2, 4]  # 16 cards, and two stages
    assert any("pcie" in reason for reason in elsewhere.outside)
    assert outside(llama, engine("GB10"), Load(1024, 1024, 4))[-1].startswith("the 16-bit rate of GB10")
    four_bit = replace(llama, dense_format="int4", expert_format="int4")
    assert any("four bits" in reason for reason in outside(four_bit, engine("H200"), Load(1024, 1024, 4)))


def test_coefficients_are_physical() -> None:
    for name in FITTED:
        value = getattr(EFFICIENCY, name)
        if name in SHARES | {"routing_independence"}:
            assert 0 < value < 1, name
        elif name.endswith("_s"):
            assert 0 < value < 0.1, f"{name} is a time of that many seconds"
    assert EFFICIENCY.on_chip_bandwidth > 2 * (card("B300").bandwidth or 0)


# Stages, chunks and prefixes


def test_two_stages_pass_a_token_on_and_keep_two_batches_in_flight() -> None:
    """Latency stays that of all layers, for half the batch; both halves together come out at once."""
    e = replace(IDEAL, fabric_hop_s=1e-3)
    staged = Engine(ROUND, "nvlink", pipeline_parallel_size=2)
    one, two = Roofline(DENSE, Engine(ROUND, "nvlink"), e), Roofline(DENSE, staged, e)
    assert two.decode_s(8, 1000) == pytest.approx(one.decode_s(4, 1000) + 1e-3)
    assert two.decode_s(1, 1000) == pytest.approx(one.decode_s(1, 1000) + 1e-3)
    busy = pace(DENSE, staged, Load(100, 1000, 400), efficiency=IDEAL)
    alone = pace(DENSE, Engine(ROUND, "nvlink"), Load(100, 1000, 400), efficiency=IDEAL)
    assert 1.5 < busy.output_tokens_s / alone.output_tokens_s < 2


def test_a_long_prompt_takes_several_steps_and_reads_the_weights_in_each() -> None:
    short = Roofline(DENSE, Engine(ROUND, "none", max_num_batched_tokens=10), IDEAL)
    assert short.prefill_s(40) == pytest.approx(4 * 10e-3 + 2 * 40 * 20 * 2000 * 10 / 100e12)  # 10 ms to read them


def test_a_prefix_in_the_cache_is_seen_but_not_computed() -> None:
    load = Load(1000, 101, 1, prefix_hit_rate=0.75)
    found = pace(DENSE, Engine(ROUND, "none"), load, efficiency=IDEAL)
    prompt = (2 * 5e9 * 250 + 2 * 250 * (750 + 125) * 2000 * 10) / 100e12
    assert found.ttft_s == pytest.approx(prompt)
    whole = pace(DENSE, Engine(ROUND, "none"), replace(load, prefix_hit_rate=1.0), efficiency=IDEAL)
    assert whole.ttft_s < found.ttft_s  # the last token is computed anyway


# Directions

SHAPE = st.sampled_from(sorted(SHAPES))
TP = st.sampled_from([1, 2, 4, 8])
TOKENS = st.integers(1, 100_000)
CONCURRENCY = st.integers(1, 2000)
FACTOR = st.floats(1.0, 4.0)
SLACK = 1 + 1e-9


def steady(shape: str, tp: int, load: Load, card_name: str = "H200") -> tuple[float, float, float]:
    found = pace(SHAPES[shape], engine(card_name, tp), load)
    return found.ttft_s, found.tpot_s or 0.0, found.output_tokens_s


@given(SHAPE, TP, TOKENS, CONCURRENCY, FACTOR)
def test_more_bandwidth_is_never_slower(shape: str, tp: int, tokens: int, concurrency: int, factor: float) -> None:
    slow = card("H200")
    fast = replace(slow, bandwidth=(slow.bandwidth or 0) * factor)
    before, after = (Roofline(SHAPES[shape], Engine(one, "nvlink", tp), EFFICIENCY) for one in (slow, fast))
    assert after.decode_s(concurrency, tokens) <= before.decode_s(concurrency, tokens) * SLACK
    assert after.prefill_s(tokens) <= before.prefill_s(tokens) * SLACK


@given(SHAPE, TP, TOKENS, TOKENS, st.integers(16, 4000), CONCURRENCY)
def test_a_longer_prompt_is_never_faster(
    shape: str, tp: int, one: int, other: int, output: int, concurrency: int
) -> None:
    short, long = (steady(shape, tp, Load(tokens, output, concurrency)) for tokens in sorted((one, other)))
    assert long[0] >= short[0] / SLACK
    assert long[1] >= short[1] / SLACK
    assert long[2] <= short[2] * SLACK


@given(SHAPE, TP, TOKENS, st.integers(2, 4000), CONCURRENCY, CONCURRENCY)
def test_more_concurrency_is_never_a_shorter_wait(
    shape: str, tp: int, tokens: int, output: int, one: int, other: int
) -> None:
    few, many = (steady(shape, tp, Load(tokens, output, n)) for n in sorted((one, other)))
    assert many[0] >= few[0] / SLACK
    assert many[1] >= few[1] / SLACK


@given(SHAPE, TOKENS, CONCURRENCY)
def test_lower_bits_and_more_experts_cost_what_they_weigh(shape: str, tokens: int, concurrency: int) -> None:
    wide = replace(SHAPES[shape], dense_format="16bit", expert_format="16bit")
    narrow = replace(wide, dense_format="fp8", expert_format="fp8")
    times = [Roofline(one, engine("H200"), EFFICIENCY).decode_s(concurrency, tokens) for one in (wide, narrow)]
    assert times[1] <= times[0] * SLACK


@given(SHAPE, TP, TOKENS, st.integers(1, 4000), CONCURRENCY)
def test_units_stay_sane(shape: str, tp: int, tokens: int, output: int, concurrency: int) -> None:
    found = speed(SHAPES[shape], engine("B200", tp), Load(tokens, output, concurrency))
    assert 0 < found.pace.prefill_share <= 1
    for estimate in (found.ttft_s, found.tpot_s, found.output_tokens_s, found.output_tokens_s_per_card):
        if estimate is not None:
            assert 0 < estimate.low < estimate.value < estimate.high < float("inf")
    assert found.pace.output_tokens_s == pytest.approx(found.pace.requests_s * output)
    assert found.output_tokens_s_per_card.value * tp == pytest.approx(found.output_tokens_s.value)


# Refusals


def test_an_unknown_figure_is_refused_with_the_way_out() -> None:
    with pytest.raises(QuestionError, match=r"bandwidth of CPU is not known.*processor"):
        pace(DENSE, Engine(card("CPU"), "none"), Load(100, 100, 1))
    with pytest.raises(QuestionError, match="bandwidth of round is not known"):
        pace(DENSE, Engine(replace(ROUND, bandwidth=None), "none"), Load(100, 100, 1))
    with pytest.raises(QuestionError, match="arithmetic rate of round"):
        pace(DENSE, Engine(replace(ROUND, flops_16bit=None, flops_fp4=None), "none"), Load(100, 100, 1))
    with pytest.raises(QuestionError, match="link of round"):
        pace(DENSE, Engine(replace(ROUND, link_bandwidth=None), "pcie", 2), Load(100, 100, 1))


@pytest.mark.parametrize("load", [(0, 1, 1), (1, 0.5, 1), (1, 1, 0), (1, float("nan"), 1), (float("inf"), 1, 1)])
def test_a_load_of_nothing_is_refused(load: tuple[float, float, float]) -> None:
    with pytest.raises(QuestionError, match="at least 1"):
        Load(*load)


def test_impossible_engines_and_shapes_are_refused() -> None:
    with pytest.raises(QuestionError, match="at least 1"):
        Engine(ROUND, "nvlink", 0)
    with pytest.raises(QuestionError, match="at least 1"):
        Engine(ROUND, "nvlink", max_running=0)
    with pytest.raises(QuestionError, match="experts per token"):
        replace(EXPERTS, experts_per_token=9)


# The fit


def test_least_squares_finds_a_known_minimum() -> None:
    assert solve([[2, 1], [1, 3]], [5, 10]) == pytest.approx([1, 3])
    found = least_squares(lambda x: [x[0] - 1, 10 * (x[1] - x[0] ** 2)], [-1, 2])  # Rosenbrock's valley
    assert found == pytest.approx([1, 1], abs=1e-4)


def test_a_fit_recovers_the_coefficients_its_rows_were_made_with() -> None:
    truth: Efficiency = replace(
        EFFICIENCY,
        expert_on_chip_bandwidth=3e12,
        expert_on_chip_bandwidth_fused=50e12,
        routing_independence=0.9,
        kv_bandwidth=0.6,
        expert_compute=0.3,
        expert_compute_fused=0.4,
        expert_layer_s=30e-6,
        all_reduce_s=25e-6,
        sequence_s=20e-6,
        prefill_layer_s=200e-6,
        request_s=15e-3,
        prompt_token_s=6e-6,
        layer_s=20e-6,
        dense_bandwidth=0.7,
        on_chip_bandwidth=50e12,
        narrow_layer_s=8e-6,
        dense_compute=0.5,
        opening_share=0.3,
    )
    rows = []
    for model, name in (
        ("gpt-oss", "B200"),
        ("minimax", "B200"),
        ("kimi", "H200"),
        ("gpt-oss", "H200"),
        ("llama", "H200"),
    ):
        for tp in (1, 8):
            for prompt, concurrency in ((256, 1), (8192, 16), (1024, 256), (32768, 64)):
                load = Load(prompt, 1024, concurrency)
                made = pace(SHAPES[model], engine(name, tp), load, efficiency=truth)
                assert made.tpot_s is not None
                row = Measurement("row", model, SHAPES[model], engine(name, tp), load, made.ttft_s, made.tpot_s)
                assert log_errors(row, truth).ttft == pytest.approx(0)
                rows.append(row)
    found = fit(rows, pull=1e-6)
    for name in FITTED:
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.02), name
