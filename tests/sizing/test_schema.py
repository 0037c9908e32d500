"""The documented JSON: real outputs are valid under the shipped schema, and it names every key they have."""

import json
from typing import Any

import jsonschema
import pytest

from sizing.adapter_settings import Adapters
from sizing.compare import Workload, compare, option
from sizing.cost import ApiPrice
from sizing.document import as_json, comparison_json, matrix_json, schema_text
from sizing.gpu import GIB, Device, gpu
from sizing.matrix import contexts_by_concurrency, models_by_gpus
from sizing.outlook import outlook
from sizing.plan import answer
from sizing.question import Question
from sizing.release import parse_release
from sizing.users import LatencyBound
from tests.sizing.models import published, smollm2

LLAMA_8B = published("meta-llama/Llama-3.1-8B-Instruct")
SCHEMA: dict[str, Any] = json.loads(schema_text())


def validate(document: object, kind: str) -> None:
    """Strict: what the schema does not name is not allowed here, though programs have to allow it."""
    strict = json.loads(json.dumps(SCHEMA), object_hook=_closed)
    whole = {"$schema": strict["$schema"], "$ref": f"#/$defs/{kind}", "$defs": strict["$defs"]}
    validator = jsonschema.Draft202012Validator(whole)
    problems = [f"{'/'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(document)]
    assert not problems


def _closed(found: dict[str, object]) -> dict[str, object]:
    if found.get("type") == "object" and "properties" in found:
        found.setdefault("additionalProperties", False)
    return found


def parsed(document: object) -> object:
    return json.loads(json.dumps(document))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "question",
    [
        Question(LLAMA_8B, gpu("H100")),
        Question(LLAMA_8B, gpu("T4")),  # does not fit
        Question(LLAMA_8B, gpu("H100"), adapters=Adapters(4, 32, lora_target_modules=("o_proj",))),
        Question(LLAMA_8B, gpu("L4")),  # a context cut short
        Question(LLAMA_8B, gpu("L4"), count=4, tensor_parallel_size=2, pipeline_parallel_size=2),
        Question(LLAMA_8B, gpu("H100"), kv_cache_memory_bytes=GIB, max_model_len=4096),
        Question(LLAMA_8B, gpu("H100"), release=parse_release("0.8.5", engine="V0")),
        Question(smollm2(), Device("cpu", "x86_64", 16 * GIB, 16 * GIB), max_model_len=2048),
    ],
)
def test_answers(question: Question) -> None:
    document = parsed(as_json(question, answer(question)))
    validate(document, "answer")
    validate({"line": 1, "answer": document}, "question_line")


def test_a_question_line_is_an_answer_or_an_error() -> None:
    validate({"line": 2, "error": "no GPU called 'X'"}, "question_line")
    with pytest.raises(AssertionError):
        validate({"line": 2}, "question_line")


def test_comparisons_with_and_without_speed() -> None:
    options = [option("T4"), option("L4"), option("2xH100")]
    load = Workload(users=100, bound=LatencyBound(2.0, 0.05))
    base = Question(LLAMA_8B, gpu("L4"), max_model_len=8192)
    validate(parsed(comparison_json(compare(base, options, load))), "comparison")
    full = compare(base, options, load, forecaster=outlook, api=ApiPrice(0.5, 1.5))
    document = parsed(comparison_json(full))
    validate(document, "comparison")
    assert isinstance(document, dict)
    assert document["rows"][2]["money"]["break_even"]["api_usd_per_million"] == pytest.approx(0.7)


def test_matrices() -> None:
    question = Question(LLAMA_8B, gpu("L4"))
    validate(parsed(matrix_json(contexts_by_concurrency(question))), "matrix")
    validate(parsed(matrix_json(models_by_gpus(question, [LLAMA_8B, smollm2()], [option("2xL4")]))), "matrix")


def test_a_wrong_type_is_found() -> None:
    question = Question(LLAMA_8B, gpu("H100"))
    with pytest.raises(AssertionError, match="kv_cache_tokens"):
        validate({**as_json(question, answer(question)), "kv_cache_tokens": "many"}, "answer")
