"""An OpenAI-compatible server that computes nothing: it streams tokens after known delays, and at
its end (SIGINT, SIGTERM) prints when it really sent each of them. For checking load generators.

    python tools/stub_openai_server.py --port 8009 --first-ms 50 --token-ms 10

First line on stdout: {"port": N}; last: {"requests": [{"name", "received_s", "began_s", "sent_s",
"prompt_tokens", "prompt_crc"}]}. Times are of CLOCK_MONOTONIC, which processes of one machine
share; `name` is the request's X-Request-Id. A prompt has as many tokens as it has ids or words.
"""

import argparse
import asyncio
import json
import signal
import time
import zlib
from contextlib import suppress

FAILURES = ("status", "server", "stream", "short", "silent", "garbage")
NUM_BEFORE_FAILURE = 2  # pieces that are sent
CHAT_TOKENS = 7  # what a chat template adds


class Stub:
    def __init__(self, options):
        self.options = options
        self.places = asyncio.Semaphore(options.slots) if options.slots else None
        self.log = []

    async def serve(self, reader, writer):
        gone = (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError)
        with suppress(*gone):
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *fields = head.decode().split("\r\n")
                headers = dict(field.lower().split(": ", 1) for field in fields if field)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                received_s = time.perf_counter()
                path = line.split()[1]
                if self.options.key and headers.get("authorization") != self.expected_key():
                    self.answer(writer, 401, {"error": {"message": "another key"}})
                elif path == "/v1/models":
                    entry = {"id": "stub", "object": "model", "owned_by": self.options.kind}
                    self.answer(writer, 200, {"object": "list", "data": [entry]})
                elif path == "/tokenize" and not self.options.text_only:
                    fields = json.loads(body)
                    words = (fields.get("content") or fields.get("prompt")).split()
                    ids = [100 + zlib.crc32(word.encode()) % 30000 for word in words]
                    self.answer(writer, 200, {"tokens": ids})
                elif path in ("/v1/completions", "/v1/chat/completions"):
                    name = headers.get("x-request-id", "")
                    await self.complete(writer, json.loads(body), name, received_s)
                else:
                    self.answer(writer, 404, {"error": {"message": f"no {path} here"}})
        writer.close()

    def expected_key(self):
        return f"bearer {self.options.key}".lower()

    async def complete(self, writer, body, name, received_s):
        is_chat = "messages" in body
        prompt = body["messages"][0]["content"] if is_chat else body["prompt"]
        if self.options.text_only and not isinstance(prompt, str):
            return self.answer(writer, 400, {"error": {"message": "prompt: need a string"}})
        if self.options.refuse:
            return self.answer(writer, 400, {"error": {"message": self.options.refuse}})
        if self.options.fail == "status" and body.get("stream"):
            return self.answer(writer, 503, {"error": {"message": "no slot is free"}})
        num_prompt = len(prompt.split() if isinstance(prompt, str) else prompt)
        num_prompt += CHAT_TOKENS * is_chat
        if num_prompt > self.options.context:
            says = f"need a context of {num_prompt} tokens, have {self.options.context}"
            return self.answer(writer, 400, {"error": {"message": says}})
        entry = {"name": name, "received_s": received_s, "sent_s": [], "prompt_tokens": num_prompt}
        entry["prompt_crc"] = zlib.crc32(repr(prompt).encode())
        if self.places is None:
            return await self.stream(writer, body, entry, is_chat)
        async with self.places:
            return await self.stream(writer, body, entry, is_chat)

    async def stream(self, writer, body, entry, is_chat):
        fail = self.options.fail if body.get("stream") else None
        num_tokens = body["max_tokens"] // (2 if fail == "short" else 1)
        usage = {"prompt_tokens": entry["prompt_tokens"], "completion_tokens": num_tokens}
        if not body.get("stream"):
            return self.answer(writer, 200, {"choices": [], "usage": usage})
        self.log.append(entry)
        entry["began_s"] = began_s = time.perf_counter()
        if fail == "silent":
            await asyncio.sleep(3600)
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        head += "Transfer-Encoding: chunked\r\n\r\n"
        writer.write(head.encode())
        for index in range(num_tokens):
            if fail and fail != "short" and index == NUM_BEFORE_FAILURE:
                return self.break_off(writer, fail)
            due_s = began_s + (self.options.first_ms + index * self.options.token_ms) / 1000
            await asyncio.sleep(due_s - time.perf_counter())
            text = {"delta": {"content": " tok"}} if is_chat else {"text": " tok"}
            chunk = {"choices": [{"index": 0, **text, "finish_reason": None}]}
            entry["sent_s"].append(time.perf_counter())
            self.event(writer, json.dumps(chunk))
        last = {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}
        self.event(writer, json.dumps(last))
        self.event(writer, json.dumps({"choices": [], "usage": usage}))
        self.event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def break_off(self, writer, fail):
        if fail == "server":
            self.event(writer, json.dumps({"error": {"message": "the engine fell over"}}))
            writer.write(b"0\r\n\r\n")
        elif fail == "garbage":
            self.event(writer, '{"choices": [')
            writer.write(b"0\r\n\r\n")
        else:
            writer.close()

    @staticmethod
    def event(writer, data):
        event = f"data: {data}\n\n".encode()
        writer.write(b"%x\r\n%b\r\n" % (len(event), event))

    @staticmethod
    def answer(writer, status, fields):
        body = json.dumps(fields).encode()
        head = f"HTTP/1.1 {status} Stub\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


async def serve(options):
    stub = Stub(options)
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    server = await asyncio.start_server(
        stub.serve, options.host, options.port, limit=2**24, backlog=1024
    )
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await ended.wait()
    server.close()
    print(json.dumps({"requests": stub.log}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--first-ms", type=float, default=50, help="until the first token")
    parser.add_argument("--token-ms", type=float, default=10, help="between two tokens")
    parser.add_argument("--slots", type=int, default=0, help="served at once; 0: any number")
    parser.add_argument("--kind", default="llamacpp", help="owner in /v1/models: hetero, vllm ...")
    parser.add_argument("--text-only", action="store_true", help="no /tokenize, no ids as prompts")
    parser.add_argument("--key", help="an API key to insist on, in small letters")
    parser.add_argument("--refuse", help="what to say to every prompt")
    parser.add_argument("--context", type=int, default=2**40, help="longer prompts are refused")
    parser.add_argument("--fail", choices=FAILURES, help="how every stream ends")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
