"""A hub on this machine: answers the few requests that streaming a data set makes."""

import gzip
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


@contextmanager
def hub(dataset: str, files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve one data set; gives the endpoint and the list of requests made so far."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def answer(self, body, status=200, headers=None):
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in (headers or {"Content-Type": "application/json"}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def entries(self, paths):
            return [
                {"type": "file", "path": p, "size": len(files[p]), "oid": _oid(files[p])}
                for p in paths
                if p in files
            ]

        def children(self, folder):
            prefix = f"{folder}/" if folder else ""
            below = [f.removeprefix(prefix) for f in files if f.startswith(prefix)]
            folders = sorted({f.split("/")[0] for f in below if "/" in f})
            direct = self.entries([prefix + f for f in below if "/" not in f])
            return direct + [
                {"type": "directory", "path": prefix + f, "oid": _oid(f.encode())} for f in folders
            ]

        def do_GET(self):
            requests.append(f"{self.command} {self.path}")
            path = self.path.split("?")[0]
            api = f"/api/datasets/{dataset}"
            if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                siblings = [{"rfilename": name} for name in files]
                self.answer({"id": dataset, "sha": COMMIT, "siblings": siblings, "tags": []})
            elif match := re.fullmatch(f"{api}/tree/[^/]+/?(.*)", path):
                self.answer(self.children(match[1]))
            elif match := re.fullmatch(f"/datasets/{dataset}/resolve/[^/]+/(.*)", path):
                self.file(match[1].replace("%2F", "/"))
            else:
                missing = {"X-Error-Code": "EntryNotFound", "Content-Type": "application/json"}
                self.answer({"error": "not found"}, 404, missing)

        do_HEAD = do_GET  # noqa: N815

        def file(self, name):
            content = files.get(name)
            if content is None:
                self.answer({}, 404, {"X-Error-Code": "EntryNotFound"})
                return
            headers = {
                "ETag": f'"{_oid(content)}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            span = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if span:
                first, last = int(span[1]), int(span[2] or len(content) - 1)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
                self.answer(content[first : last + 1], 206, headers)
            else:
                self.answer(content, 200, headers)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def lines(texts: list[str]) -> bytes:
    """A gzipped shard of JSON lines, as C4 has it."""
    return gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in texts).encode())
