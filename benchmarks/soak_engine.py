"""A mock engine for `benchmarks.soak`: every dialect, and each of the ways in which an engine fails.

What a request wants is in its body: `"soak": {"do": ..., "events": ..., "gap_s": ..., "pad": ...}`.
"""

import argparse
import asyncio
import json
from collections.abc import Iterator
from typing import Any

_HEAD = b"HTTP/1.1 %d X\r\ncontent-type: %b\r\n"
_STREAM = _HEAD % (200, b"text/event-stream") + b"transfer-encoding: chunked\r\n\r\n"
_STATUS = {"refuse": 400, "full": 503, "crash": 500}


def _frame(payload: dict[str, Any]) -> bytes:
    name = f"event: {payload['type']}\n" if "type" in payload else ""
    return f"{name}data: {json.dumps(payload, separators=(',', ':'))}\n\n".encode()


def events(path: str, count: int, pad: int) -> Iterator[bytes]:
    """The stream of one answer with `count` events of text, each `pad` characters longer than need be."""
    text = "word" + "x" * pad
    if path == "/v1/chat/completions":
        yield _frame({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for _ in range(count):
            yield _frame({"choices": [{"index": 0, "delta": {"content": text}}]})
        yield _frame({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": count}})
        yield b"data: [DONE]\n\n"
    elif path == "/v1/completions":
        for _ in range(count):
            yield _frame({"choices": [{"index": 0, "text": text}]})
        yield _frame({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": count}})
        yield b"data: [DONE]\n\n"
    elif path == "/v1/responses":
        for _ in range(count):
            yield _frame({"type": "response.output_text.delta", "delta": text})
        usage = {"input_tokens": 5, "output_tokens": count}
        yield _frame({"type": "response.completed", "response": {"status": "completed", "usage": usage}})
    else:
        yield _frame({"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 0}}})
        for _ in range(count):
            yield _frame({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}})
        yield _frame({"type": "message_delta", "delta": {}, "usage": {"output_tokens": count}})
        yield _frame({"type": "message_stop"})


class _Server:
    """Answers requests one after another on each connection."""

    def __init__(self, model: str) -> None:
        self._model = model

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        lengths = [int(line[15:]) for line in head if line.lower().startswith("content-length:")]
        body = await reader.readexactly(sum(lengths))
        if method == "GET":
            rows = [{"id": self._model, "object": "model", "max_model_len": 4096}]
            _document(writer, 200, {"data": rows} if path == "/v1/models" else {})
            return True
        wish = json.loads(body)
        return await self._answer(reader, writer, path, wish)

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, wish: dict[str, Any]
    ) -> bool:
        soak = wish.get("soak", {})
        do = soak.get("do", "")
        if do in _STATUS:
            _document(writer, _STATUS[do], {"error": {"message": do, "code": _STATUS[do]}})
            return True
        if do == "drop":
            return False
        gone = asyncio.ensure_future(reader.read(1))  # the gateway never sends a second request before the answer
        try:
            if do == "silent":
                await gone
                return False
            return await self._play(writer, gone, path, wish, soak)
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def _play(
        self,
        writer: asyncio.StreamWriter,
        gone: "asyncio.Future[bytes]",
        path: str,
        wish: dict[str, Any],
        soak: dict[str, Any],
    ) -> bool:
        count, gap_s = soak.get("events", 4), soak.get("gap_s", 0.0)
        if not wish.get("stream"):
            await asyncio.wait([gone], timeout=gap_s * count)
            answer = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": count}, "pad": "x" * count}
            _document(writer, 200, answer)
            return not gone.done()
        writer.write(_STREAM)
        for i, frame in enumerate(events(path, count, soak.get("pad", 0))):
            if gap_s:
                await asyncio.wait([gone], timeout=gap_s)
            if gone.done() or (soak.get("do") == "break" and i > count // 2):
                writer.transport.abort()
                return False
            writer.write(b"%x\r\n%b\r\n" % (len(frame), frame))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        return True


def _document(writer: asyncio.StreamWriter, status: int, payload: dict[str, Any]) -> None:
    body = json.dumps(payload).encode()
    writer.write(_HEAD % (status, b"application/json") + b"content-length: %d\r\n\r\n" % len(body) + body)


async def _main(port: int, model: str) -> None:
    server = await asyncio.start_server(_Server(model).serve, "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Listen until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="soak")
    options = parser.parse_args()
    asyncio.run(_main(options.port, options.model))


if __name__ == "__main__":
    main()
