"""Which server is at a URL, and how it wants to be asked.

hetero, llama-server and vLLM name themselves as owners of their models (`owned_by` in
/v1/models): each takes fields that others refuse. Whoever else answers is asked what OpenAI's
servers know, and to ignore the end of text if it takes that.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

import httpx
import msgspec

from hetero.errors import ConfigError, PeerError
from hetero.experiment.load.client_key import authorization

Server = Literal["hetero", "llamacpp", "vllm", "other"]
Mode = Literal["auto", "completions", "chat"]

# Of one question before the load; a first answer may wait for a model to be read.
_PATIENCE_S = 120


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    url: SplitResult  # without /v1
    server: Server
    model: str | None
    is_chat: bool = False
    ignores_eos: bool = True  # so that an answer is as long as was asked for
    temperature: float = 0.0
    route: str | None = None

    @property
    def target(self) -> str:
        return self.url.path + ("/v1/chat/completions" if self.is_chat else "/v1/completions")

    def body(self, prompt: bytes, output_tokens: int, *, stream: bool = True) -> bytes:
        """prompt: JSON, a string or token ids."""
        fields: dict[str, Any] = {"max_tokens": output_tokens, "temperature": self.temperature}
        if self.model is not None:
            fields["model"] = self.model
        if stream:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.ignores_eos:
            fields["ignore_eos"] = True
        if self.server == "vllm":
            fields["min_tokens"] = output_tokens
        if self.server == "hetero":
            fields["return_tokens"] = True
            if self.route is not None:
                fields["route"] = self.route
        wanted = msgspec.Raw(prompt)
        if self.is_chat:
            fields["messages"] = [{"role": "user", "content": wanted}]
        else:
            fields["prompt"] = wanted
        return msgspec.json.encode(fields)


class Questions:
    """Asked before the load, one after the other."""

    def __init__(self, base: str) -> None:
        self._base = base
        self.refusal = ""  # the last one of a prompt, in the server's words
        self._http = httpx.Client(
            trust_env=False, timeout=_PATIENCE_S, headers=dict(authorization())
        )

    def __enter__(self) -> "Questions":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str) -> httpx.Response:
        return self._ask("GET", path)

    def post(self, path: str, body: bytes) -> httpx.Response:
        return self._ask("POST", path, content=body, headers={"Content-Type": "application/json"})

    def count(self, endpoint: Endpoint, prompt: bytes) -> int | None:
        """Tokens of a prompt, by the server's `usage`; None if it refuses such a prompt."""
        path = endpoint.target.removeprefix(endpoint.url.path)
        answer = self.post(path, endpoint.body(prompt, 1, stream=False))
        if answer.status_code != 200:
            self.refusal = f"{answer.status_code}: {answer.text[:300]}"
        if 400 <= answer.status_code < 500:
            return None
        if answer.status_code != 200:
            raise PeerError(f"{self._base}{path}: need an answer, have {self.refusal}")
        usage = _json(answer).get("usage") or {}
        if not isinstance(usage.get("prompt_tokens"), int):
            raise PeerError(f"{self._base}{path}: need `usage` in the answer, have none")
        return int(usage["prompt_tokens"])

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, self._base + path, **options)
        except httpx.HTTPError as error:
            raise PeerError(
                f"{self._base}: need a server that answers, have {str(error) or repr(error)}"
            ) from None
        if answer.status_code in (401, 403):
            raise ConfigError(
                f"{self._base}: need an API key that it takes, have "
                f"{'another' if authorization() else 'none'}: set HETERO_API_KEY"
            )
        return answer


def find_endpoint(
    questions: Questions,
    url: SplitResult,
    *,
    model: str | None = None,
    route: str | None = None,
    temperature: float = 0.0,
) -> Endpoint:
    """Raises: PeerError if nobody answers, ConfigError for what that server has not."""
    answer = questions.get("/v1/models")
    listed = _json(answer).get("data") if answer.status_code == 200 else None
    models = [entry for entry in listed or [] if isinstance(entry, dict) and "id" in entry]
    names = [str(entry["id"]) for entry in models]
    if model is not None and names and model not in names:
        raise ConfigError(f"--model: need one of {', '.join(names[:8])}, have {model}")
    chosen = next((entry for entry in models if entry["id"] == model), models[0] if models else {})
    owner = chosen.get("owned_by")
    server: Server = owner if owner in ("hetero", "llamacpp", "vllm") else "other"
    if route is not None and server != "hetero":
        raise ConfigError(f"--route: need a hetero router at {url.geturl()}, have another server")
    return Endpoint(
        url=url,
        server=server,
        model=model or (names[0] if names else None),
        route=route,
        temperature=temperature,
    )


def with_known_fields(questions: Questions, endpoint: Endpoint, prompt: bytes) -> Endpoint | None:
    """The endpoint with the fields that this server takes, tried with a prompt; None if it refuses
    the prompt."""
    candidates = [endpoint]
    if endpoint.server == "other":
        candidates.append(replace(endpoint, ignores_eos=False))
    for candidate in candidates:
        if questions.count(candidate, prompt) is not None:
            return candidate
    return None


def parse_url(text: str) -> SplitResult:
    """Raises: ConfigError."""
    try:
        url = urlsplit(text)
        is_good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise ConfigError(f"URL: need one as http://127.0.0.1:8080, have {text!r}")
    path = url.path.rstrip("/").removesuffix("/v1")
    return url._replace(path=path, query="", fragment="")


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        fields = answer.json()
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise PeerError(f"{answer.url}: need a JSON object, have {answer.text[:80]!r}")
    return fields
