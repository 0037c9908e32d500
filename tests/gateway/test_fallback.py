"""Who stands in, and with which bytes."""

import json
import subprocess
import sys
from collections.abc import Callable

import orjson
import pytest

from gateway.config import Chain, Remote, Step, Trouble
from gateway.errors import AnswerError, BrokenError, ConnectError, GatewayError, RefusedError
from gateway.fallback import StandIn, adapted, cost_usd, next_stand_in, remote_path, trouble_of
from gateway.wire import ENDPOINTS, Call, Dialect, Fault, Usage, parse_call
from tests.gateway.harness import PATHS

REMOTE = Remote("far", "https://far.example/v1", "far-large", input_usd=0.5, output_usd=2.0)
LOCAL, FAR = Step("small"), Step("far", REMOTE)
CHAIN = Chain((LOCAL, FAR))


def _call(dialect: Dialect = "chat", /, **fields: object) -> Call:
    call = parse_call(ENDPOINTS[PATHS[dialect]], orjson.dumps({"model": "big", **fields}))
    assert isinstance(call, Call)
    return call


def _anyone(_: Step) -> bool:
    return True


# What happened
@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (ConnectError("x"), "failed"),
        (BrokenError("x"), "failed"),
        (RefusedError(Fault(503, "x", code="not_ready")), "failed"),
        (RefusedError(Fault(503, "x", code="overloaded")), "saturated"),
        (RefusedError(Fault(503, "x", code="shutting_down")), None),
        (RefusedError(Fault(404, "x", code="model_not_found")), None),
        *((AnswerError(Fault(status, "x")), "failed") for status in (500, 502, 504)),
        *((AnswerError(Fault(status, "x")), "saturated") for status in (429, 503, 529)),
        *((AnswerError(Fault(status, "x")), None) for status in (400, 402, 404, 413, 422)),
    ],
)
def test_trouble(error: GatewayError, trouble: Trouble | None) -> None:
    assert trouble_of(error) == trouble


@pytest.mark.parametrize(("status", "trouble"), [(402, "failed"), (404, "failed"), (400, None), (422, None)])
def test_a_provider_that_does_not_have_the_model_is_passed_over(status: int, trouble: Trouble | None) -> None:
    assert trouble_of(AnswerError(Fault(status, "x")), of_remote=True) == trouble


# Who is next
def _walk(chain: Chain, trouble: Trouble, call: Call, is_there: Callable[[Step], bool] = _anyone) -> list[str]:
    names, place = [], 0
    while (attempt := next_stand_in(chain, place, trouble, call, is_there)) is not None:
        names.append(attempt.step.name)
        place = attempt.place
    return names


def test_one_after_the_other_and_each_once() -> None:
    assert _walk(CHAIN, "failed", _call()) == ["small", "far"]


def test_who_is_not_there_is_passed_over() -> None:
    assert _walk(CHAIN, "failed", _call(), lambda step: step.remote is not None) == ["far"]
    assert _walk(CHAIN, "failed", _call(), lambda _: False) == []


def test_only_on_what_the_chain_is_for() -> None:
    chain = Chain((LOCAL,), on=frozenset({"saturated"}))
    assert _walk(chain, "saturated", _call()) == ["small"]
    assert _walk(chain, "failed", _call()) == []


def test_a_provider_gets_only_what_it_speaks() -> None:
    call = _call("messages", max_tokens=1, messages=[])
    assert _walk(CHAIN, "failed", call) == ["small"]
    speaks = Remote("far", "https://far.example", "m", speaks=frozenset({"messages"}))
    assert _walk(Chain((Step("far", speaks),)), "failed", call) == ["far"]
    assert _walk(Chain((Step("far", speaks),)), "failed", _call()) == []


# What is sent
def test_another_model_here_gets_the_same_bytes_under_its_own_name() -> None:
    body = b'{ "min_tokens": 2, "model":"%b", "messages" : [ {"content":"model"} ] }'
    call = parse_call(ENDPOINTS[PATHS["chat"]], body % b"big")
    assert isinstance(call, Call)
    attempt = next_stand_in(CHAIN, 0, "late", call, _anyone)
    assert isinstance(attempt, StandIn)
    assert (attempt.place, attempt.call.model) == (1, "small")
    assert attempt.call.body == body % b"small"


def test_a_provider_gets_its_own_name_for_it_and_nothing_it_would_not_know() -> None:
    call = _call(
        messages=[{"role": "user", "content": "hi"}],
        temperature=0.5,
        tools=[],
        response_format={"type": "json_object"},
        chat_template_kwargs={"enable_thinking": False},
        guided_json={},
        min_tokens=3,
        return_token_ids=True,
        logit_bias={"5": 1},
    )
    moved = adapted(call, FAR)
    assert moved is not None
    assert moved.model == "far"
    assert orjson.loads(moved.body) == {
        "model": "far-large",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "tools": [],
        "response_format": {"type": "json_object"},
    }


def test_what_a_token_number_means_is_not_carried_over() -> None:
    moved = adapted(_call(messages=[], logit_bias={"5": 1}, stop_token_ids=[2], top_k=5), LOCAL)
    assert moved is not None
    assert orjson.loads(moved.body) == {"model": "small", "messages": [], "top_k": 5}


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2], [3]]])
def test_a_prompt_of_token_numbers_stays(prompt: object) -> None:
    assert adapted(_call("completions", prompt=prompt), LOCAL) is None
    assert adapted(_call("embeddings", input=prompt), FAR) is None
    assert adapted(_call("completions", prompt=["a", "b"]), LOCAL) is not None
    assert adapted(_call("completions", prompt=[]), LOCAL) is not None


def test_an_answer_that_an_engine_keeps_cannot_be_gone_on_from_elsewhere() -> None:
    assert adapted(_call("responses", input="hi", previous_response_id="resp_1"), LOCAL) is None


@pytest.mark.parametrize("name", ["continue_final_message", "documents"])
def test_vllms_own_ways_to_ask_do_not_leave_the_house(name: str) -> None:
    asked: dict[str, object] = {"messages": [], name: True}
    assert adapted(_call(**asked), LOCAL) is not None
    assert adapted(_call(**asked), FAR) is None
    unasked = adapted(_call(**{**asked, name: False}), FAR)
    assert unasked is not None
    assert name not in orjson.loads(unasked.body)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_tokens_are_one_models_own(path: str) -> None:
    call = parse_call(ENDPOINTS[path], b'{"model":"big","prompt":"hi"}')
    assert isinstance(call, Call)
    assert adapted(call, LOCAL) is None


@pytest.mark.parametrize("path", ["/v1/chat/completions/batch", "/v2/embed", "/rerank"])
def test_paths_that_only_vllm_has_do_not_leave_the_house(path: str) -> None:
    call = parse_call(ENDPOINTS[path], b'{"model":"big"}')
    assert isinstance(call, Call)
    speaks = Remote("far", "https://far.example", "m", speaks=frozenset({"chat", "embeddings", "pooling"}))
    assert adapted(call, LOCAL) is not None
    assert adapted(call, Step("far", speaks)) is None


def test_usage_is_asked_for_at_a_provider_too() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    cases: list[tuple[dict[str, object], bool]] = [({}, True), ({"stream_options": options}, False)]
    for fields, strips in cases:
        moved = adapted(_call(messages=[], stream=True, **fields), FAR)
        assert moved is not None
        assert orjson.loads(moved.body)["stream_options"] == {"include_usage": True}
        assert (moved.stream, moved.strip_usage) == (True, strips)
    moved = adapted(_call(messages=[], stream=False, stream_options=options), FAR)
    assert moved is not None
    assert "stream_options" not in orjson.loads(moved.body)


def test_a_base_url_ends_where_our_paths_have_v1() -> None:
    assert remote_path(ENDPOINTS["/v1/chat/completions"]) == b"/chat/completions"


def test_cost() -> None:
    assert cost_usd(Usage(1_000_000, 2_000_000), REMOTE) == 0.5 + 2 * 2.0
    assert cost_usd(Usage(1000, 0), REMOTE) == 0.0005
    assert cost_usd(Usage(1000, None), REMOTE) is None
    assert cost_usd(Usage(1, 1), Remote("x", "https://x", "m", input_usd=1.0)) is None


# vLLM's own fields
_FIELDS = """
import json
from openai.types import completion_create_params as completions, embedding_create_params as embeddings
from openai.types.chat import completion_create_params as chat
from openai.types.responses import response_create_params as responses
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest
pairs = {
    "chat": (ChatCompletionRequest, chat.CompletionCreateParamsBase),
    "completions": (CompletionRequest, completions.CompletionCreateParamsBase),
    "responses": (ResponsesRequest, responses.ResponseCreateParamsBase),
    "embeddings": (EmbeddingCompletionRequest, embeddings.EmbeddingCreateParams),
}
print(json.dumps({
    dialect: {name: name in params.__annotations__ or name == "stream" for name in request.model_fields}
    for dialect, (request, params) in pairs.items()
}))
"""


@pytest.fixture(scope="module")
def fields() -> dict[Dialect, dict[str, bool]]:
    """Every field vLLM takes, and whether the OpenAI SDK has it too."""
    run = subprocess.run([sys.executable, "-c", _FIELDS], capture_output=True, text=True, check=True)
    rows: dict[Dialect, dict[str, bool]] = json.loads(run.stdout.splitlines()[-1])
    return rows


@pytest.mark.parametrize("dialect", ["chat", "completions", "responses", "embeddings"])
def test_a_provider_gets_every_field_of_openais_and_none_of_vllms_own(
    fields: dict[Dialect, dict[str, bool]], dialect: Dialect
) -> None:
    bound = {"logit_bias"}
    for name, is_openais in fields[dialect].items():
        if name in ("model", "stream", "stream_options", "previous_response_id"):
            continue
        moved = adapted(_call(dialect, **{name: 0}), FAR)
        if name in bound or moved is None:
            assert name not in bound or moved is None or name not in orjson.loads(moved.body)
            assert name in bound or not is_openais
        else:
            assert (name in orjson.loads(moved.body)) == is_openais, name
