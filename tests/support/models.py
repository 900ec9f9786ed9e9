"""Asking an engine's model for one picture's findings."""

from serve_app.engines.base import EngineModel
from serve_app.errors import ServeAppError
from serve_app.types import ImageArray, ImageResult, PredictParams


def answer(
    model: EngineModel, image: ImageArray, params: PredictParams, *, annotate: bool = False
) -> ImageResult:
    """Return what `model` finds in one picture; raise what stands in the place of a result."""
    (found,) = model.predict([model.preprocess(image, params, annotate=annotate)])
    if isinstance(found, ServeAppError):
        raise found
    return found
