"""An application that asks several models for one request, as one that chains models would."""

import asyncio

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

from serve_app.types import ModelKey, PredictParams, PredictRequest, PredictResult


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Fan:
    """`POST /fan?models=a@1,b@1` with a picture: the keys of the models that answered, in order."""

    async def __call__(self, request: Request) -> list[str]:
        """Ask all models at once; the calls share the request's id."""
        detector: DeploymentHandle[object] = serve.get_deployment_handle("Detector", "yolo")
        image = await request.body()

        async def ask(reference: str) -> str:
            name, _, version = reference.partition("@")
            wanted = PredictRequest(ModelKey(name, version), (image,), PredictParams(), 60.0)
            handle = detector.options(method_name="predict", multiplexed_model_id=reference)
            answer = await handle.remote(wanted)
            return str(answer.key) if isinstance(answer, PredictResult) else str(answer)

        return await asyncio.gather(*map(ask, request.query_params["models"].split(",")))


app = Fan.bind()  # type: ignore[attr-defined]
"""What a Serve config names."""
