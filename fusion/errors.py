"""The errors of the fusion package: one small family, one clear sentence each.

The message of every error is written for the person who sees it: what is wrong and what to do next. It never
quotes the contents of a data cell.
"""

__all__ = [
    "BackboneError",
    "BudgetError",
    "DataError",
    "FusionError",
    "ModelError",
    "NothingToFuse",
    "SummaryError",
    "TaskError",
]


class FusionError(Exception):
    """Anything that this package refuses to do."""


class TaskError(FusionError):
    """The task file (or a task that arrived from a peer) does not say something that it must say."""


class BackboneError(FusionError):
    """The frozen backbone that the task's encoder runs is not here, or is not a graph that may be run."""


class DataError(FusionError):
    """The data files do not fit the task."""


class BudgetError(FusionError):
    """The privacy budget does not allow the release, or its ledger cannot be trusted."""


class SummaryError(FusionError):
    """These bytes are not a valid summary of the task."""


class NothingToFuse(FusionError):
    """No usable summary is there to build a model from."""


class ModelError(FusionError):
    """This file is not a valid model, or the model cannot do what is asked of it."""
