"""A whole search: its trials, the finalists, the winner on test, and the page that says all of it."""

from contextlib import suppress

from historay.errors import ConfigError
from historay.log import log_event
from historay.training.search import Interrupted, open_search, run_trials
from historay.training.search_report import render_search
from historay.training.search_settings import SearchConfig
from historay.training.selection import Selection, read_selection, select
from historay.training.study import Search, TrialRecord, num_ended, read_trials, search_key


def search(config: SearchConfig) -> Selection | None:
    """Runs or resumes a search and returns how it ended; None if it was interrupted or its time was up before the end.

    search.html is written at the end and at every interruption. Raises ConfigError if trials are to be added after the
    finalists were compared: they would be chosen in the knowledge of the test.
    """
    opened = open_search(config)
    _refuse_more(opened)
    trials = run_trials(opened)
    selection = None
    try:
        with suppress(KeyboardInterrupt, Interrupted):
            if num_ended(trials) >= config.max_trials:
                selection = select(opened, trials)
    finally:
        _write_page(opened, trials)
    if selection is None:
        known = f"{num_ended(trials)}/{config.max_trials}"
        log_event("search interrupted", trials=known, fix="the same command with --resume goes on")
    return selection


def _refuse_more(search: Search) -> None:
    config = search.config
    num_trials = num_ended(read_trials(search.store, config.search))
    if read_selection(search.store, config.search) is not None and config.max_trials > num_trials:
        raise ConfigError(
            f"search {config.search} has compared its finalists after {num_trials} trials; with "
            f"max_trials={config.max_trials} it would choose again in the knowledge of the test. Choose another --search"
        )


def _write_page(search: Search, trials: list[TrialRecord]) -> None:
    name, store = search.config.search, search.store
    winner = search_key(name, "winner.yaml")
    winner_yaml = store.read(winner).decode() if store.exists(winner) else ""
    page = render_search(search.record, search.space, trials, read_selection(store, name), winner_yaml)
    store.write(search_key(name, "search.html"), page.encode())
    log_event("search page", at=store.locate(search_key(name, "search.html")))
