"""The other two commands against the same real engines: the gateway alone, and the benchmark."""

import json
import re
import subprocess
from pathlib import Path

import openai
import pytest

from tests.integration.stack import BERTH, KEY, MODEL, Stack, berth, wait_until

pytestmark = pytest.mark.engine


def test_gateway_alone_finds_models_by_itself(stack: Stack, tmp_path: Path) -> None:
    upstreams = [replica["url"] for replica in json.loads(stack.get("/status"))["replicas"]]
    output = tmp_path / "gateway.out"
    flags = [flag for url in upstreams for flag in ("--upstream", url)]
    with output.open("wb") as out:
        process = subprocess.Popen([BERTH, "gateway", *flags, "--port", "0"], stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_until("the door is open", lambda: "metrics   http" in output.read_text(), 30)
        url = re.findall(r"http://127\.0\.0\.1:\d+", output.read_text())[0]
        assert "API keys  none: only this machine can reach it" in output.read_text()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=10) as client:
            answer = client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                temperature=0,
                max_tokens=20,
            )
            assert "Paris" in str(answer.choices[0].message.content)
            assert [model.id for model in client.models.list()] == [MODEL]
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_bench_agrees_with_the_engines_own_count(stack: Stack, tmp_path: Path) -> None:
    counted = "berth_engine_output_tokens_total"
    before = stack.metric(counted)
    command = ("bench", "run", stack.url, "--api-key", KEY, "--concurrency", "3", "--requests", "9")
    done = berth(
        *command,
        "--warmup",
        "0",
        "--output-tokens",
        "16",
        "--slo",
        "ttft=30,tpot=5",
        "--out",
        str(tmp_path / "run"),
        "--json",
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    requests = [record for record in records if "index" in record]
    assert len(requests) == 9
    tokens = sum(record["output_tokens"] for record in requests)
    assert stack.metric(counted) - before == tokens
    assert json.loads(done.stdout) == summary


def test_bench_open_loop_prints_a_table(stack: Stack, tmp_path: Path) -> None:
    command = ("bench", "run", stack.url, "--api-key", KEY, "--rate", "3", "--requests", "6", "--output-tokens", "8")
    done = berth(*command, "--slo", "ttft=30", "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    for word in ("TTFT", "TPOT", "goodput", "KV cache", "prefix cache"):
        assert word in done.stdout
    assert "not exported" not in done.stdout
