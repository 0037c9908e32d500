"""From start to end: drains on SIGTERM, leaves nothing behind even after kill -9, refuses clearly what cannot be."""

import json
import re
import signal
import socket
import subprocess
import threading
import urllib.request
from pathlib import Path

import openai
import pytest

from serving.demo import model_folder
from serving.environment import Environment
from tests.integration.stack import KEY, MODEL, Stack, berth, serving, started, wait_until

SMALL = ("--port", "0", "--max-model-len", "2K", "--max-num-seqs", "4")


TWO_MODELS = """\
gateway: {port: 0}
models:
  - {model: demo, max_model_len: 2K, max_num_seqs: 4}
  - model: demo
    name: embedder
    listen: tcp
    max_model_len: 2K
    max_num_seqs: 4
    extra_args: [--runner=pooling, --convert=embed]
"""


@pytest.mark.engine
@pytest.mark.timeout(400)
def test_two_models_from_one_file_and_a_drain_that_leaves_nothing(tmp_path: Path) -> None:
    config = tmp_path / "berth.yaml"
    config.write_text(TWO_MODELS)
    with serving(tmp_path, str(config)) as stack:
        with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=KEY, max_retries=0) as client:
            assert [model.id for model in client.models.list()] == [MODEL, "embedder"]
            embedded = client.embeddings.create(model="embedder", input=["a ship", "a boat"])
        assert [len(row.embedding) for row in embedded.data] == [576, 576]
        assert embedded.usage.prompt_tokens > 0

        answers: list[bytes] = []
        asking = threading.Thread(target=lambda: answers.append(_stream_100_tokens(stack)))
        asking.start()
        wait_until("the engine computes", lambda: stack.metric("berth_engine_requests_running") > 0, 20)
        stack.tree()
        stack.process.send_signal(signal.SIGTERM)
        asking.join(60)
        assert stack.process.wait(60) == 0
    assert answers[0].count(b'"content"') > 90
    assert answers[0].endswith(b"data: [DONE]\n\n")
    assert stack.everything_ended()


@pytest.mark.engine
@pytest.mark.timeout(400)
def test_kill_9_of_berth_ends_every_engine_process(tmp_path: Path) -> None:
    """Started where files carry our modules' and vLLM's own names: none of them may be taken for the real one."""
    for trap in ("tokenizers.py", "serving/__init__.py", "vllm/__init__.py"):
        path = tmp_path / "here" / trap
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise RuntimeError('the wrong module')\n")
    with serving(tmp_path, *SMALL, env={"VLLM_API_KEY": "not ours"}, cwd=tmp_path / "here") as stack:
        assert b'"content"' in _stream_100_tokens(stack)
        assert len(stack.tree()) >= 5  # berth, guard, API server, engine core, worker
        stack.process.kill()
        wait_until("every process has ended", stack.everything_ended, 30)


@pytest.mark.engine
def test_sigterm_while_an_engine_starts_ends_at_once(tmp_path: Path) -> None:
    with started(tmp_path, *SMALL) as stack:
        wait_until("the engine core starts", lambda: "starting the engine core" in stack.text(), 90)
        stack.tree()
        stack.process.send_signal(signal.SIGTERM)
        assert stack.process.wait(8) == 0
        wait_until("every process has ended", stack.everything_ended, 5)


@pytest.mark.engine
def test_sigterm_while_the_model_is_converted_leaves_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with started(tmp_path, *SMALL, env={"BERTH_CACHE_DIR": str(cache)}) as stack:
        wait_until("the conversion runs", lambda: any("serving.demo" in p.cmdline() for p in stack.tree()), 20)
        stack.process.send_signal(signal.SIGTERM)
        assert stack.process.wait(15) == 0
        wait_until("every process has ended", stack.everything_ended, 5)
    assert list((cache / "models").iterdir()) == []


def _stream_100_tokens(stack: Stack) -> bytes:
    body = {
        "model": MODEL,
        "stream": True,
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": 100,
        "ignore_eos": True,
    }
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    request = urllib.request.Request(f"{stack.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        text: bytes = answer.read()
        return text


@pytest.mark.engine
def test_a_failed_start_shows_the_engines_last_lines(tmp_path: Path) -> None:
    config = tmp_path / "berth.yaml"
    config.write_text("gateway: {port: 0}\nmodels: [{model: demo, extra_args: [--no-such-flag]}]\n")
    failed = berth("serve", str(config), env={"BERTH_STATE_DIR": str(tmp_path / "state")})
    assert failed.returncode == 1
    assert "unrecognized arguments: --no-such-flag" in failed.stderr
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("berth serve: smollm2/0 ended with status 2 while starting; the whole log: ")
    assert Path(last.rpartition(": ")[2]).is_file()


@pytest.mark.engine
def test_dry_run_prints_the_exact_command_and_starts_nothing(tmp_path: Path) -> None:
    planned = berth("serve", "--dry-run", "--max-model-len", "4K", env={"BERTH_STATE_DIR": str(tmp_path)})
    assert planned.returncode == 0
    command = next(line for line in planned.stdout.splitlines() if "serving.vllm_main" in line)
    assert "--max-model-len=4096" in command
    assert "--kv-cache-memory-bytes=" in command
    assert "--enable-prefix-caching" in command
    assert not (tmp_path / "logs").exists()


@pytest.mark.engine
def test_what_does_not_fit_is_refused_with_the_numbers_and_a_way_out(tmp_path: Path) -> None:
    folder = model_folder(Environment().cache())
    config = tmp_path / "berth.yaml"
    config.write_text(f"models: [{{model: {folder}, kv_cache_memory_bytes: 100000000, max_model_len: 8192}}]\n")
    refused = berth("serve", str(config))
    assert refused.returncode == 1
    assert "does not fit" in refused.stderr
    assert "try --max-model-len 4096" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = berth("gateway", "--upstream", "http://127.0.0.1:1", "--port", str(port))
    assert refused.returncode == 2
    assert refused.stderr == (
        f"berth gateway: port {port} on 127.0.0.1 is in use: stop what listens there, or choose another with --port\n"
    )


def test_a_public_address_needs_keys() -> None:
    refused = berth("gateway", "--upstream", "http://127.0.0.1:1", "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 2
    assert "refusing to listen on 0.0.0.0 without API keys" in refused.stderr


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """/proc refuses new folders even to root."""
    refused = berth("serve", env={"BERTH_CACHE_DIR": "/proc/1/berth", "BERTH_STATE_DIR": str(tmp_path)})
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1


def test_missing_model_folder() -> None:
    refused = berth("serve", "./no-such-folder")
    assert refused.returncode == 2
    assert refused.stderr.startswith("berth serve: model './no-such-folder': no such folder")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("models: [demo\n", "not valid YAML"),
        ("- demo\n", "expected a mapping with 'models', found a list"),
        ("gateway: {port: 8000}\n", "models: missing"),
        ("models: [{model: demo, replica: 2}]\n", "models.0.replica: unknown key; did you mean 'replicas'?"),
        ("models: [{model: demo, replicas: two}]\n", "models.0.replicas: Input should be a valid integer, found 'two'"),
        ("models: [{model: demo, replicas: 0}]\n", "models.0.replicas: Input should be greater than 0, found 0"),
        ("models: [demo, demo]\n", "models: two models are named 'smollm2'"),
        ("models: [{model: demo}]\ngateway: {prot: 1}\n", "gateway.prot: unknown key; did you mean 'port'?"),
    ],
)
def test_bad_yaml_names_file_key_and_reason(tmp_path: Path, text: str, complaint: str) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text(text)
    refused = berth("serve", str(config))
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"berth serve: {config}: ")
    assert complaint in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.engine
def test_the_printed_curl_line_can_be_copied(stack: Stack) -> None:
    text = stack.text()
    line = text[text.index("curl -N") :].partition("}'\n")[0] + "}'"
    done = subprocess.run(
        ["/bin/bash", "-c", line], capture_output=True, text=True, timeout=60, check=True, env={"BERTH_API_KEY": KEY}
    )
    assert done.stdout.count("data: ") > 5
    assert "data: [DONE]" in done.stdout
    words = "".join(re.findall(r'"content":"([^"]*)"', done.stdout))
    assert words == "The capital of France is Paris."
