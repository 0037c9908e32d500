"""Which model the server under test serves; asked once, before any load."""

import asyncio
from typing import Any

import aiohttp
import orjson

from benchmarks.errors import TargetError
from gateway.wire import read_fault

_TIMEOUT_S = 10.0


async def find_model(session: aiohttp.ClientSession, base_url: str, wanted: str | None) -> str:
    """`wanted` if {base_url}/v1/models lists it, else the only model listed. TargetError says what stands in the way.

    A server without that path (404, 405) is taken at its word when `wanted` is given.
    """
    status, body = await _get(session, f"{base_url}/v1/models")
    if status in (404, 405) and wanted is not None:
        return wanted
    if status in (401, 403):
        raise TargetError(f"{base_url} answered {status} to GET /v1/models: give its key with --api-key")
    if status != 200:
        reason = read_fault(status, body).message
        raise TargetError(f"{base_url} answered {status} to GET /v1/models ({reason}): is it ready, is the URL right?")
    names = _names(base_url, body)
    if wanted is None:
        if len(names) != 1:
            raise TargetError(f"{base_url} serves {len(names)} models: choose one with --model ({', '.join(names)})")
        return names[0]
    if wanted not in names:
        raise TargetError(f"{base_url} does not serve '{wanted}': it serves {', '.join(names) or 'nothing'}")
    return wanted


async def _get(session: aiohttp.ClientSession, url: str) -> tuple[int, bytes]:
    try:
        async with asyncio.timeout(_TIMEOUT_S), session.get(url) as response:
            return response.status, await response.read()
    except TimeoutError:
        raise TargetError(f"{url} did not answer within {_TIMEOUT_S:g} s: is the server up?") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TargetError(f"cannot reach {url} ({reason}): is the server up, is the URL right?") from None


def _names(base_url: str, body: bytes) -> list[str]:
    try:
        raw: Any = orjson.loads(body)
        names = [row["id"] for row in raw["data"]]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        names = [None]
    if not all(isinstance(name, str) and name for name in names):
        raise TargetError(f"{base_url}/v1/models is not a list of models: is this an OpenAI-compatible server?")
    return names
