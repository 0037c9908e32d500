"""`berth gateway FILE` as a user runs it, before engines that somebody else started."""

import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from tests.fake_engine import FakeEngine, running
from tests.integration.stack import BERTH, berth, wait_until


@contextmanager
def _gateway(folder: Path, *args: str) -> Iterator[tuple[subprocess.Popen[bytes], Path, str]]:
    """The command, what it prints, and its URL; it ends in order."""
    output = folder / "gateway.out"
    with output.open("wb") as out:
        process = subprocess.Popen([BERTH, "gateway", *args], stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_until("the door is open", lambda: "metrics   http" in output.read_text(), 30)
        yield process, output, re.findall(r"http://127\.0\.0\.1:\d+", output.read_text())[0]
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_a_file_its_keys_and_a_hangup_that_brings_another_engine(tmp_path: Path) -> None:
    made = berth("keys", "new", "alice")
    key, file = made.stdout.strip(), tmp_path / "front.yaml"
    with running(FakeEngine(models=("first",))) as first, running(FakeEngine(models=("second",))) as second:
        models = "models: [{name: first, fallbacks: [second]}]\n"
        file.write_text(f"engines:\n  - url: {first.url}\n{models}{made.stderr}")  # what `keys new` says fits in
        with _gateway(tmp_path, str(file), "--port", "0") as (process, output, url):
            assert "API keys  1 known" in output.read_text()
            wait_until("it says what is not there", lambda: "no engine serves 'second'" in output.read_text(), 30)
            with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
                assert [model.id for model in client.models.list()] == ["first"]
                file.write_text(f"engines: [{{url: '{first.url}'}}, {{url: '{second.url}'}}]\n{models}{made.stderr}")
                process.send_signal(signal.SIGHUP)
                wait_until("both are there", lambda: len(client.models.list().data) == 2, 30)
                first.healthy = False
                wait_until("the first is out", lambda: "first" in _waiting_for(url), 30)
                with client.chat.completions.create(
                    model="first", messages=[{"role": "user", "content": "hi"}], stream=True
                ) as stream:
                    assert "".join(str(c.choices[0].delta.content or "") for c in stream if c.choices) == "Hello there"
            assert [seen.path for seen in second.seen] == ["/v1/chat/completions"]
            assert "configuration read again: engine " in output.read_text()


def _waiting_for(url: str) -> str:
    """What /ready says, 503 while a model has no replica."""
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=10) as answer:
            return str(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return str(error.read())


def test_a_dry_run_says_what_is_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "front.yaml"
    file.write_text("engines: [{url: 'http://127.0.0.1:9', name: big-0}]\nmodels: [{name: big, slo: {ttft_s: 2}}]\n")
    checked = berth("gateway", str(file), "--dry-run")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert " ".join(checked.stdout.split()) == (
        "engines big-0 http://127.0.0.1:9 models big: slo 0 remotes, 0 routes, 0 keys"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "engines: [{url: 'http://127.0.0.1:9', api_key_env: NO_SUCH_KEY}]",
            "engine '127.0.0.1:9': its key is to be in",
        ),
        ("engines: [{url: 'http://127.0.0.1:9'}]\ngateway: {host: 0.0.0.0}", "refusing to listen on 0.0.0.0 without"),
        ("models: [demo]", "models.0: a model to start is for berth serve"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--dry-run",)], ids=["start", "dry-run"])
def test_what_cannot_be_is_one_line(tmp_path: Path, text: str, complaint: str, flags: tuple[str, ...]) -> None:
    file = tmp_path / "front.yaml"
    file.write_text(text)
    refused = berth("gateway", str(file), *flags)
    assert refused.returncode == 2
    assert refused.stderr.startswith("berth gateway: ")
    assert complaint in refused.stderr
    assert refused.stderr.count("\n") == 1
