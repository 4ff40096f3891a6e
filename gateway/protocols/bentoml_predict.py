"""The route of BentoML's own clients: the body and the answer of version 2.

The gateway answers it itself: BentoML's handler would parse the body once more, on the event loop.
"""

from dataclasses import replace

from gateway.protocols import kaiten_v2

ROUTES = (
    replace(
        kaiten_v2.PREDICT,
        path="/predict",
        summary="The same, for bentoml.SyncHTTPClient",
        negotiated_path=None,
    ),
)
