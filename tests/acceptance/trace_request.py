"""Counts the project's files and frames that one predict request crosses, above the runner.

Run `python -m tests.acceptance.trace_request`. The request passes the whole edge, with a token, a
rate limiter and metrics, to a runner that answers at once. Frames are the calls of the project's
functions; the depth is the deepest stack of them.
"""

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

from gateway.rate_limit.limiter import Limiter
from gateway.rate_limit.memory_store import InProcessStore
from gateway.rate_limit.windows import SubjectRules
from kaiten.settings.environment import ROOT
from kaiten.settings.models import RateLimitSettings
from monitors.metrics.definitions import Metrics
from tests.unit.gateway.house import GOOD, V2, House, bearer

_PACKAGES = ("gateway", "kaiten", "monitors")


class Trace:
    """The project's calls while it is set as the profile function."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.depth = 0

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call" or _module_of(frame) is None:
            return
        self.calls[_module_of(frame) or "", frame.f_code.co_qualname] += 1
        self.depth = max(self.depth, _depth_of(frame))


def _module_of(frame: FrameType) -> str | None:
    """Return a file of the project, None for any other."""
    path = Path(frame.f_code.co_filename)
    if not path.is_relative_to(ROOT):
        return None
    relative = path.relative_to(ROOT)
    return str(relative) if relative.parts[0] in _PACKAGES else None


def _depth_of(frame: FrameType | None) -> int:
    depth = 0
    while frame is not None:
        depth += _module_of(frame) is not None
        frame = frame.f_back
    return depth


async def trace() -> Trace:
    """Return the trace of one request; those before it have filled every cache."""
    rules, metrics = SubjectRules(RateLimitSettings()), Metrics()
    limiter = Limiter(rules, InProcessStore(), None, metrics)
    house = House(limiter=limiter, metrics=metrics)
    # One token: a worker remembers it.
    headers = {"Authorization": bearer("predict")}
    for _ in range(3):
        await house.post(V2, GOOD[V2], headers)
    request_trace = Trace()
    sys.setprofile(request_trace)
    try:
        response = await house.post(V2, GOOD[V2], headers)
    finally:
        sys.setprofile(None)
    assert response.status_code == 200
    return request_trace


def main() -> None:
    """Print the counts, and the files with their calls."""
    request_trace = asyncio.run(trace())
    files: Counter[str] = Counter()
    for (module, _), count in request_trace.calls.items():
        files[module] += count
    summary = {
        "files": len(files),
        "calls": request_trace.calls.total(),
        "depth": request_trace.depth,
    }
    sys.stdout.write(json.dumps({**summary, "by_file": dict(files.most_common())}, indent=2) + "\n")


if __name__ == "__main__":
    main()
