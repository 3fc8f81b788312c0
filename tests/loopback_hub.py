"""A Hub of one user on the loopback address, for tests.

It speaks the HTTP protocol by which `huggingface_hub` creates a dataset or model repository, asks whether one may
write to it, uploads files (regular and LFS) and reads them back. Everything stays in memory.

    with LoopbackHub(token="hf_right") as hub:      # hub.endpoint is what HF_ENDPOINT should say
        ...
        hub.file("me/name", "README.md")            # bytes of the newest commit
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

Commit = tuple[str, dict[str, bytes]]


@dataclass
class Repo:
    """A repository: of main and of further branches the files after each commit, and what each commit was called."""

    private: bool = False
    commits: list[Commit] = field(default_factory=lambda: [("initial commit", {})])
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    lfs_paths: set[str] = field(default_factory=set)
    read_only: bool = False  # for the Hub's one token
    gated: bool = False  # and that token's owner was not let in

    def __post_init__(self):
        self.branches["main"] = self.commits

    def files(self, revision: str = "main") -> dict[str, bytes] | None:
        commit = self.find(revision)
        return None if commit is None else commit[1][1]

    def find(self, revision: str) -> tuple[str, Commit] | None:
        """SHA and commit of a branch, or of a SHA."""
        if revision in self.branches:
            commits = self.branches[revision]
            return _sha(len(commits) - 1, commits[-1]), commits[-1]
        shas = ((_sha(i, commit), commit) for commits in self.branches.values() for i, commit in enumerate(commits))
        return next((found for found in shas if found[0] == revision), None)

    @property
    def sha(self) -> str:
        return self.find("main")[0]


class LoopbackHub:
    """The server. Use it as a context manager.

    Args:
        token: the one token it accepts.
        user, orgs: who that token belongs to.
        role: what that token may do: "write", "read" or "fineGrained".
        fail: `{regular expression over "METHOD /path": HTTP status}`; the first match answers with that status. The
            status 0 drops the connection without an answer.
    """

    def __init__(self, token="hf_loopback", user="me", orgs=("my-org",), role="write", fail=None):
        self.token, self.user, self.orgs, self.role = token, user, list(orgs), role
        self.fail: dict[str, int] = dict(fail or {})
        self.repos: dict[str, Repo] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.daemon_threads = True
        self.server.hub = self
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc_info) -> None:
        self.stop()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def file(self, repo_id: str, path: str) -> bytes:
        return self.repos[repo_id].files()[path]

    def go_wrong(self, handler: BaseHTTPRequestHandler, line: str) -> bool:
        """Whether the request was answered already, by a fault: see faulty_hub.py."""
        return False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for the client's delayed acknowledgement

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    @property
    def hub(self) -> LoopbackHub:
        return self.server.hub

    def _answer(self) -> None:
        body = self._read_body()
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        line = f"{self.command} {path}"
        self.hub.requests.append(line)
        for pattern, status in self.hub.fail.items():
            if re.search(pattern, line):
                if status == 0:
                    self.close_connection = True
                    return self.connection.close()
                return self._send_json({"error": f"made to fail: {line}"}, status)
        if self.hub.go_wrong(self, line):
            return None
        authorization = self.headers.get("Authorization")
        if authorization not in (None, f"Bearer {self.hub.token}"):
            message = "Invalid credentials in Authorization header"
            return self._send_json({"error": message}, 401, {"X-Error-Message": message})
        for pattern, method in _ROUTES:
            if match := re.fullmatch(pattern, line):
                return method(self, *match.groups(), body=body, query=query, signed_in=authorization is not None)
        self._send_json({"error": f"the loopback Hub has no {line}"}, 404)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_json(self, payload, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(payload).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _repo(self, repo_id: str, signed_in: bool) -> Repo | None:
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not signed_in):
            message = "Repository not found"
            self._send_json({"error": message}, 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": message})
            return None
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> tuple[str, Commit] | None:
        if (found := repo.find(revision)) is None:
            message = f"Invalid rev id: {revision}"
            self._send_json({"error": message}, 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": message})
        return found

    def whoami(self, *, signed_in, **_) -> None:
        if not signed_in:
            return self._send_json({"error": "Invalid username or password."}, 401)
        orgs = [{"name": name, "roleInOrg": "admin"} for name in self.hub.orgs]
        auth = {"accessToken": {"displayName": "test", "role": self.hub.role}}
        self._send_json({"type": "user", "name": self.hub.user, "orgs": orgs, "auth": auth})

    def create_repo(self, *, body, signed_in, **_) -> None:
        wanted = json.loads(body)
        if not signed_in:
            return self._send_json({"error": "only signed in"}, 403)
        repo_id = f"{wanted.get('organization') or self.hub.user}/{wanted['name']}"
        url = f"{self.hub.endpoint}/{'datasets/' if wanted.get('type') == 'dataset' else ''}{repo_id}"
        if repo_id in self.hub.repos:
            return self._send_json({"error": "You already created this repo", "url": url, "id": repo_id}, 409)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.repos[repo_id] = Repo(private=private)
        self._send_json({"url": url, "name": repo_id, "id": repo_id})

    def auth_check(self, repo_id, *, signed_in, **_) -> None:
        if self._repo(repo_id, signed_in):
            self._send_json({})

    def auth_check_write(self, repo_id, *, signed_in, **_) -> None:
        if repo := self._repo(repo_id, signed_in):
            if not signed_in or repo.read_only:
                message = f"You don't have write access to {repo_id}"
                return self._send_json({"error": message}, 403, {"X-Error-Message": message})
            self._send_json({})

    def validate_yaml(self, **_) -> None:
        self._send_json({"errors": [], "warnings": []})

    def repo_info(self, repo_id, revision="main", *, query, signed_in, **_) -> None:
        repo = self._repo(repo_id, signed_in)
        if repo and (found := self._commit_of(repo, revision)):
            sha, (_, files) = found
            siblings = [{"rfilename": path} for path in files]
            if "blobs" in query:
                for file in siblings:
                    entry = self._entry(repo, file["rfilename"], files[file["rfilename"]])
                    file |= {"size": entry["size"], "blobId": entry["oid"]}
                    file |= {"lfs": {"sha256": entry["lfs"]["oid"], **entry["lfs"]}} if "lfs" in entry else {}
            info = {
                "_id": "0" * 24,
                "id": repo_id,
                "author": repo_id.split("/")[0],
                "sha": sha,
                "siblings": siblings,
            }
            self._send_json(
                {**info, "private": repo.private, "gated": False, "disabled": False, "downloads": 0, "tags": []}
            )

    def create_branch(self, repo_id, branch, *, signed_in, **_) -> None:
        if repo := self._repo(repo_id, signed_in):
            if branch in repo.branches:
                return self._send_json({"error": "Reference already exists"}, 409)
            repo.branches[branch] = list(repo.commits)
            self._send_json({})

    def preupload(self, repo_id, revision, *, body, signed_in, **_) -> None:
        repo = self._repo(repo_id, signed_in)
        if repo and (found := self._commit_of(repo, revision)):
            modes = []
            for wanted in json.loads(body)["files"]:
                path = wanted["path"]
                mode = {"path": path, "uploadMode": "lfs" if path.endswith(_LARGE) else "regular"}
                if path in found[1][1]:
                    entry = self._entry(repo, path, found[1][1][path])
                    mode["oid"] = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
                modes.append({**mode, "shouldIgnore": False})
            self._send_json({"files": modes})

    def lfs_batch(self, *, body, **_) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}"}}
            known = wanted["oid"] in self.hub.lfs_objects
            objects.append(wanted if known else {**wanted, "actions": upload})
        self._send_json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid, *, body, **_) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._send_json({"error": "content does not match its SHA-256"}, 400)
        self.hub.lfs_objects[oid] = body
        self._send(b"")

    def commit(self, repo_id, branch, *, body, signed_in, **_) -> None:
        if not signed_in:
            return self._send_json({"error": "signed out"}, 401)
        if not (repo := self._repo(repo_id, signed_in)):
            return None
        if repo.read_only:
            message = f"You don't have write access to {repo_id}"
            return self._send_json({"error": message}, 403, {"X-Error-Message": message})
        if branch not in repo.branches:
            return self._send_json({"error": f"{branch} is no branch"}, 400)
        header, *operations = [json.loads(line) for line in body.splitlines()]
        if header["value"].get("parentCommit") not in (None, repo.find(branch)[0]):
            return self._send_json({"error": "A commit has happened since"}, 412)
        files = dict(repo.files(branch))
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs_objects[value["oid"]]
                repo.lfs_paths.add(value["path"])
            else:
                del files[value["path"]]
        repo.branches[branch].append((header["value"]["summary"], files))
        sha = repo.find(branch)[0]
        url = f"{self.hub.endpoint}/datasets/{repo_id}/commit/{sha}"
        self._send_json({"success": True, "commitOid": sha, "commitUrl": url})

    def tree(self, repo_id, revision, folder=None, *, query, signed_in, **_) -> None:
        repo = self._repo(repo_id, signed_in)
        if not repo or not (found := self._commit_of(repo, revision)):
            return
        prefix, files = f"{folder}/" if folder else "", found[1][1]
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = {}
        for path in files:
            if path.startswith(prefix):
                head, _, below = path.removeprefix(prefix).partition("/")
                if below:
                    entries[prefix + head] = {"type": "directory", "path": prefix + head, "oid": "0" * 40, "size": 0}
                if recursive or not below:
                    entries[path] = self._entry(repo, path, files[path])
        if folder and not entries:
            return self._send_json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        self._send_json(list(entries.values()))

    def paths_info(self, repo_id, revision, *, body, signed_in, **_) -> None:
        repo = self._repo(repo_id, signed_in)
        if repo and (found := self._commit_of(repo, revision)):
            is_json = "json" in self.headers.get("Content-Type", "")
            wanted = (json.loads(body) if is_json else parse_qs(body.decode()))["paths"]
            files = found[1][1]
            entries = [self._entry(repo, path, files[path]) for path in wanted if path in files]
            folders = [path for path in wanted if any(name.startswith(f"{path}/") for name in files)]
            entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders]
            self._send_json(entries)

    def _entry(self, repo: Repo, path: str, content: bytes) -> dict:
        """A file as git has it: of a large one the pointer."""
        entry = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
        if path in repo.lfs_paths:
            sha256 = hashlib.sha256(content).hexdigest()
            pointer = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
            )
            lfs = {"oid": sha256, "size": len(content), "pointerSize": len(pointer)}
            entry |= {"oid": _blob(pointer), "lfs": lfs}
        return entry

    def resolve(self, repo_id, revision, path, *, signed_in, **_) -> None:
        if not (repo := self._repo(repo_id, signed_in)):
            return
        if repo.gated:
            message = f"Access to {repo_id} is restricted. You must have access to it and be authenticated."
            return self._send_json({"error": message}, 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
        if not (found := self._commit_of(repo, revision)):
            return
        commit, (_, files) = found
        if (content := files.get(path)) is None:
            message = "Entry not found"
            return self._send_json({"error": message}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            return self._send(content[start:stop], 206, headers)
        self._send(content, 200, headers)


def _sha(number: int, commit: Commit) -> str:
    """Of a commit, by what it holds: branches share what they have in common."""
    digest = hashlib.sha1(f"commit {number} {commit[0]}".encode())
    for path, content in sorted(commit[1].items()):
        digest.update(path.encode() + hashlib.sha1(content).digest())
    return digest.hexdigest()


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_LARGE = (".parquet", ".safetensors", ".bin")
_REPO = "([^/]+/[^/]+)"
_KIND = "(?:datasets|models)"
_ROUTES = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create_repo),
    (r"POST /api/validate-yaml", _Handler.validate_yaml),
    (rf"GET /api/{_KIND}/([^/]+(?:/[^/]+)?)", _Handler.repo_info),
    (rf"GET /api/{_KIND}/{_REPO}/revision/([^/]+)", _Handler.repo_info),
    (rf"GET /api/{_KIND}/{_REPO}/auth-check", _Handler.auth_check),
    (rf"GET /api/{_KIND}/{_REPO}/auth-check/write", _Handler.auth_check_write),
    (rf"POST /api/{_KIND}/{_REPO}/preupload/(.+)", _Handler.preupload),
    (
        rf"POST (?:/datasets)?/{_REPO}.git/info/lfs/objects/batch",
        lambda handler, _repo, **rest: handler.lfs_batch(**rest),
    ),
    (r"PUT /lfs/([0-9a-f]{64})", _Handler.lfs_upload),
    (rf"POST /api/{_KIND}/{_REPO}/commit/(.+)", _Handler.commit),
    (rf"POST /api/{_KIND}/{_REPO}/branch/(.+)", _Handler.create_branch),
    (rf"GET /api/{_KIND}/{_REPO}/tree/([^/]+)", _Handler.tree),
    (rf"GET /api/{_KIND}/{_REPO}/tree/([^/]+)/(.+)", _Handler.tree),
    (rf"POST /api/{_KIND}/{_REPO}/paths-info/([^/]+)", _Handler.paths_info),
    (rf"(?:GET|HEAD) (?:/datasets)?/{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
