"""A client for Kaiten servers: typed predictions, one deadline over all attempts, typed errors."""

from kaiten_client.answers import FeedbackResponse, Prediction, PredictResponse, ScoredLabel
from kaiten_client.async_client import AsyncClient
from kaiten_client.calls import Label
from kaiten_client.client import Client
from kaiten_client.errors import (
    ConnectionFailed,
    Detail,
    Forbidden,
    InvalidRequest,
    KaitenError,
    MismatchedAnswer,
    NotFound,
    RateLimited,
    ServerError,
    TimedOut,
    Unauthenticated,
    Unavailable,
    UnexpectedAnswer,
    UnknownModel,
)
from kaiten_client.target import Timing, UnencryptedWarning
from kaiten_client.version import VERSION

__version__ = VERSION

__all__ = [
    "AsyncClient",
    "Client",
    "ConnectionFailed",
    "Detail",
    "FeedbackResponse",
    "Forbidden",
    "InvalidRequest",
    "KaitenError",
    "Label",
    "MismatchedAnswer",
    "NotFound",
    "PredictResponse",
    "Prediction",
    "RateLimited",
    "ScoredLabel",
    "ServerError",
    "TimedOut",
    "Timing",
    "Unauthenticated",
    "Unavailable",
    "UnencryptedWarning",
    "UnexpectedAnswer",
    "UnknownModel",
    "__version__",
]
