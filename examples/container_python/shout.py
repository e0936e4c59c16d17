"""Answers HTTP requests with what they say, in capitals.

Calls come from an `http-ingress`. What to shout is the parameter `text` of the query, or else the body of the request.

- Outputs: `log` gets what was shouted, and how often something was so far.
- Init payload: `mark=!` is what to put at the end; `!` if it is left out.

The count is remembered across restarts.
"""

import logging

from edgeless_function import Function, InstanceId, cast, http, params, serve, sync


class Shout(Function):
    def __init__(self, payload: bytes, state: bytes | None) -> None:
        self.mark = params(payload).get("mark", "!")
        self.count = int(state or 0)
        logging.info("shouting with %s, %d so far", self.mark, self.count)

    def handle_call(self, source: InstanceId, message: bytes) -> bytes:
        request = http.Request.parse(message)
        text = request.query("text") or request.body.decode(errors="replace")
        shouted = text.strip().upper() + self.mark

        self.count += 1
        sync(str(self.count))
        cast("log", f"{self.count}: {shouted}")
        return http.Response.text(shouted + "\n").to_json()


if __name__ == "__main__":
    serve(Shout)
