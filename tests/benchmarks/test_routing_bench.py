"""Traces as people have them, scenarios, and the command."""

import gzip
import json
from pathlib import Path

import pytest

from benchmarks import routing_cost
from benchmarks.errors import ConfigError
from benchmarks.routing.__main__ import main
from benchmarks.routing.cards import CARDS
from benchmarks.routing.scenarios import Pace, build, rate_of_one
from benchmarks.routing.traces import read_trace
from gateway.routing import POLICIES

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,1100,44
2023-11-16 18:15:50.9951690,396,109
"""


def mooncake(path: Path, count: int = 60) -> Path:
    """Two users in turn, who each say 300 tokens more every 3 s; two requests at each instant."""
    rows = []
    for at in range(count):
        user, turn = at % 2, at // 2
        tokens = 1024 + 300 * turn
        ids = [user * 1000 + block for block in range(-(-tokens // 512))]
        rows.append({"timestamp": 3000 * turn, "input_length": tokens, "output_length": 50, "hash_ids": ids})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_azures_prompts_have_nothing_in_common(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE + "2023-11-16 18:15:52.0000000,1100,44\n")
    found = read_trace(path)
    assert found.kind == "azure"
    assert [request.at_s for request in found.requests] == pytest.approx([0.0, 4.314579, 5.31941])
    assert [len(request.blocks) for request in found.requests] == [2, 0, 2]
    assert len({value for request in found.requests for value in request.blocks}) == 4


def test_mooncakes_ids_are_blocks_and_its_timestamps_steps(tmp_path: Path) -> None:
    found = read_trace(mooncake(tmp_path / "any.name"))
    assert (found.kind, found.step_s, found.span_s) == ("mooncake", 3.0, 90.0)
    first = found.requests[0]
    assert (first.prompt_tokens, first.output_tokens, first.blocks) == (1024, 50, (0, 1))
    assert found.requests[2].blocks == (0, 1)  # 1,324 tokens: the third block is not whole


def test_gzip_is_told_by_content(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(gzip.compress(AZURE.encode()))
    assert len(read_trace(path).requests) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": []}\n{"timestamp": 1}\n',
            "line 2: no inp",
        ),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": []}\nnonsense\n', "line 2"),
        ('{"timestamp": 0, "input_length": -5, "output_length": 1, "hash_ids": []}\n', "line 1: input_length is -5"),
        (
            '{"timestamp": 0, "input_length": 1024, "output_length": 1, "hash_ids": [1]}\n',
            "line 1: 1 hash_ids for 1024",
        ),
        (AZURE + "yesterday,1,1\n", "line 4"),
        (AZURE + "2023-11-16 18:15:50.9951690,many,1\n", "line 4: ContextTokens is 'many'"),
        (AZURE + "2023-11-16 18:15:50.9951690\n", "line 4"),
        ("a,b\n1,2\n", "neither a Mooncake trace"),
        ("", "neither a Mooncake trace"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no request"),
    ],
)
def test_a_bad_trace_is_refused_in_one_line_that_says_where(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_trace(path)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_trace_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert "cannot read the trace" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [["--replicas", "one"], ["--replicas", "1"], ["--seeds", "0"], ["--utilisation", "0"], ["--speed", "-1"],
               ["--scenarios", "rain"], ["--requests", "0"]],
)  # fmt: skip
def test_an_option_out_of_range_is_refused(
    tmp_path: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(mooncake(tmp_path / "trace")), *option]) == 2
    assert option[0] in capsys.readouterr().err


def test_a_replicas_rate_is_what_prompts_and_decodes_leave_of_its_time(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    requests, card = read_trace(path).requests, CARDS["h100-8b"]
    prefill_s = sum(card.prefill_s(tokens, 0) for tokens in (1100, 396)) / 2
    decode_s = (44 * (14.5e-6 + 8.7e-8 * 1122) + 109 * (14.5e-6 + 8.7e-8 * 450.5)) / 2
    assert rate_of_one(requests, 512, card, 1) == pytest.approx(1 / (prefill_s + decode_s), rel=0.05)


def test_more_traffic_is_more_users_not_more_haste(tmp_path: Path) -> None:
    trace = read_trace(mooncake(tmp_path / "trace"))
    demand = build("trace", trace, CARDS["h100-8b"], 4, Pace(most_requests=600), seed=1).demand
    assert len(demand.requests) <= 660
    users = {request.blocks[0] for request in demand.requests}
    assert len(users) > 10
    assert " at 3." in demand.note or " at 4." in demand.note


def test_a_burst_is_a_hundred_equal_prompts_at_once(tmp_path: Path) -> None:
    trace = read_trace(mooncake(tmp_path / "trace"))
    pace = Pace(speed=1.0)
    plain = build("trace", trace, CARDS["h100-8b"], 2, pace, 1).demand.requests
    burst = build("burst", trace, CARDS["h100-8b"], 2, pace, 1).demand.requests
    assert len(burst) == len(plain) + 100
    assert max([request.at_s for request in burst].count(request.at_s) for request in burst) == 100


def test_the_table_names_all_and_is_the_same_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, out = mooncake(tmp_path / "trace"), tmp_path / "deep" / "table.txt"
    options = [str(trace), "--replicas", "2", "--requests", "150", "--seeds", "2", "--out", str(out)]
    assert main(options) == 0
    first = capsys.readouterr().out
    assert main(options) == 0
    assert capsys.readouterr().out == first == out.read_text()
    for name in ("berth prefix", "berth least_work", "sglang v1", "SMG", "llm-d", "power of two", "oracle"):
        assert first.count(f"| {name}") >= 6
    for scenario in ("trace", "hot prefix", "slow replica", "restart", "burst", "sessions"):
        assert f"## {scenario}, 2 replicas" in first


def test_a_trace_of_one_request_is_one_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "azure.csv"
    path.write_text("".join(AZURE.splitlines(keepends=True)[:2]))
    assert main([str(path), "--replicas", "2", "--requests", "5"]) == 0
    assert "x 1 s of azure.csv" in capsys.readouterr().out


def test_a_decisions_cost_is_told_for_every_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert routing_cost.main(["--replicas", "2", "--prompt-bytes", "9000", "--decisions", "50"]) in (0, 1)
    shown = capsys.readouterr().out
    assert "over 2 replicas for a prompt of 9,000 bytes (2,250 tokens)" in shown
    assert [line.split(" |")[0] for line in shown.splitlines()[4:]] == [f"| {policy}" for policy in POLICIES]
