"""Every error that Historay raises on purpose, in one tree.

HistorayError
├── ConfigError      a setting is wrong, or two settings disagree
├── StorageError     the store cannot be read or written
│   ├── NotFound     nothing is stored under that key
│   ├── Unreadable   one object is there but refuses to be read; its neighbours may not
│   │   └── TooLarge it has more bytes than its reader allows
│   └── Conflict     somebody else changed the object first
├── DataError        a data set cannot be used as it is
│   ├── BadImage     one image cannot be used; its neighbours can
│   └── LeakError    tiles of one origin stand on both sides of a split
├── TrainingError    a training run cannot start or go on
├── BundleError      a model bundle is missing, damaged or tampered with
├── ServingError     an endpoint cannot start, cannot be reached, or refuses a whole request
└── ClusterError     a job cannot be submitted, found or followed
    └── Unreachable  the cluster does not answer; a later try may succeed

Each takes one message (so that it pickles across processes) that says what, where, the value, and how to mend it.
"""


class HistorayError(Exception):
    """Base of all; the command line prints its message without a traceback."""


class ConfigError(HistorayError, ValueError):
    """A setting is wrong, or two settings disagree."""


class StorageError(HistorayError):
    """The store cannot be read or written."""


class NotFound(StorageError):
    """Nothing is stored under that key."""


class Unreadable(StorageError):
    """One object is there but refuses to be read, such as a file without permission; its neighbours may not."""


class TooLarge(Unreadable):
    """One object has more bytes than its reader allows; nothing of it was read. Ends in ``: <bytes>, at most <bytes>``."""


class Conflict(StorageError):
    """Somebody else changed the object between our read and our write."""


class DataError(HistorayError, ValueError):
    """A data set cannot be used as it is."""


class BadImage(DataError):
    """One image cannot be used. Its message reads ``reason: detail``, e.g. ``truncated: ends after 812 bytes``."""

    @property
    def reason(self) -> str:
        """The short code before the colon, as it stands in quarantine.parquet."""
        return str(self).partition(": ")[0]


class LeakError(DataError):
    """Tiles of one origin stand on both sides of a split."""


class TrainingError(HistorayError):
    """A training run cannot start or go on."""


class BundleError(HistorayError):
    """A model bundle is missing, damaged or tampered with."""


class ServingError(HistorayError):
    """An endpoint cannot start, cannot be reached, or refuses a whole request."""


class ClusterError(HistorayError):
    """A job cannot be submitted, found or followed."""


class Unreachable(ClusterError):
    """The cluster does not answer; a later try may succeed."""
