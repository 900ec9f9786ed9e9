"""One pass of a model over some inputs, and what is done when it fails."""

import itertools
from collections.abc import Sequence

from serve_app.engines.base import Answer, EngineModel, ModelInput
from serve_app.engines.guard import guarded
from serve_app.errors import DeviceFailedError, ServeAppError


def run_pass(model: EngineModel, inputs: Sequence[ModelInput]) -> list[Answer]:
    """Return an answer to each input, as if it were alone also where the batch fails (stream).

    Where the device fails nothing is tried again: all of them have to go elsewhere.
    """
    try:
        return guarded(model.predict, inputs)
    except DeviceFailedError as error:
        return [error.copy() for _ in inputs]
    except ServeAppError as error:
        if len(inputs) == 1:
            return [error]
    return list(itertools.chain.from_iterable(run_pass(model, [one]) for one in inputs))
