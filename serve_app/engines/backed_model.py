"""What the models of all engines have in common: Ultralytics' own work around their pass."""

from collections.abc import Sequence

from serve_app.engines import predictors
from serve_app.engines.base import Answer, ModelInfo, ModelInput
from serve_app.engines.profile import BatchProfile
from serve_app.types import ImageArray, PredictParams


class BackedModel:
    """A model that answers through its backend until it is closed.

    was_prepared: whether it was opened in the fast way, or the engine has none
    """

    def __init__(self, backend: predictors.Backend, *, was_prepared: bool) -> None:
        self.was_prepared = was_prepared
        self._backend = backend
        self._profile = BatchProfile()
        self._closed = False

    @property
    def info(self) -> ModelInfo:
        """Task, class names and input size."""
        return self._backend.description.info

    @property
    def profile(self) -> BatchProfile:
        """How long batches take, found when it was warmed up."""
        return self._profile

    def preprocess(
        self, image: ImageArray, params: PredictParams, *, annotate: bool = False
    ) -> ModelInput:
        """Turn a picture into this model's input (decoder thread).

        Raises:
            InvalidParameterError: a parameter does not fit this model (class id, input size)
            InvalidImageError: the picture is too long and narrow to be classified
        """
        return predictors.preprocess(self._backend, image, params, annotate=annotate)

    def predict(self, inputs: Sequence[ModelInput]) -> list[Answer]:
        """Answer for inputs of one shape, made by this model, each as if alone (stream).

        Raises:
            ModelBrokenError: the model fails on sound input
            OverloadedError: the memory ran out
        """
        self._check_open()
        return predictors.predict(self._backend, inputs)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the model is closed")
