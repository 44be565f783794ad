"""A hub on this machine: answers the few requests that reading from one makes."""

import gzip
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote

COMMIT = "a" * 40


@contextmanager
def hub(
    name: str, files: dict[str, bytes], *, models: bool = False, revisions: dict | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Serve one data set or model; gives the endpoint and the list of requests made so far.

    `revisions` are other files by the name of a revision. A request for a range is listed with it.
    """
    requests: list[str] = []
    kind, home = ("models", name) if models else ("datasets", f"datasets/{name}")
    commits = {COMMIT: files} | {
        hashlib.sha1(revision.encode()).hexdigest(): held
        for revision, held in (revisions or {}).items()
    }

    def commit_of(revision):
        if revision in ("main", None):
            return COMMIT
        if revision in (revisions or {}):
            return hashlib.sha1(revision.encode()).hexdigest()
        return revision if revision in commits else None

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

        def entries(self, files, paths):
            return [
                {"type": "file", "path": p, "size": len(files[p]), "oid": _oid(files[p])}
                for p in paths
                if p in files
            ]

        def children(self, files, folder):
            prefix = f"{folder}/" if folder else ""
            below = [f.removeprefix(prefix) for f in files if f.startswith(prefix)]
            folders = sorted({f.split("/")[0] for f in below if "/" in f})
            direct = self.entries(files, [prefix + f for f in below if "/" not in f])
            return direct + [
                {"type": "directory", "path": prefix + f, "oid": _oid(f.encode())} for f in folders
            ]

        def do_GET(self):
            span = self.headers.get("Range")
            requests.append(f"{self.command} {self.path}" + (f" {span}" if span else ""))
            path = unquote(self.path.split("?")[0])
            api = f"/api/{kind}/{name}"
            if match := re.fullmatch(f"{api}(?:/revision/([^/]+))?", path):
                commit = commit_of(match[1])
                if commit is None:
                    self.missing("RevisionNotFound")
                    return
                siblings = [{"rfilename": file} for file in commits[commit]]
                self.answer({"id": name, "sha": commit, "siblings": siblings, "tags": []})
            elif match := re.fullmatch(f"{api}/tree/([^/]+)/?(.*)", path):
                self.answer(self.children(commits[commit_of(match[1])], match[2]))
            elif match := re.fullmatch(f"{api}/paths-info/([^/]+)", path):
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                asked = json.loads(body)["paths"] if body[0] == "{" else parse_qs(body)["paths"]
                self.answer(self.entries(commits[commit_of(match[1])], asked))
            elif match := re.fullmatch(f"/{home}/resolve/([^/]+)/(.*)", path):
                commit = commit_of(match[1])
                self.file(commits[commit], match[2], commit)
            else:
                self.missing("RepoNotFound" if path.startswith("/api/") else "EntryNotFound")

        do_HEAD = do_POST = do_GET  # noqa: N815

        def missing(self, code):
            self.answer({"error": "not found"}, 404, {"X-Error-Code": code})

        def file(self, files, name, commit):
            content = files.get(name)
            if content is None:
                self.missing("EntryNotFound")
                return
            headers = {
                "ETag": f'"{_oid(content)}"',
                "X-Repo-Commit": commit,
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
