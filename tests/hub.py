"""The Hub's own protocol on loopback: model information, files by range, and its error headers; never any weights."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch

import huggingface_hub.constants


@dataclass
class LoopbackHub:
    """A Hub with one repository; `files` by name, or `fault` for every request."""

    repo: str
    files: dict[str, bytes] = field(default_factory=dict)
    fault: tuple[int, str] | None = None  # status and X-Error-Code
    served_bytes: int = 0
    endpoint: str = ""

    def response(self, path: str, wanted_range: str | None) -> tuple[int, dict[str, str], bytes]:
        if self.fault is not None:
            return self.fault[0], {"X-Error-Code": self.fault[1], "X-Error-Message": "no"}, b""
        if path.startswith(f"/api/models/{self.repo}"):
            info = {"id": self.repo, "modelId": self.repo, "siblings": [{"rfilename": name} for name in self.files]}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        content = self.files.get(path.rpartition("/")[2])
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        if wanted_range is not None:
            first, last = wanted_range.removeprefix("bytes=").split("-")
            return 206, {}, content[int(first) : int(last) + 1]
        return 200, {}, content


@contextmanager
def running(hub: LoopbackHub) -> Iterator[LoopbackHub]:
    """Serve `hub` on a free loopback port until the block ends; sets `hub.endpoint`.

    Its client may have been imported first by a test that builds vLLM's models offline, and keeps what it read then.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.response(self.path.partition("?")[0], self.headers.get("Range"))
            hub.served_bytes += len(body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", False):
            yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
