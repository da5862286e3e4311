"""A scripted model behind a real HTTP server on 127.0.0.1, for agents that believe they speak to a model's service.

It speaks the Messages API, streaming or not. A test gives it a function from what was asked (Asked) to what is
answered: a list of Say and Use, a Fault, or CUT for an answer that breaks off in mid-stream.
"""

import dataclasses
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CUT = "cut"


@dataclasses.dataclass(frozen=True)
class Say:
    text: str


@dataclasses.dataclass(frozen=True)
class Use:
    """A call of a tool, by its name or by what it does: `read` and `edit` find the tool that an agent offers for it."""

    tool: str
    arguments: dict


@dataclasses.dataclass(frozen=True)
class Fault:
    status: int
    kind: str = "api_error"
    text: str = "no"


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request for an answer."""

    path: str
    headers: dict[str, str]         # names in lower case
    body: dict
    text: str                       # the whole body
    experiment: int                 # whose brief it holds; 0 for none
    results: list[str]              # of the tools that the agent has called since, as text
    tools: dict[str, list[str]]     # offered: by name its parameters


Answer = list[Say | Use] | Fault | str


def read_edit_say(edits: dict[int, tuple[str, str]], file: str, say: str) -> Callable[[Asked], Answer]:
    """A model that for experiment N reads the file, makes edits[N] (old text, new text) and ends with a text."""
    def answer(asked: Asked) -> Answer:
        if asked.experiment not in edits or not asked.tools:            # a title for the session, or the like
            return [Say("An edit")]
        old, new = edits[asked.experiment]
        steps = [Use("read", {"path": file}), Use("edit", {"path": file, "old": old, "new": new})]
        done = len(asked.results)
        return [steps[done]] if done < len(steps) else [Say(say.format(number=asked.experiment))]
    return answer


class Models(ThreadingHTTPServer):
    """The server. Its address is `url`; what it was asked stands in `asked`."""

    daemon_threads = True

    def __init__(self, answer: Callable[[Asked], Answer], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.answer, self.asked = answer, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self) -> "Models":
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        pass                        # a client that was stopped hangs up


class Handler(BaseHTTPRequestHandler):
    server: Models

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.send_json({}, 404)

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        body, path = json.loads(text or "{}"), self.path.partition("?")[0]
        if path.endswith("/count_tokens"):
            self.send_json({"input_tokens": 100})
        elif path.endswith("/messages"):
            asked = read_messages(path, {name.lower(): value for name, value in self.headers.items()}, body, text)
            self.server.asked.append(asked)
            self.send(asked, self.server.answer(asked))
        else:
            self.send_json({}, 404)

    def send(self, asked: Asked, answer: Answer) -> None:
        if isinstance(answer, Fault):
            fault = {"type": "error", "error": {"type": answer.kind, "message": answer.text}}
            self.send_json(fault, answer.status, **{"retry-after-ms": "10", "retry-after": "0"})
            return
        blocks = [Say("Let me think about")] if answer == CUT else answer
        message = as_message(asked, blocks)
        if not asked.body.get("stream"):
            self.send_json(message)
            return
        events = as_events(message)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()          # HTTP/1.0: the end of the connection ends the answer
        for event in events[: 3 if answer == CUT else None]:
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()

    def send_json(self, value: dict, status: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


def read_messages(path: str, headers: dict[str, str], body: dict, text: str) -> Asked:
    """A request of the Messages API."""
    blocks = [block for message in body["messages"] if isinstance(message["content"], list) for block in message["content"]]
    results = [json.dumps(block.get("content")) for block in blocks if block.get("type") == "tool_result"]
    found = re.search(r"# Experiment (\d+)", text)
    tools = {tool["name"]: list(tool.get("input_schema", {}).get("properties", {})) for tool in body.get("tools", [])}
    return Asked(path, headers, body, text, int(found[1]) if found else 0, results, tools)


def fitted(use: Use, tools: dict[str, list[str]]) -> tuple[str, dict]:
    """(Name, arguments) of a tool call as the agent's own tools want it: Edit(file_path, old_string, ...), edit(filePath, ...)."""
    name = next((name for name in tools if name.lower().startswith(use.tool)), None)
    if use.tool in tools or name is None:
        return use.tool, use.arguments
    plain = {re.sub(r"[^a-z]|file|string", "", parameter.lower()): parameter for parameter in tools[name]}
    return name, {plain[key]: value for key, value in use.arguments.items()}


def as_message(asked: Asked, blocks: list[Say | Use]) -> dict:
    content = []
    for number, block in enumerate(blocks):
        if isinstance(block, Use):
            name, arguments = fitted(block, asked.tools)
            content.append({"type": "tool_use", "id": f"toolu_{len(asked.results)}_{number}", "name": name, "input": arguments})
        else:
            content.append({"type": "text", "text": block.text})
    stop = "tool_use" if any(isinstance(block, Use) for block in blocks) else "end_turn"
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": asked.body["model"], "content": content, "stop_reason": stop,
            "stop_sequence": None, "usage": {"input_tokens": 100, "output_tokens": 10, "cache_read_input_tokens": 1000, "cache_creation_input_tokens": 0}}


def as_events(message: dict) -> list[dict]:
    """The same message as the events of a stream."""
    events = [{"type": "message_start", "message": {**message, "content": [], "stop_reason": None}}]
    for index, block in enumerate(message["content"]):
        if block["type"] == "text":
            start, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
        else:
            start, delta = {**block, "input": {}}, {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        events += [{"type": "content_block_start", "index": index, "content_block": start},
                   {"type": "content_block_delta", "index": index, "delta": delta}, {"type": "content_block_stop", "index": index}]
    ending = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    return [*events, {"type": "message_delta", "delta": ending, "usage": {"output_tokens": 10}}, {"type": "message_stop"}]
