"""A scripted model behind a real HTTP server on 127.0.0.1, for agents that call a model's service.

It speaks the Messages API (streaming or not), OpenAI's Responses API and Gemini's, as far as coding agents use them. A
test gives it a function from what was asked (Asked) to what is answered: a list of Say and Use, a Fault, CUT for an
answer that breaks off in mid-stream, SLOW for one that never ends, SILENT for one that stops without ending, or PINGS
for one in which only pings come.
"""

import dataclasses
import json
import re
import select
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CUT, SLOW, SILENT, PINGS = "cut", "slow", "silent", "pings"
EDITOR = "str_replace_based_edit_tool"
KEY = "sk-ant-api03-abcdefghijklmnopqrstuvwxyz0123456789"
SPOIL = None  # a function that damages each event of an answer, or None


@dataclasses.dataclass(frozen=True)
class Say:
    text: str


@dataclasses.dataclass(frozen=True)
class Use:
    """A call of a tool, by its name or by what it does.

    `read` (path) and `edit` (path, old, new) find the tool that an agent offers for it.
    """

    tool: str
    arguments: dict


@dataclasses.dataclass(frozen=True)
class Fault:
    status: int
    kind: str = "api_error"
    text: str = "no"
    wait: float = 0.01  # seconds after which to try again


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request for an answer."""

    path: str
    headers: dict[str, str]  # names in lower case
    body: dict
    text: str  # the whole body
    experiment: int  # whose brief it holds; 0 for none
    results: list[str]  # of the tools that the agent has called since, as text
    tools: dict[str, list[str]]  # offered: by name its parameters


Answer = list[Say | Use] | Fault | str


def edit(old: object, new: object) -> Use:
    """The edit of the toy's value, with claude-api's tool."""
    values = {"old_str": f"VALUE = {old}", "new_str": f"VALUE = {new}"}
    return Use(EDITOR, {"command": "str_replace", "path": "solver.py", **values})


def create(path: str, text: str) -> Use:
    return Use(EDITOR, {"command": "create", "path": path, "file_text": text})


def submit(description: str = "a larger value", **more) -> Use:
    usual = {"category": "optimizer", "hypothesis": "larger is better", "predicted": 1.0}
    return Use("submit", {"description": description, **usual, **more})


def steps(*by_experiment: list) -> Callable[[Asked], Answer]:
    """A model that for experiment 2, 3, ... answers with these turns, one after the other."""

    def answer(asked: Asked) -> Answer:
        turns = by_experiment[asked.experiment - 2]
        return turns[min(len(asked.results), len(turns) - 1)]

    return answer


def read_edit_say(edits: dict[int, tuple[str, str]], file: str, say: str) -> Callable[[Asked], Answer]:
    """A model that for experiment N reads the file, makes edits[N] (old text, new text), and says so.

    It submits where that is a tool, else it ends with the text `say`.
    """

    def answer(asked: Asked) -> Answer:
        if asked.experiment not in edits or not asked.tools:  # a title for the session, or the like
            return [Say("An edit")]
        if "submit" in asked.tools:  # our own agent
            old, new = edits[asked.experiment]
            editor = {"command": "str_replace", "path": file, "old_str": old, "new_str": new}
            given = dict(line.split(": ", 1) for line in say.format(number=asked.experiment).splitlines())
            return [Use("submit", given)] if asked.results else [Use(EDITOR, editor)]
        old, new = edits[asked.experiment]
        steps = [Use("read", {"path": file}), Use("edit", {"path": file, "old": old, "new": new})]
        done = len(asked.results)
        return [steps[done]] if done < len(steps) else [Say(say.format(number=asked.experiment))]

    return answer


class Models(ThreadingHTTPServer):
    """The server at `url`. asked: the requests so far. sent: the events of streams so far."""

    daemon_threads = True

    def __init__(self, answer: Callable[[Asked], Answer], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.answer, self.sent = answer, 0
        self.asked: list[Asked] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self) -> "Models":
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        pass  # a client that was stopped hangs up


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
        api = next((api for ending, api in APIS.items() if path.endswith(ending)), None)
        if path.endswith("/count_tokens"):
            self.send_json({"input_tokens": 100})
        elif api is None:
            self.send_json({}, 404)
        else:
            results, tools = api.read(body)
            found = re.search(r"# Experiment (\d+)", text)
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(path, headers, body, text, int(found[1]) if found else 0, results, tools)
            self.server.asked.append(asked)
            self.send(asked, self.server.answer(asked), api)

    def send(self, asked: Asked, answer: Answer, api: "API") -> None:
        if isinstance(answer, Fault):
            fault = {"type": "error", "error": {"type": answer.kind, "message": answer.text, "code": answer.status}}
            self.send_json(
                fault,
                answer.status,
                **{"retry-after-ms": f"{1000 * answer.wait:.0f}", "retry-after": f"{answer.wait:.0f}"},
            )
            return
        events = api.events(asked, [Say("Let me think about")] if isinstance(answer, str) else answer)
        if api is MESSAGES and not asked.body.get("stream"):
            self.send_json(as_message(asked, answer))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()  # HTTP/1.0: the end of the connection ends the answer
        for event in events[: api.cut if answer == CUT else None]:
            if SPOIL:
                SPOIL(event)
            name = f"event: {event['type']}\n" if "type" in event else ""
            self.wfile.write(f"{name}data: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
            self.server.sent += 1
            while answer in (SLOW, SILENT, PINGS) and event is events[api.cut - 1]:
                if select.select([self.connection], [], [], 0.1)[0]:
                    return  # the client has hung up
                if answer == SILENT:
                    continue
                self.server.sent += 1
                more = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " and"}}
                more = {"type": "ping"} if answer == PINGS else more
                self.wfile.write(f"event: {more['type']}\ndata: {json.dumps(more)}\n\n".encode())
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


@dataclasses.dataclass(frozen=True)
class API:
    """How one service is spoken to."""

    read: Callable[[dict], tuple[list[str], dict[str, list[str]]]]  # from a body: (results of tools, tools offered)
    events: Callable[[Asked, list[Say | Use]], list[dict]]  # of the stream that answers
    cut: int  # events of it before it breaks off


def read_messages(body: dict) -> tuple[list[str], dict[str, list[str]]]:
    blocks = [
        block for message in body["messages"] if isinstance(message["content"], list) for block in message["content"]
    ]
    results = [json.dumps(block.get("content")) for block in blocks if block.get("type") == "tool_result"]
    return results, {
        tool["name"]: list(tool.get("input_schema", {}).get("properties", {})) for tool in body.get("tools", [])
    }


def fitted(use: Use, tools: dict[str, list[str]]) -> tuple[str, dict]:
    """(Name, arguments) of a call as the agent's own tools want it: Edit(file_path, old_string), edit(filePath)."""
    name = next((name for name in tools if name.lower() == use.tool), None)
    if use.tool not in ("read", "edit") or name is None:
        return use.tool, use.arguments
    plain = {re.sub(r"[^a-z]|file|string", "", parameter.lower()): parameter for parameter in tools[name]}
    return name, {plain[key]: value for key, value in use.arguments.items()}


def as_message(asked: Asked, blocks: list[Say | Use]) -> dict:
    content = []
    for number, block in enumerate(blocks):
        if isinstance(block, Use):
            name, arguments = fitted(block, asked.tools)
            content.append(
                {"type": "tool_use", "id": f"toolu_{len(asked.results)}_{number}", "name": name, "input": arguments}
            )
        else:
            content.append({"type": "text", "text": block.text})
    stop = "tool_use" if any(isinstance(block, Use) for block in blocks) else "end_turn"
    return {
        "id": f"msg_{len(asked.results)}",
        "type": "message",
        "role": "assistant",
        "model": asked.body["model"],
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 100,
            "output_tokens": 10,
            "cache_read_input_tokens": 1000,
            "cache_creation_input_tokens": 0,
        },
    }


def message_events(asked: Asked, blocks: list[Say | Use]) -> list[dict]:
    """The same message as the events of a stream."""
    message = as_message(asked, blocks)
    events = [{"type": "message_start", "message": {**message, "content": [], "stop_reason": None}}]
    for index, block in enumerate(message["content"]):
        if block["type"] == "text":
            start, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
        else:
            start, delta = (
                {**block, "input": {}},
                {"type": "input_json_delta", "partial_json": json.dumps(block["input"])},
            )
        events += [
            {"type": "content_block_start", "index": index, "content_block": start},
            {"type": "content_block_delta", "index": index, "delta": delta},
            {"type": "content_block_stop", "index": index},
        ]
    ending = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    return [
        *events,
        {"type": "message_delta", "delta": ending, "usage": {"output_tokens": 10}},
        {"type": "message_stop"},
    ]


def read_responses(body: dict) -> tuple[list[str], dict[str, list[str]]]:
    results = [
        json.dumps(item.get("output"))
        for item in body["input"]
        if item.get("type") in ("function_call_output", "custom_tool_call_output")
    ]
    return results, {tool["name"]: [] for tool in body.get("tools", []) if "name" in tool}


def response_events(asked: Asked, blocks: list[Say | Use]) -> list[dict]:
    """As Codex takes it: it reads with a shell, and edits with a patch."""
    items = []
    for block in blocks:
        call = {"call_id": f"call_{len(asked.results)}"}
        if isinstance(block, Say):
            items.append(
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": block.text}]}
            )
        elif block.tool == "edit":
            removed, added = (
                ["".join((sign, line)) for line in block.arguments[name].split("\n")]
                for sign, name in (("-", "old"), ("+", "new"))
            )
            patch = "\n".join(
                [
                    "*** Begin Patch",
                    f"*** Update File: {block.arguments['path']}",
                    "@@",
                    *removed,
                    *added,
                    "*** End Patch",
                    "",
                ]
            )
            items.append({"type": "custom_tool_call", "name": "apply_patch", "input": patch, **call})
        else:
            command = {"cmd": f"cat {block.arguments['path']}"} if block.tool == "read" else block.arguments
            items.append({"type": "function_call", "name": "exec_command", "arguments": json.dumps(command), **call})
    usage = {
        "input_tokens": 1100,
        "input_tokens_details": {"cached_tokens": 1000},
        "output_tokens": 10,
        "total_tokens": 1110,
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    return [
        {"type": "response.created", "response": {"id": "resp_1"}},
        *(
            {"type": "response.output_item.done", "output_index": index, "item": item}
            for index, item in enumerate(items)
        ),
        {"type": "response.completed", "response": {"id": "resp_1", "usage": usage}},
    ]


def read_gemini(body: dict) -> tuple[list[str], dict[str, list[str]]]:
    parts = [part for content in body["contents"] for part in content.get("parts", [])]
    declared = [function for tool in body.get("tools", []) for function in tool.get("functionDeclarations", [])]
    tools = {
        function["name"]: list(
            (function.get("parametersJsonSchema") or function.get("parameters") or {}).get("properties", {})
        )
        for function in declared
    }
    return [json.dumps(part["functionResponse"]) for part in parts if "functionResponse" in part], tools


def gemini_events(asked: Asked, blocks: list[Say | Use]) -> list[dict]:
    parts = []
    for block in blocks:
        match block:
            case Say(text):
                parts.append({"text": text})
            case Use("read", given):
                parts.append({"functionCall": {"name": "read_file", "args": {"file_path": given["path"]}}})
            case Use("edit", given):
                parts.append(
                    {
                        "functionCall": {
                            "name": "replace",
                            "args": {
                                "file_path": given["path"],
                                "instruction": "edit",
                                "old_string": given["old"],
                                "new_string": given["new"],
                            },
                        }
                    }
                )
            case Use(tool, given):
                parts.append({"functionCall": {"name": tool, "args": given}})
    usage = {
        "promptTokenCount": 1100,
        "cachedContentTokenCount": 1000,
        "candidatesTokenCount": 10,
        "thoughtsTokenCount": 0,
        "totalTokenCount": 1110,
    }
    return [
        {"candidates": [{"index": 0, "content": {"role": "model", "parts": parts}}]},
        {
            "candidates": [{"index": 0, "content": {"role": "model", "parts": [{"text": ""}]}, "finishReason": "STOP"}],
            "usageMetadata": usage,
        },
    ]


MESSAGES = API(read_messages, message_events, 3)
APIS = {
    "/messages": MESSAGES,
    "/responses": API(read_responses, response_events, 1),
    ":streamGenerateContent": API(read_gemini, gemini_events, 1),
}
