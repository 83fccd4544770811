"""A client of the API, by the Service's address: whole answers, and streams that are read as they come."""

import http.client
import json
import time

# Greedy, and to the end that was asked for: the same words every time, whatever happens to pods.
QUESTION = {"prompt": "Once upon a time", "temperature": 0, "ignore_eos": True}


class Client:
    def __init__(self, address: str, key: str | None):
        self.address, self.key = address, key

    def ask(self, method: str, path: str, body: dict | None = None, timeout_s: float = 120) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.address, 80, timeout=timeout_s)
        headers = {"content-type": "application/json"}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        connection.request(method, path, json.dumps(body) if body else None, headers)
        return connection.getresponse()

    def status(self, path: str) -> int:
        try:
            return self.ask("GET", path, timeout_s=5).status
        except (OSError, http.client.HTTPException):
            return 0

    def cluster(self) -> dict:
        return json.loads(self.ask("GET", "/v1/cluster").read())

    def text(self, tokens: int) -> str:
        answer = self.ask("POST", "/v1/completions", QUESTION | {"max_tokens": tokens})
        body = answer.read()
        assert answer.status == 200, body
        return json.loads(body)["choices"][0]["text"]

    def stream(self, tokens: int) -> "Stream":
        answer = self.ask("POST", "/v1/completions", QUESTION | {"max_tokens": tokens, "stream": True})
        assert answer.status == 200, answer.read()
        return Stream(answer)


class Stream:
    def __init__(self, answer: http.client.HTTPResponse):
        self.answer, self.text, self.reason, self.is_done = answer, "", None, False
        self.pause_s_max, self.heard = 0.0, time.monotonic()

    def read(self, chunks: int | None = None) -> "Stream":
        """So many chunks with text, or to the end."""
        while (chunks is None or chunks > 0) and not self.is_done:
            line = self.answer.readline()
            assert line, f"the stream broke off after {len(self.text)} letters"
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                self.is_done = True
                break
            now = time.monotonic()
            self.pause_s_max, self.heard = max(self.pause_s_max, now - self.heard), now
            data = json.loads(line[6:])
            assert "error" not in data, data
            for choice in data["choices"]:
                self.text += choice["text"]
                self.reason = choice.get("finish_reason") or self.reason
            chunks = chunks - 1 if chunks else None
        return self
