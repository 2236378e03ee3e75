"""A server that speaks OpenAI's protocol as far as vrga asks, in a thread of this process."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextlib.contextmanager
def serve(handler, port=0):
    """The address of a server in a thread of this process, until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def talking(reply, *, heeds_n=True, port=0):
    """Yields (address, requests): every request is answered by `reply(request)`.

    Args:
        reply: text for each choice, a number of seconds to be late by, or None for no choice.
        heeds_n: whether it makes as many choices as are asked for.
        port: 0 is any that is free.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(request)
            said = reply(request)
            if isinstance(said, (int, float)):
                time.sleep(said)
                said = "late"
            many = request.get("n", 1) if heeds_n else 1
            choices = [
                {"index": i, "finish_reason": "stop",
                 "message": {"role": "assistant", "content": said}}
                for i in range(0 if said is None else many)
            ]  # fmt: skip
            usage = {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8}
            body = json.dumps(
                {"id": "1", "object": "chat.completion", "created": 0, "model": request["model"],
                 "choices": choices, "usage": usage}
            ).encode()  # fmt: skip
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):  # who asked may be gone
                self.wfile.write(body)

        def log_message(self, *args):
            """Say nothing."""

    with serve(Handler, port) as address:
        yield f"{address}/v1", asked
