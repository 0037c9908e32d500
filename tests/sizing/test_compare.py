"""Cards side by side and matrices: who wins a column, what a cell says, what a row says that cannot be answered."""

from dataclasses import replace
from datetime import date
from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console

from sizing.choice import cheapest
from sizing.compare import (
    Comparison,
    Option,
    Outlook,
    Owned,
    Workload,
    bought,
    compare,
    given,
    option,
    options_named,
    verdict,
)
from sizing.compare_report import remarks, render_comparison
from sizing.cost import ApiPrice
from sizing.errors import QuestionError, UnknownGpuError
from sizing.figures import figure, shown_columns
from sizing.gpu import gpu
from sizing.matrix import contexts_by_concurrency, models_by_gpus
from sizing.outlook import outlook
from sizing.plan import answer
from sizing.question import Answer, Question
from sizing.speed import Estimate, Pace
from sizing.users import LatencyBound, Users
from tests.sizing.models import published, smollm2

LLAMA_8B = published("meta-llama/Llama-3.1-8B-Instruct")
LLAMA_70B = published("meta-llama/Llama-3.1-70B-Instruct")
LOAD = Workload(prompt_tokens=1000, output_tokens=200, concurrency=8)


def asked(model_len: int = 8192) -> Question:
    return Question(LLAMA_8B, gpu("L4"), max_model_len=model_len)


def at_pace(requests_s: float, users: Users | None = None) -> Outlook:
    pace = Pace(1.0, 0.02, requests_s, requests_s * 200, 8.0, 0.25)
    return Outlook(Estimate(1.0, 0.5, 2.0), Estimate(0.02, 0.01, 0.03), Estimate(200, 100, 300), pace, users=users)


def rows(text: str, **known: float) -> Comparison:
    """Cards compared with speeds given by name."""

    def forecaster(question: Question, _: Answer, __: Workload) -> Outlook:
        return at_pace(known.get(question.device.name, 1.0))

    options = [option(part) for part in text.split(",")]
    return compare(asked(), options, LOAD, forecaster=forecaster, api=ApiPrice(1.0, 2.0))


@pytest.mark.parametrize(
    ("text", "label"), [("h100", "H100"), ("2xH100", "2xH100"), ("2 x A100-80GB", "2xA100-80GB"), ("4*L4", "4xL4")]
)
def test_options_as_people_write_them(text: str, label: str) -> None:
    assert option(text).label == label


def test_a_name_that_cards_of_several_sizes_share_stands_for_each() -> None:
    assert [found.label for found in options_named("A100")] == ["A100-40GB", "A100-80GB"]
    assert [found.label for found in options_named("2 x v100")] == ["2xV100-16GB", "2xV100-32GB"]
    assert options_named("4xH100") == (option("4xH100"),)
    with pytest.raises(UnknownGpuError, match="did you mean RTX4060"):
        options_named("RTX4061")


def test_options_that_are_none() -> None:
    with pytest.raises(UnknownGpuError, match="did you mean H100"):
        option("2xH1000")
    with pytest.raises(QuestionError):
        option("0xH100")


def test_money_by_hand() -> None:
    # H100: 3.99 $/h at 2 requests/s of 1,200 tokens: 3.99 / 7,200 / 1,200 x 1e6 = 0.4618 $ per million.
    # The API asks 1,000 x 1 + 200 x 2 = 1,400 micro-dollars a request, 10.08 $/h at that pace: even at 39.6 %.
    money = rows("H100,L4", H100=2.0).rows[0].money
    assert money is not None
    assert money.tokens is not None
    assert money.break_even is not None
    assert money.tokens.blended_usd == pytest.approx(0.4618, abs=1e-4)
    assert money.break_even.utilization == pytest.approx(0.3958, abs=1e-4)
    assert money.break_even.requests_per_day == pytest.approx(0.3958 * 2 * 86_400, rel=1e-3)


def test_prices_of_ones_own() -> None:
    day = date(2026, 11, 24)
    h100 = option("2xH100")
    price, cost = given(2.5, day)(h100) or pytest.fail("no price")
    assert (price.usd_per_hour, cost.fixed_usd, cost.working_usd) == (2.5, 5.0, 0.0)
    # 8,766 hours a year: 35,064 dollars a card over four years is one dollar an hour; 700 W at 1.3 and 0.2 a kWh
    price, cost = bought(Owned(35_064, 4, 0.2), day)(h100) or pytest.fail("no price")
    assert cost.fixed_usd == pytest.approx(2.0)
    assert cost.working_usd == pytest.approx(2 * 0.7 * 1.3 * 0.2)
    assert price.usd_per_hour == pytest.approx(1.0 + 0.182)
    found = compare(asked(), [h100], LOAD, forecaster=lambda *_: at_pace(2.0), pricing=given(2.5, day))
    assert found.rows[0].money is not None
    assert found.rows[0].money.price.kind == "as given"


def test_the_best_of_each_column() -> None:
    found = rows("L4,H100,H200", L4=0.1, H100=2.0, H200=2.1)
    assert found.best("usd_per_hour") == {0}
    assert found.best("usd_per_million") == {1}
    assert found.best("kv_cache_tokens") == {2}
    assert found.best("ttft_s") == {0, 1, 2}  # all alike here
    assert rows("L4").best("usd_per_hour") == frozenset()  # nothing to be better than


def test_a_card_that_does_not_fit_has_a_reason_a_way_out_and_wins_nothing() -> None:
    base = replace(asked(), model=LLAMA_70B)
    found = compare(base, [Option(gpu("L4")), Option(gpu("H100"), 4)], LOAD)
    small, large = found.rows
    assert (small.verdict, large.verdict) == ("no", "fits")
    assert small.why_not is not None
    assert small.why_not.startswith("takes 13")
    assert small.answer is not None
    assert small.answer.way_out is not None
    assert small.figure("kv_cache_tokens") is None
    assert large.answer is not None
    assert large.answer.settings.tensor_parallel_size == 4


def test_the_way_out_is_said_in_the_flags_of_the_comparison() -> None:
    base = replace(asked(), model=LLAMA_70B)
    found = compare(base, [Option(gpu("H100")), Option(gpu("H100"), 4)], LOAD)
    assert found.rows[0].answer is not None
    assert found.rows[0].answer.way_out == "try --count 2 --tensor-parallel-size 2, or --gpu B200"
    assert "Does not fit; try --gpus 2xH100, or --gpus B200 (H100)" in remarks(found)


def test_heads_that_do_not_divide_are_a_row_and_not_an_error() -> None:
    base = replace(asked(2048), model=smollm2())  # 9 heads
    found = compare(base, [option("L4"), option("2xL4")], LOAD)
    assert found.rows[1].answer is None
    assert found.rows[1].why_not == "tensor parallel 2 does not divide the 9 attention heads"
    with pytest.raises(QuestionError, match="9 attention heads; take 1 of them, or 3"):
        compare(base, [option("2xL4")], LOAD)


def test_a_question_no_card_can_answer_is_an_error() -> None:
    with pytest.raises(QuestionError, match="must be above 0 and at most 1"):
        compare(replace(asked(), gpu_memory_utilization=92.0), [option("L4"), option("H100")], LOAD)
    with pytest.raises(QuestionError, match="goes up to 131,072"):
        compare(asked(200_000), [option("L4"), option("H100")], LOAD)


def test_money_is_worked_out_at_the_most_that_keep_the_slo() -> None:
    slower = Pace(1.0, 0.02, 0.5, 100, 8.0, 0.25)
    users = Users(40, 10, slower, "tpot")
    found = compare(asked(), [option("H100")], LOAD, forecaster=lambda *_: at_pace(2.0, users))
    money = found.rows[0].money
    assert money is not None
    assert money.tokens is not None
    assert money.tokens.blended_usd == pytest.approx(3.99 / 1800 / 1200 * 1e6)
    none = replace(users, users=0, concurrency=0, pace=None)
    missed = compare(asked(), [option("H100")], LOAD, forecaster=lambda *_: at_pace(2.0, none)).rows[0].money
    assert missed is not None
    assert missed.tokens is None  # tokens that come too late have no price


def test_engines_for_all_users() -> None:
    users = Users(40, 10, Pace(1.0, 0.02, 0.5, 100, 8.0, 0.25), "tpot")
    load = replace(LOAD, users=100)
    found = compare(asked(), [option("H100")], load, forecaster=lambda *_: at_pace(2.0, users))
    assert found.rows[0].engines_for_users == 3


def test_the_real_forecast_says_more_on_a_larger_card() -> None:
    load = replace(LOAD, bound=LatencyBound(2.0, 0.05))
    found = compare(asked(), [option("L4"), option("H100")], load, forecaster=outlook)
    assert found.best("output_tokens_s") == {1}
    assert found.best("users") == {1}
    for row in found.rows:
        assert row.outlook is not None
        assert [point.concurrency for point in row.outlook.curve] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
        assert row.outlook.ttft_s.low < row.outlook.ttft_s.value < row.outlook.ttft_s.high


def test_contexts_by_concurrency_counts_requests() -> None:
    # given bytes are exact: 10 GiB / 131,072 bytes = 81,920 tokens, 39 requests of 2,048 beside the null block
    question = Question(LLAMA_8B, gpu("H100"), max_model_len=16_384, kv_cache_memory_bytes=10 * 2**30)
    found = contexts_by_concurrency(question)
    assert found.rows == ("2,048", "4,096", "8,192", "16,384")
    assert found.columns == ("1", "4", "16", "64", "256")
    assert [cell.verdict for cell in found.cells[0]] == ["fits", "fits", "fits", "no", "no"]
    assert found.cells[0][3].said == "39 fit"
    assert [cell.requests for cell in (row[0] for row in found.cells)] == [39, 19, 9, 4]


def test_the_band_makes_a_close_call() -> None:
    question = Question(LLAMA_8B, gpu("L4"), max_model_len=8192)
    found = answer(question)
    low, high = found.kv_cache_tokens_range.low // 8192, found.kv_cache_tokens_range.high // 8192
    assert low < high
    row = contexts_by_concurrency(question, tuple(range(1, 8))).cells[-1]
    assert [cell.verdict for cell in row] == [
        "fits" if at <= low else "close" if at <= high else "no" for at in range(1, 8)
    ]


def test_no_more_at_once_than_one_step_takes() -> None:
    question = Question(LLAMA_8B, gpu("H200"), max_model_len=2048, max_num_seqs=16)
    cells = contexts_by_concurrency(question).cells[0]
    assert (cells[2].verdict, cells[3].verdict, cells[3].said) == ("fits", "no", "max_num_seqs is 16")


def test_models_by_gpus_shortens_a_context_until_it_is_certain() -> None:
    found = models_by_gpus(Question(LLAMA_8B, gpu("L4")), [LLAMA_8B, LLAMA_70B], [option("L4"), option("H200")])
    small, large = found.cells[0]
    assert small.verdict == "fits"
    assert small.max_model_len is not None
    assert small.max_model_len < 131_072
    assert (large.verdict, large.max_model_len) == ("fits", 131_072)
    assert [cell.verdict for cell in found.cells[1]] == ["no", "no"]
    assert found.cells[1][0].said.startswith("takes 13")


def test_a_verdict_says_close_both_ways() -> None:
    found = answer(Question(LLAMA_8B, gpu("L4")))
    assert verdict(replace(found, certain=True)) == "fits"
    assert verdict(replace(found, certain=False)) == "close"
    assert verdict(replace(found, fits=False, certain=False)) == "close"
    assert verdict(replace(found, fits=False, certain=True)) == "no"


def test_the_cheapest_serves_all_users_within_the_slo() -> None:
    # L4 at 0.805 $/h keeps the bound for no one, H100 at 3.99 for 40, H200 at 4.59 for 200
    able = {"L4": 0, "H100": 40, "H200": 200}

    def forecaster(question: Question, _: Answer, __: Workload) -> Outlook:
        pace = Pace(1.0, 0.02, 0.5, 100, 8.0, 0.25)
        return at_pace(2.0, Users(able[question.device.name], 1, pace, "tpot"))

    options = [option("L4"), option("H100"), option("H200")]

    def choice(users: int | None, bound: LatencyBound | None) -> tuple[str, int, float]:
        load = replace(LOAD, users=users, bound=bound)
        found = cheapest(compare(asked(), options, load, forecaster=forecaster))
        assert found is not None
        return found.row.option.label, found.engines, round(found.usd_per_hour, 3)

    assert choice(None, None) == ("L4", 1, 0.805)
    assert choice(None, LatencyBound(1.0)) == ("H100", 1, 3.99)
    assert choice(100, LatencyBound(1.0)) == ("H200", 1, 4.59)  # where the H100 takes three
    assert choice(900, LatencyBound(1.0)) == ("H200", 5, 22.95)


def test_the_cheapest_of_ones_own_cards_pays_for_their_power_too() -> None:
    """At one price for each of three cards it was whichever came first, for less than the table asked for it."""
    pricing = bought(Owned(25_000, 4, 0.25), date(2026, 12, 1))
    options = [option("RTXPRO6000"), option("H100"), option("L40S")]
    comparison = compare(asked(), options, LOAD, forecaster=lambda *_: at_pace(2.0), pricing=pricing)
    found = cheapest(comparison)
    assert found is not None
    assert found.row.option.label == "L40S"  # 350 W, where the others take 600 and 700
    # 25,000 over 4 x 8,766 hours, and 0.35 kW at 1.3 and 0.25 a kWh
    assert found.usd_per_hour == pytest.approx(0.71298 + 0.11375, abs=1e-4)
    assert comparison.best("usd_per_hour") == {2}


@pytest.mark.parametrize("width", range(60, 261, 10))
def test_no_figure_is_broken_over_two_lines(width: int) -> None:
    load = replace(LOAD, bound=LatencyBound(2.0, 0.05), users=100)
    options = [option(part) for part in ("T4", "A100-PCIe-80GB", "8xA100-40GB", "RTXPRO6000", "H200")]
    comparison = compare(asked(), options, load, forecaster=outlook, api=ApiPrice(0.5, 1.5))
    screen = StringIO()
    Console(file=screen, width=width).print(render_comparison(comparison))
    printed = screen.getvalue()
    assert all(cell_len(line) <= width for line in printed.splitlines())
    for at, row in enumerate(comparison.rows):
        assert row.option.label in printed
        for column in shown_columns(comparison):
            told = figure(comparison, at, column)
            assert all(word in printed for word in f"{told.text} {told.under}".split())


def test_without_a_price_there_is_no_cheapest() -> None:
    assert cheapest(compare(asked(), [option("MI300X")], LOAD)) is None
