"""How the servers that teams judge with refuse what is too long, and what else they refuse: facts, one class for each.

Bodies and statuses follow public bug reports and the servers' own documentation.  A token is four characters here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from judge_server import Answer, Call, says, verdict


def reply(status: int, body: Any) -> Answer:
    return Answer(json.dumps(body).encode() if not isinstance(body, bytes) else body, status)


@dataclass
class Gateway:
    """A judge with a context of so many tokens, verdict included."""

    context: int = 4096

    async def __call__(self, call: Call) -> Answer:
        used = self.tokens(call)
        room = self.context - self.budget(call)
        if used > room:
            return self.too_long(used, room, self.budget(call))
        return self.judged(call, used)

    def tokens(self, call: Call) -> int:
        return len(call.text) // 4

    def budget(self, call: Call) -> int:
        return int(call.body.get("max_tokens") or call.body["max_completion_tokens"])

    def judged(self, call: Call, used: int) -> Answer:
        found = verdict(call)
        body = json.loads(found.body)
        body["usage"] = {"prompt_tokens": used, "completion_tokens": 50, "total_tokens": used + 50}
        return Answer(json.dumps(body).encode())

    def too_long(self, used: int, room: int, budget: int) -> Answer:
        raise NotImplementedError


class VLLM(Gateway):
    def too_long(self, used: int, room: int, budget: int) -> Answer:
        message = (
            f"This model's maximum context length is {self.context} tokens. However, you requested {budget} output "
            f"tokens and your prompt contains at least {room + 1} input tokens, for a total of at least "
            f"{self.context + 1} tokens."
        )
        return reply(400, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}})


class OldVLLM(Gateway):
    def too_long(self, used: int, room: int, budget: int) -> Answer:
        message = (
            f"'max_tokens' or 'max_completion_tokens' is too large: {budget}. This model's maximum context length is "
            f"{self.context} tokens and your request has {used} input tokens ({budget} > {self.context} - {used})."
        )
        return reply(400, {"object": "error", "message": message, "type": "BadRequestError", "code": 400})


class Crowded(Gateway):
    """Takes messages that just fit: the verdict, of 300 tokens here, stops where the context is full."""

    def budget(self, call: Call) -> int:
        return 0

    def judged(self, call: Call, used: int) -> Answer:
        left = self.context - used
        if left >= 300:
            return super().judged(call, used)
        body = json.loads(says('{"reasons": "Beca', "length").body)
        return reply(200, {**body, "usage": {"prompt_tokens": used, "completion_tokens": left}})


class LlamaCpp(Crowded):
    def too_long(self, used: int, room: int, budget: int) -> Answer:
        message = (
            f"request ({used} tokens) exceeds the available context size ({self.context} tokens), try increasing it"
        )
        error = {"code": 400, "message": message, "type": "exceed_context_size_error"}
        return reply(400, {"error": {**error, "n_prompt_tokens": used, "n_ctx": self.context}})


class OldLlamaCpp(LlamaCpp):
    def too_long(self, used: int, room: int, budget: int) -> Answer:
        message = "the request exceeds the available context size. try increasing it or enable context shift"
        return reply(500, {"error": {"code": 500, "message": message, "type": "invalid_request_error"}})


class LlamaCppCodeOnly(LlamaCpp):
    """Only the type and the counts say what is wrong."""

    def too_long(self, used: int, room: int, budget: int) -> Answer:
        error = {"code": 500, "message": "failed", "type": "exceed_context_size_error"}
        return reply(500, {"error": {**error, "n_prompt_tokens": used, "n_ctx": self.context}})


class TGI(Gateway):
    def too_long(self, used: int, room: int, budget: int) -> Answer:
        message = (
            f"Input validation error: `inputs` tokens + `max_new_tokens` must be <= {self.context}. Given: {used} "
            f"`inputs` tokens and {budget} `max_new_tokens`"
        )
        return reply(422, {"error": message, "error_type": "validation"})


class TGIInputs(Gateway):
    def too_long(self, used: int, room: int, budget: int) -> Answer:
        message = f"Input validation error: `inputs` must have less than {room} tokens. Given: {used}"
        return reply(422, {"error": message, "error_type": "validation"})


class SGLang(Gateway):
    def too_long(self, used: int, room: int, budget: int) -> Answer:
        message = f"The input ({used} tokens) is longer than the model's context length ({self.context} tokens)."
        if used < self.context:
            message = (
                f"Requested token count exceeds the model's maximum context length of {self.context} tokens. You "
                f"requested a total of {used + budget} tokens: {used} tokens from the input messages and {budget} "
                "tokens for the completion."
            )
        return reply(400, {"object": "error", "message": message, "type": "BadRequestError", "code": 400})


class Ollama(Gateway):
    """Drops the front of what is too long, and answers."""

    def judged(self, call: Call, used: int) -> Answer:
        return super().judged(call, min(used, self.context))

    def budget(self, call: Call) -> int:
        return 0

    def too_long(self, used: int, room: int, budget: int) -> Answer:
        call = Call("", {}, json.dumps({"messages": [{"content": ""}]}).encode(), 0)
        return super().judged(call, self.context // 2)


class OllamaStrict(Gateway):
    def too_long(self, used: int, room: int, budget: int) -> Answer:
        error = {"message": "the input length exceeds the context length", "type": "api_error", "code": None}
        return reply(400, {"error": {**error, "param": None}})


class LMStudio(Crowded):
    def too_long(self, used: int, room: int, budget: int) -> Answer:
        message = (
            f"Trying to keep the first {used} tokens when context the overflows. However, the model is loaded with "
            f"context length of only {self.context} tokens, which is not enough. Try to load the model with a larger "
            "context length, or provide a shorter input"
        )
        return reply(400, {"error": message})


class LMStudioOK(LMStudio):
    """The same with status 200."""

    def too_long(self, used: int, room: int, budget: int) -> Answer:
        message = f"The number of tokens to keep is greater than the context length (n_keep: {used}>= n_ctx: {room})."
        return reply(200, {"error": {"message": message}})


class Azure(Gateway):
    def too_long(self, used: int, room: int, budget: int) -> Answer:
        message = (
            f"This model's maximum context length is {self.context} tokens. However, your messages resulted in {used} "
            "tokens. Please reduce the length of the messages."
        )
        error = {"message": message, "type": "invalid_request_error", "param": "messages"}
        return reply(400, {"error": {**error, "code": "context_length_exceeded"}})


class OpenAI(Gateway):
    """Only the code, and words of another language."""

    def too_long(self, used: int, room: int, budget: int) -> Answer:
        error = {"message": "Die Nachricht ist zu lang.", "type": "invalid_request_error"}
        return reply(400, {"error": {**error, "param": None, "code": "context_length_exceeded"}})


class DeepSeek(Gateway):
    def too_long(self, used: int, room: int, budget: int) -> Answer:
        message = (
            f"This model's maximum context length is {self.context} tokens. However, you requested {used + budget} "
            f"tokens ({used} in the messages, {budget} in the completion). Please reduce the length of the messages."
        )
        return reply(
            400, {"error": {"message": message, "type": "invalid_request_error", "code": "invalid_request_error"}}
        )


class OpenRouter(Gateway):
    """An error in a reply of status 200."""

    def too_long(self, used: int, room: int, budget: int) -> Answer:
        message = (
            f"This endpoint's maximum context length is {self.context:,} tokens. However, you requested about "
            f"{used + budget:,} tokens ({used:,} of text input, {budget:,} in the output). Please reduce the length."
        )
        return reply(200, {"error": {"message": message, "code": 400, "metadata": {"provider_name": "A"}}})


class Upstream(Gateway):
    """A gateway whose own words say nothing: the server's behind it stand beside them."""

    def too_long(self, used: int, room: int, budget: int) -> Answer:
        raw = json.dumps({"message": f"prompt is too long: {used} tokens > {room} maximum"})
        error = {"message": "Provider returned error", "code": 400, "metadata": {"raw": raw, "provider_name": "A"}}
        return reply(400, {"error": error})


class Proxy(Gateway):
    """A web server before the judge that limits bodies."""

    def too_long(self, used: int, room: int, budget: int) -> Answer:
        return Answer(b"<html><h1>413 Request Entity Too Large</h1></html>", 413, {"Content-Type": "text/html"})


class FastAPI(Gateway):
    """A validation error, which repeats the request."""

    def too_long(self, used: int, room: int, budget: int) -> Answer:
        message = f"prompt contains {used} tokens, too large for model with {self.context} maximum context length"
        entry = {"type": "value_error", "loc": ["body", "messages"], "msg": message, "input": "x" * used * 4}
        return reply(422, {"detail": [entry]})


GATEWAYS: dict[str, type[Gateway]] = {
    cls.__name__: cls
    for cls in (
        *(VLLM, OldVLLM, LlamaCpp, OldLlamaCpp, LlamaCppCodeOnly, TGI, TGIInputs, SGLang, Ollama, OllamaStrict),
        *(LMStudio, LMStudioOK, Azure, OpenAI, DeepSeek, OpenRouter, Upstream, Proxy, FastAPI),
    )
}
