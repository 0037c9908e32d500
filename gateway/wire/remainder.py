"""What is left to ask of a request whose answer broke off: its prompt, and what governs the tokens still to come.

Closed on purpose: a field that is in none of these tables could mean anything to an engine, so a request that has one
is not continued. Field names: vLLM 0.32's request models, which take OpenAI's and Anthropic's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gateway.wire.dialect import Dialect

_CARRIED: Final = frozenset((
    "model", "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "logit_bias", "stop",
    "stop_token_ids", "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "allowed_token_ids",
    "watermarking", "priority", "cache_salt", "session_id", "stream_interval", "user",
))  # fmt: skip
"""Say the same about the rest of an answer as about the whole of it, to completions as to every other dialect."""

_WITHOUT_EFFECT: Final = frozenset((
    "stream", "stream_options", "metadata", "store", "service_tier", "request_id", "parallel_tool_calls",
    "prompt_cache_key", "safety_identifier", "return_token_ids", "return_tokens_as_token_ids", "context_management",
))  # fmt: skip
"""Do not govern which tokens come, or govern them only beside a field that is refused."""

_ONLY: Final[dict[str, tuple[object, ...]]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "presence_penalty": (0,),  # these two count output tokens, and what was sent becomes prompt
    "frequency_penalty": (0,),
    "bad_words": ([],),
    "tools": ([],),
    "functions": ([],),
    "include": ([],),
    "return_prompt_text": (False,),
    "response_format": ({"type": "text"},),
    "text": ({"format": {"type": "text"}}, {}),
    "truncation": ("disabled",),
    "background": (False,),
    "prompt_embeds": (),
    "suffix": (),
    "structured_outputs": (),
}
"""May be absent, null or one of these; with any other value the rest of an answer is not the answer's rest."""

_CHAT_TEMPLATE: Final = frozenset((
    "chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "add_special_tokens",
))  # fmt: skip
_LIMITS: Final[dict[Dialect, tuple[str, ...]]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "messages": ("max_tokens",),
    "responses": ("max_output_tokens",),
}
_OWN: Final[dict[Dialect, frozenset[str]]] = {
    "chat": frozenset({"messages", "min_tokens", "reasoning_effort", "tool_choice"}) | _CHAT_TEMPLATE,
    "completions": frozenset({"prompt", "min_tokens", "add_special_tokens"}),
    "messages": frozenset({"messages", "system", "stop_sequences", "chat_template_kwargs"}),
    "responses": frozenset({"input", "instructions", "tool_choice"}),
}
_DEFAULT_COMPLETION_TOKENS: Final = 16


class CannotContinueError(Exception):
    """This answer cannot be continued exactly; says why, to follow "because"."""


@dataclass(frozen=True, slots=True)
class Remainder:
    """A request taken apart. `question` asks /tokenize for the prompt's token ids."""

    question: dict[str, Any]
    sampling: dict[str, Any]
    max_tokens: int | None
    min_tokens: int


def remainder(dialect: Dialect, payload: dict[str, Any]) -> Remainder:
    """Take a request apart; raises CannotContinueError when it asks for what cannot be continued."""
    if dialect not in _OWN:
        raise CannotContinueError("it is not generated text")
    fields = {name: value for name, value in payload.items() if value is not None}
    limits = [fields.pop(name) for name in _LIMITS[dialect] if name in fields]
    for name, value in fields.items():
        _check(dialect, name, value)
    sampling = {name: value for name, value in fields.items() if name in _CARRIED}
    stops = fields.get("stop_sequences") if dialect == "messages" else fields.get("stop")
    if stops:
        sampling["stop"] = _stops(stops)
    if not limits and dialect == "completions":
        limits = [_DEFAULT_COMPLETION_TOKENS]
    limit, least = limits[0] if limits else None, fields.get("min_tokens", 0)
    if not isinstance(limit, int | None) or not isinstance(least, int):  # engines take "8" for 8
        raise CannotContinueError("the request limits its tokens by what is not a whole number")
    question = {"model": payload.get("model"), **_QUESTIONS[dialect](fields)}
    return Remainder(question, sampling, limit, least)


def prompt_question(dialect: Dialect, payload: dict[str, Any]) -> dict[str, Any]:
    """What to ask /tokenize for the tokens of a request's prompt, tools and all; raises CannotContinueError when it
    cannot be asked, because the prompt is not text or not one."""
    if dialect not in _OWN:
        raise CannotContinueError("it is not generated text")
    fields = {name: value for name, value in payload.items() if value is not None}
    question = {"model": payload.get("model"), **_QUESTIONS[dialect](fields)}
    if dialect == "chat" and fields.get("tools"):  # vLLM shows them to the template whatever tool_choice says
        question["tools"] = fields["tools"]
    return question


def _check(dialect: Dialect, name: str, value: object) -> None:
    if name in _OWN[dialect] or name in _CARRIED or name in _WITHOUT_EFFECT:
        return
    if name not in _ONLY:
        raise CannotContinueError(f"the request has the field {name!r}")
    # logprobs: 0 asks a completion for the log probability of each token, and 0 == False
    if value not in _ONLY[name] or (name == "logprobs" and value is not False):
        raise CannotContinueError(f"the request sets {name!r}")


def _stops(stops: object) -> list[str]:
    """An engine holds back as many characters as may begin a stop string, so text sent may end inside a token.

    Only where all are of one character does it hold back nothing; it has then stopped at the first, and none was sent.
    """
    listed = [stops] if isinstance(stops, str) else stops
    if not isinstance(listed, list) or not all(isinstance(stop, str) and len(stop) == 1 for stop in listed):
        raise CannotContinueError("a stop string of several characters may have begun in what was sent")
    return listed


def _ask_completions(fields: dict[str, Any]) -> dict[str, Any]:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
        return {"tokens": prompt}
    if not isinstance(prompt, str):
        raise CannotContinueError("the request has several prompts")
    return {"prompt": prompt, "add_special_tokens": fields.get("add_special_tokens", True)}


def _ask_chat(fields: dict[str, Any]) -> dict[str, Any]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise CannotContinueError("its messages are not a list of objects")
    for message in messages:
        _check_text_only(message.get("content"))
    question: dict[str, Any] = {name: fields[name] for name in _CHAT_TEMPLATE if name in fields}
    effort = fields.get("reasoning_effort")
    if effort is not None:  # as vLLM's chat does it, and its /tokenize has no field for
        told = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
        question["chat_template_kwargs"] = told | question.get("chat_template_kwargs", {})
    return {"messages": messages, **question}


def _ask_messages(fields: dict[str, Any]) -> dict[str, Any]:
    messages = []
    system = fields.get("system")
    if system:
        blocks = [{"type": "text", "text": system}] if isinstance(system, str) else system
        texts = [text for text in _block_texts(blocks) if not text.startswith("x-anthropic-billing-header")]
        messages.append({"role": "system", "content": "".join(texts)})
    for message in fields.get("messages", []):
        content = message.get("content")
        if message.get("role") not in ("user", "assistant"):
            raise CannotContinueError("it has a system message among the others")
        if not isinstance(content, str):
            texts = [text for text in _block_texts(content) if text]
            content = texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]
        messages.append({"role": message["role"], "content": content})
    return {"messages": messages, **{name: fields[name] for name in ("chat_template_kwargs",) if name in fields}}


def _ask_responses(fields: dict[str, Any]) -> dict[str, Any]:
    instructions, given = fields.get("instructions"), fields.get("input")
    messages = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str):
        return {"messages": [*messages, {"role": "user", "content": given}]}
    if not isinstance(given, list):
        raise CannotContinueError("its input is neither a text nor a list")
    for item in given:
        if not isinstance(item, dict) or item.get("type", "message") != "message" or "role" not in item:
            raise CannotContinueError("its input holds more than messages")
        messages.append({"role": item["role"], "content": _item_content(item["role"], item.get("content"))})
    if given and given[-1].get("status") in ("in_progress", "incomplete"):
        raise CannotContinueError("it continues a message itself")
    return {"messages": messages}


def _item_content(role: str, content: object) -> object:
    """As vLLM hands it to the chat template: of an assistant's message, the first text."""
    if not isinstance(content, list):
        return content
    texts = _block_texts(content)
    return texts[0] if role == "assistant" and texts else [{"type": "text", "text": text} for text in texts]


def _block_texts(blocks: object) -> list[str]:
    _check_text_only(blocks)
    return [str(block.get("text") or "") for block in blocks] if isinstance(blocks, list) else []


def _check_text_only(content: object) -> None:
    parts = content if isinstance(content, list) else []
    if not all(isinstance(part, dict) and part.get("type") in ("text", "input_text", "output_text") for part in parts):
        raise CannotContinueError("the prompt holds more than text")


_QUESTIONS: Final[dict[Dialect, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "chat": _ask_chat,
    "completions": _ask_completions,
    "messages": _ask_messages,
    "responses": _ask_responses,
}
