"""How long a model's batches will take: its profile at first, then what was measured. Pure."""

from collections import OrderedDict

from serve_app.engines.profile import BatchProfile

Shape = tuple[int, int]
"""(height, width) of a model's input in pixels."""

_KEPT = 64  # shapes and sizes of batches; a client may ask for thousands of shapes
_WEIGHT = 0.3  # of the newest measurement
_DOUBT = 0.9


class Timings:
    """Expected seconds of one model's batches, by shape and size."""

    def __init__(self, profile: BatchProfile, own_shape: Shape) -> None:
        """`profile` was measured with inputs of `own_shape`."""
        self.max_batch = profile.max_batch
        self._profile = profile
        self._own_pixels = own_shape[0] * own_shape[1]
        self._measured: OrderedDict[tuple[Shape, int], float] = OrderedDict()
        self._pixel_s = 0.0

    def expected_s(self, shape: Shape, batch: int) -> float:
        """Return the seconds of a batch; 0 as long as nothing is known of the model."""
        known = self._measured.get((shape, batch))
        if known is not None:
            return known
        pixels = shape[0] * shape[1]
        by_profile = self._profile.expected_s(batch) * pixels / self._own_pixels
        by_pixels = self._pixel_s * pixels * batch
        # The profile may have been found while the device was busy with something else; pictures
        # that it makes be refused would never prove it wrong.
        return min(by_profile, by_pixels) if by_profile and by_pixels else by_profile or by_pixels

    def observe(self, shape: Shape, batch: int, seconds: float) -> None:
        """Take in what a batch really took."""
        pixel_s = seconds / (shape[0] * shape[1] * batch)
        self._pixel_s += (_WEIGHT if self._pixel_s else 1.0) * (pixel_s - self._pixel_s)
        before = self.expected_s(shape, batch)
        self._keep(shape, batch, before + _WEIGHT * (seconds - before))

    def doubt(self, shape: Shape) -> None:
        """Trust less in what made a picture be refused.

        One slow batch would otherwise refuse all that follow, and never be proved wrong.
        """
        self._keep(shape, 1, _DOUBT * self.expected_s(shape, 1))

    def _keep(self, shape: Shape, batch: int, seconds: float) -> None:
        self._measured[shape, batch] = seconds
        self._measured.move_to_end((shape, batch))
        if len(self._measured) > _KEPT:
            self._measured.popitem(last=False)
