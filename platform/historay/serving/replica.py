"""What one replica's process holds: the service that answers now, and the alias whose moves it follows without a restart."""

import threading
import time

from historay.errors import BundleError
from historay.log import log_event
from historay.models.bundle import load_bundle
from historay.models.registry import resolve
from historay.serving.limits import RequestConfig
from historay.serving.metrics import Metrics
from historay.serving.service import Service, make_service
from historay.storage import open_store

_LAST_ANSWER_S = 5.0  # from a request's deadline to the last that is done for it


class Replica:
    """Loads a model, answers ``current``, and swaps to the version that its alias names, in the background.

    The new version is loaded, verified and tried on its probe tiles before any request sees it; one that fails is
    logged and left alone until the alias moves again, and what answered goes on answering. Moving the alias back swaps back.
    """

    def __init__(self, store: str, model: str, config: RequestConfig, num_threads: int, metrics: Metrics) -> None:
        self._store, self._metrics = open_store(store), metrics
        self._model, self._config, self._num_threads = model, config, num_threads
        self._service: Service | None = None
        self._version: str | None = None

    def current(self) -> Service | None:
        """Returns what answers now, or None while the first model is being loaded."""
        return self._service

    def load(self, name: str, version: str) -> None:
        """Loads a version and lets it answer; what answered before ends when its last request must have."""
        bundle = load_bundle(self._store, name, version)
        service = make_service(bundle, self._config, self._num_threads, self._metrics)
        before, self._service, self._version = self._service, service, version
        if before is not None:
            log_event("model swapped", model=f"{name}@{version}")
            threading.Timer(self._config.request_timeout_s + _LAST_ANSWER_S, before.close).start()

    def follow(self, poll_s: float) -> None:
        """Looks every ``poll_s`` seconds where the alias points, in a thread that ends with the process."""
        threading.Thread(target=self._follow, args=(poll_s,), name="follow-alias", daemon=True).start()

    def _follow(self, poll_s: float) -> None:
        refused: str | None = None
        while True:
            time.sleep(poll_s)
            try:
                refused = self._look(refused)
            # Whatever it is, a lost bucket or a full disk, the next look may succeed, and what answers goes on answering.
            except Exception as error:
                log_event("WARNING alias not followed", model=self._model, because=error)

    def _look(self, refused: str | None) -> str | None:
        """Loads what the alias names if that is neither loaded nor refused already; returns it if it is refused."""
        name, found = resolve(self._store, self._model)
        if found == refused:
            return refused
        if found != self._version:
            try:
                self.load(name, found)
            except BundleError as error:
                log_event("WARNING version refused", model=f"{name}@{found}", because=error)
                return found
        return None
