"""A wandb server as far as its client wants one, on this machine: it keeps runs and their rows."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WandbServer:
    """`runs`: id -> {group, project, rows}; a row is what one call of `log` has sent.

    `deleted`: ids that it refuses, as wandb does for ever once a run was deleted there.
    """

    def __init__(self):
        self.runs = {}
        self.deleted = set()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.environment = {
            "WANDB_BASE_URL": f"http://127.0.0.1:{self.http.server_port}",
            "WANDB_API_KEY": "0123456789" * 4,
        }

    def stop(self):
        self.http.shutdown()
        self.http.server_close()

    def _handler(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self._body()
                if self.path.endswith("/graphql"):
                    asked = json.loads(body)
                    variables = asked.get("variables") or {}
                    name = variables.get("name")
                    if "UpsertBucket" in asked["query"] and name in server.deleted:
                        message = f"run {name} was previously created and deleted; "
                        message += "try a new run name"
                        refused = {"data": {"upsertBucket": None}, "errors": [{"message": message}]}
                        return self._answer(refused, 409)
                    answer = {"data": server.graphql(asked["query"], variables)}
                elif self.path.endswith("/file_stream"):
                    answer = server.stream(self.path.split("/")[-2], json.loads(body))
                else:
                    answer = {}
                return self._answer(answer)

            def do_PUT(self):
                self._body()
                self._answer({})

            do_GET = do_PUT

            def _body(self):
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                zipped = self.headers.get("Content-Encoding") == "gzip"
                return gzip.decompress(data) if zipped else data

            def _answer(self, value, status=200):
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *words):
                pass

        return Handler

    def graphql(self, query, asked):
        if "viewer {" in query:
            return {"viewer": {"id": "1", "entity": "lab", "username": "lab"}}
        if "RunResumeStatus" in query:
            run = self.runs.get(asked["name"])
            bucket = run and self._known(run)
            return {"model": {"id": "1", "name": asked["project"], "bucket": bucket}}
        if "UpsertBucket" in query:
            new = asked["name"] not in self.runs
            run = self.runs.setdefault(asked["name"], {"id": asked["name"], "rows": []})
            run |= {key: asked[key] for key in ("groupName", "project") if asked.get(key)}
            project = {"id": "1", "name": run["project"], "entity": {"id": "1", "name": "lab"}}
            return {"upsertBucket": {"bucket": self._known(run, project=project), "inserted": new}}
        if "CreateRunFiles" in query:
            url = self.environment["WANDB_BASE_URL"]
            files = [{"name": name, "uploadUrl": f"{url}/{name}"} for name in asked["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        return {}

    def _known(self, run, **more):
        rows = run["rows"]
        return {
            "id": run["id"],
            "name": run["id"],
            "config": "{}",
            "summaryMetrics": "{}",
            "historyLineCount": len(rows),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
            "eventsTail": "[]",
            **more,
        }

    def stream(self, run, body):
        history = body.get("files", {}).get("wandb-history.jsonl")
        if history:
            rows = self.runs[run]["rows"]
            rows[history["offset"] :] = [json.loads(line) for line in history["content"]]
        return {"exitcode": None, "limits": {}}
