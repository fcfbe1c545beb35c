"""The server's routes: our own, and those of the tools that ask for a reward.

| route | whose |
|---|---|
| POST /v1/rewards | ours |
| POST /v1/openrlhf | OpenRLHF's `--reward.remote_url` |
| POST /v1/score/evaluation | LLaMA-Factory's `reward_model_type: api` |
| POST /classify | vLLM's (`input` or `messages`) and SGLang's (`text`) |
| POST /pooling | vLLM's with task `classify` |
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from scpo_ray.records import InputError
from scpo_ray.serve import payloads as shapes
from scpo_ray.serve.batching import BusyError, StoppingError
from scpo_ray.serve.guard import Guard, RefusedError
from scpo_ray.serve.items import Reward, RewardItem, checked_item
from scpo_ray.serve.measures import CONTENT_TYPE
from scpo_ray.serve.service import Service

_SHOWN_FAULTS = 5

CultureQuery = Annotated[
    str | None,
    Query(alias="culture", description="Chile, or Chile=0.5,Mexico=0.5; over what the body says."),
]
ScaleQuery = Annotated[shapes.Scale, Query(description="The unit of the answer's numbers.")]


def make_app(service: Service, *, token: str | None) -> FastAPI:
    """The ASGI app; it stops the service when it is shut down.

    Args:
        token: as for `Guard`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="scpo_ray rewards",
        description="Rewards of texts by culture, and by mixtures of cultures.",
        lifespan=lifespan,
    )
    _add_errors(app)
    _add_state(app, service)
    _add_rewards(app, service)
    _add_trainers(app, service)
    _add_servers(app, service)
    app.add_middleware(
        Guard,
        config=service.config,
        token=token,
        measures=service.measures,
        routes=frozenset(getattr(route, "path", "") for route in app.routes),
    )
    return app


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["state"])
    async def health() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/ready", tags=["state"])
    async def ready() -> dict[str, Any]:
        """The models are loaded and there is room for another request."""
        if service.waiting >= service.config.max_waiting_items:
            raise HTTPException(503, "as many items wait as may")
        return {"status": "ready", "waiting_items": service.waiting}

    @app.get("/metrics", tags=["state"])
    async def metrics() -> Response:
        """In Prometheus' text format, of all processes of this server."""
        return Response(service.measures.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/cultures", tags=["rewards"])
    async def cultures() -> dict[str, Any]:
        """The cultures that are served, and the model of each."""
        models = service.models
        return {"cultures": [{"culture": c, "model": models[c]} for c in service.cultures]}


def _add_rewards(app: FastAPI, service: Service) -> None:
    @app.post("/v1/rewards", tags=["rewards"])
    async def rewards(body: shapes.RewardsRequest, request: Request) -> shapes.RewardsAnswer:
        """A reward for each item, for a culture or a mixture of cultures."""
        items = shapes.our_items(body)
        found = await _scored(service, items, request)
        return shapes.RewardsAnswer(
            rewards=[shapes.reward_out(reward) for reward in found], models=service.models
        )


def _add_trainers(app: FastAPI, service: Service) -> None:
    @app.post("/v1/openrlhf", tags=["trainers"])
    async def openrlhf(
        body: shapes.OpenRlhfRequest,
        request: Request,
        culture: CultureQuery = None,
        scale: ScaleQuery = "raw",
    ) -> shapes.OpenRlhfAnswer:
        """OpenRLHF's remote reward: `--reward.remote_url`; the culture rides in `labels`."""
        items = shapes.openrlhf_items(body, culture, service.cultures)
        found = await _numbers(service, items, request, scale)
        return shapes.OpenRlhfAnswer(rewards=found, scores=found, extra_logs={"reward": found})

    @app.post("/v1/score/evaluation", tags=["trainers"])
    async def llama_factory(
        body: shapes.LlamaFactoryRequest,
        request: Request,
        culture: CultureQuery = None,
        scale: ScaleQuery = "raw",
    ) -> shapes.LlamaFactoryAnswer:
        """LLaMA-Factory's `reward_model_type: api`."""
        items = shapes.llama_factory_items(body, culture, service.cultures)
        found = await _numbers(service, items, request, scale)
        return shapes.LlamaFactoryAnswer(id=_id(request), model=body.model, scores=found)


def _add_servers(app: FastAPI, service: Service) -> None:
    @app.post("/classify", tags=["servers"])
    async def classify(
        body: shapes.VllmRequest | shapes.SglangRequest,
        request: Request,
        culture: CultureQuery = None,
        scale: ScaleQuery = "raw",
    ) -> Any:
        """vLLM's (`input` or `messages`) and SGLang's (`text`) answer, by what the body has."""
        if isinstance(body, shapes.SglangRequest):
            items = shapes.sglang_items(body, culture, service.cultures)
            found = await _numbers(service, items, request, scale)
            answers = [_sglang(number, request) for number in found]
            return answers[0] if isinstance(body.text, str) else answers
        items = shapes.vllm_items(body, culture, service.cultures)
        found = await _numbers(service, items, request, scale)
        classes = [shapes.VllmClass(index=n, probs=[r]) for n, r in enumerate(found)]
        return _vllm(classes, body, request)

    @app.post("/pooling", tags=["servers"])
    async def pooling(
        body: shapes.VllmRequest,
        request: Request,
        culture: CultureQuery = None,
        scale: ScaleQuery = "raw",
    ) -> shapes.VllmAnswer:
        """vLLM's, for the task `classify`."""
        items = shapes.vllm_items(body, culture, service.cultures)
        found = await _numbers(service, items, request, scale)
        pooled = [shapes.VllmPooled(index=n, data=[r]) for n, r in enumerate(found)]
        return _vllm(pooled, body, request)


def _sglang(reward: float, request: Request) -> dict[str, Any]:
    answer = shapes.SglangAnswer(embedding=[reward], meta_info={"id": _id(request)})
    return answer.model_dump()


def _vllm(data: Any, body: shapes.VllmRequest, request: Request) -> shapes.VllmAnswer:
    return shapes.VllmAnswer(
        id=_id(request), created=int(time.time()), model=body.model or "", data=data
    )


def _id(request: Request) -> str:
    return str(request.state.request_id)


async def _numbers(
    service: Service, items: Sequence[RewardItem], request: Request, scale: shapes.Scale
) -> list[float]:
    found = await _scored(service, items, request)
    return [shapes.number_of(reward, scale) for reward in found]


async def _scored(service: Service, items: Sequence[RewardItem], request: Request) -> list[Reward]:
    config = service.config
    if len(items) > config.max_items:
        raise RefusedError(
            413, f"a request holds at most {config.max_items} items, got {len(items)}"
        )
    for number, item in enumerate(items):
        _check(item, service, f"items.{number}")
    names = [shapes.asked_name(item) for item in items]
    request.state.told.update(items=len(items), cultures=sorted(set(names))[:10])
    rewards = await asyncio.wrap_future(service.submit(items))
    for name in set(names):
        service.measures.items.labels(name).inc(names.count(name))
    return rewards


def _check(item: RewardItem, service: Service, place: str) -> None:
    """Raises: InputError, naming `place`, before the item waits beside those of others."""
    try:
        text = checked_item(item, service.cultures).text
    except InputError as error:
        raise InputError(f"{place}.{error.title}", error.problems) from None
    length = len(text.prompt) + len(text.response) + sum(len(said) for _, said in text.history)
    most = service.config.max_characters
    if length > most:
        raise InputError(f"{place}: must have at most {most} characters, got {length}")


def _add_errors(app: FastAPI) -> None:
    """Every error is {"error": one sentence}."""

    @app.exception_handler(InputError)
    async def bad_input(request: Request, error: InputError) -> JSONResponse:
        return _error(422, " ".join(str(error).split()))

    @app.exception_handler(RequestValidationError)
    async def bad_body(request: Request, error: RequestValidationError) -> JSONResponse:
        return _error(422, "; ".join(_faults(error.errors())))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        said = str(error.detail)
        if error.status_code == 400:
            # What the framework says of a body that no JSON reader takes, whatever the reason.
            said = "the body is not JSON: not UTF-8, or nested too deeply"
        return _error(error.status_code, said, **(error.headers or {}))

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return _error(error.status, error.reason, **error.headers)

    @app.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> JSONResponse:
        return _error(429, str(error), **{"retry-after": str(error.retry_after_s)})

    @app.exception_handler(StoppingError)
    async def stopping(request: Request, error: StoppingError) -> JSONResponse:
        return _error(503, str(error))

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        return _error(500, "a fault of the server; its log has the traceback")


def _error(status: int, said: str, **headers: str) -> JSONResponse:
    printable = said.encode("utf-8", "backslashreplace").decode()
    return JSONResponse({"error": printable}, status, headers=headers)


def _faults(errors: Sequence[Any]) -> list[str]:
    """A sentence for each of the first faults of a body, in the order of its fields."""
    said = []
    for error in errors[:_SHOWN_FAULTS]:
        where = ".".join(str(part)[:100] for part in error["loc"] if part != "body")
        if error["type"] == "json_invalid":
            said.append(f"the body is not JSON: {error['ctx']['error']} at character {where}")
        elif error["type"] == "missing":
            said.append(f"{where or 'the body'}: must be there")
        elif error["type"] == "extra_forbidden":
            said.append(f"{where}: no such field")
        elif error["type"] == "too_short":
            said.append(f"{where}: must hold at least one")
        else:
            rule = str(error["msg"]).replace("Input should", "must")[:300]
            said.append(f"{where or 'the body'}: {rule}")
    more = len(errors) - len(said)
    return [*said, f"{more} more"] if more > 0 else said
