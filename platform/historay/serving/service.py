"""What answers a request: the predictor of one replica with its threads, whatever carries the request here."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

from historay.data.decode import Limits
from historay.errors import BadImage
from historay.models.bundle import Bundle
from historay.models.runtime import TOLERANCES, make_runtime
from historay.serving.batcher import Batcher, QueueFull
from historay.serving.drift import DriftMonitor, DriftSummary
from historay.serving.limits import RequestConfig
from historay.serving.metrics import Metrics
from historay.serving.predictor import Predictor, PreparedImage, in_order
from historay.serving.schema import ImageRefusal, ModelAnswer, PredictAnswer, RequestLimits, Result

_AT_ONCE = 4  # images that a decoding thread takes on; of a request that was given up it takes no others
_TOO_LARGE = {"too-many-bytes", "too-many-pixels"}
_NOT_SUPPORTED = {"not-an-image", "cmyk", "16-bit", "unsupported-mode", "several-pages", "transparent"}


class Refused(Exception):
    """A whole request that is refused."""

    def __init__(self, status: HTTPStatus, reason: str, detail: str, results: tuple[ImageRefusal, ...] = ()) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail, self.results = status, reason, detail, results


class Service:
    """A predictor with its threads and its queue, and the requests that it answers; belongs to one event loop."""

    def __init__(self, predictor: Predictor, config: RequestConfig, metrics: Metrics) -> None:
        self.predictor, self.config, self._metrics = predictor, config, metrics
        self._decoders = ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decode")
        self._batcher = Batcher(
            self._network_pass,
            predictor.runtime.num_streams,
            config.max_batch,
            config.max_queued_tiles,
            lambda seconds: metrics.observe_stage("queue", seconds),
        )

    @property
    def num_waiting(self) -> int:
        """Tiles that wait for the network."""
        return self._batcher.num_waiting

    async def predict(self, images: list[bytes], request_id: str) -> PredictAnswer:
        """Answers for all images together; raises Refused if none of them can be used, or too many wait already."""
        results = await self._results(images)
        refused = [result for result in results if isinstance(result, ImageRefusal)]
        if len(refused) == len(results):
            raise _refused(refused)
        return self.answer(results, request_id)

    async def stream(self, images: list[bytes], deadline: float) -> AsyncIterator[list[Result]]:
        """Yields the results in order, part by part, each as soon as it is known: a batch for each stream of the network.

        Raises Refused, before anything is yielded, if too many tiles wait; later parts wait for their turn. Raises
        TimeoutError where some are not known by ``deadline``, in the event loop's time.
        """
        size = self.config.max_batch * self.predictor.runtime.num_streams
        results = await self._results(images[:size])
        for first in range(size, len(images), size):
            # The next part is decoded and waits for the network while this one is on its way to the client.
            coming = asyncio.create_task(self._patiently(images[first : first + size], first))
            try:
                yield results
                async with asyncio.timeout_at(deadline):
                    await asyncio.sleep(0)  # a client that reads slowly: after the deadline nothing new is begun for it
                    results = await coming
            finally:
                coming.cancel()
        yield results

    async def _patiently(self, images: list[bytes], first: int) -> list[Result]:
        prepared = await self._prepared(images)
        while True:
            try:
                return await self._answered(prepared, first)
            except QueueFull:
                await asyncio.sleep(0.05)

    async def _results(self, images: list[bytes]) -> list[Result]:
        """One result per image; raises Refused if too many tiles wait, as far as possible before anything is decoded."""
        try:
            self._batcher.check_room(len(images))
            return await self._answered(await self._prepared(images), 0)
        except QueueFull:
            detail = f"{self.num_waiting} tiles wait already; try again in a moment"
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "busy", detail) from None

    async def _answered(self, prepared: list[PreparedImage | BadImage], first: int) -> list[Result]:
        """One result per image, counted from ``first``."""
        found = await self._batcher.run([image for image in prepared if isinstance(image, PreparedImage)])
        return in_order(prepared, found, first)

    async def _prepared(self, images: list[bytes]) -> list[PreparedImage | BadImage]:
        """Decodes in all threads at once; what no thread has begun when the request is given up is never decoded."""
        loop, started = asyncio.get_running_loop(), time.perf_counter()
        chunks = [images[at : at + _AT_ONCE] for at in range(0, len(images), _AT_ONCE)]
        found = await asyncio.gather(*(loop.run_in_executor(self._decoders, self._tried, chunk) for chunk in chunks))
        self._metrics.observe_stage("decode", time.perf_counter() - started)
        return list(itertools.chain(*found))

    def _tried(self, images: list[bytes]) -> list[PreparedImage | BadImage]:
        return [self.predictor.tried(data) for data in images]

    def answer(self, results: list[Result], request_id: str) -> PredictAnswer:
        """Puts results under what they are answers of."""
        spec = self.predictor.bundle.spec
        return PredictAnswer(
            model=self.predictor.bundle.reference,
            dataset=spec.dataset,
            dataset_digest=spec.dataset_digest,
            request_id=request_id,
            operating_point=self.predictor.operating_point,
            results=tuple(results),
        )

    def close(self) -> None:
        """Ends the threads when what they do is done; no request may come any more."""
        self._batcher.close()
        self._decoders.shutdown(wait=False)

    def drift(self) -> DriftSummary:
        """What was asked lately against the bundle's reference; without quantities where the bundle has none."""
        monitor = self.predictor.drift
        return DriftSummary(num_tiles=0, window=0, quantities=()) if monitor is None else monitor.summary()

    def describe(self) -> ModelAnswer:
        """Tells which model answers and what a request may hold."""
        bundle, config = self.predictor.bundle, self.config
        spec = bundle.spec
        return ModelAnswer(
            model=bundle.reference,
            architecture=spec.architecture,
            classes=spec.classes,
            input_px=spec.preprocessing.input_px,
            mpp=spec.mpp,
            operating_point=self.predictor.operating_point,
            runtime=self.predictor.runtime.name,
            tolerance=TOLERANCES[self.predictor.runtime.name],
            calibration=spec.calibration.in_words(),
            prediction_sets=spec.conformal.guarantee if spec.conformal else None,
            dataset=spec.dataset,
            dataset_digest=spec.dataset_digest,
            accepted_leaks=spec.accepted_leaks,
            created=spec.created,
            limits=RequestLimits(
                max_files=config.max_files,
                max_body_bytes=config.max_body_bytes,
                max_image_bytes=config.max_image_bytes,
                max_pixels=config.max_pixels,
            ),
        )

    def _network_pass(self, images: list[PreparedImage]) -> list[Result]:
        started = time.perf_counter()
        predictions = self.predictor.predictions(images)
        self._metrics.observe_stage("network", time.perf_counter() - started)
        self._metrics.observe_batch(len(images))
        return predictions


def make_service(bundle: Bundle, config: RequestConfig, num_threads: int = 1, metrics: Metrics | None = None) -> Service:
    """Puts a bundle behind the limits of a configuration; its runtime is checked on the probe tiles, and so is warm."""
    runtime = make_runtime(bundle, config.runtime, num_threads)
    limits = Limits(max_bytes=config.max_image_bytes, max_pixels=config.max_pixels)
    reference = bundle.spec.drift_reference
    drift = DriftMonitor(reference) if reference is not None else None
    return Service(Predictor(bundle, limits, runtime, drift), config, metrics or Metrics())


def _refused(results: list[ImageRefusal]) -> Refused:
    first = results[0].error
    status = _status_of(first.reason) if len(results) == 1 else HTTPStatus.UNPROCESSABLE_ENTITY
    return Refused(status, first.reason, first.detail, tuple(results))


def _status_of(reason: str) -> HTTPStatus:
    if reason in _TOO_LARGE:
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return HTTPStatus.UNSUPPORTED_MEDIA_TYPE if reason in _NOT_SUPPORTED else HTTPStatus.UNPROCESSABLE_ENTITY
