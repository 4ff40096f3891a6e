"""The protocols: adapters from a wire format to the prediction handler, one module each.

A module declares its routes as ``ROUTES``. Its name here registers them.
"""

from importlib import import_module

from gateway.routes import RouteSpec

_PROTOCOLS = (
    "kaiten_v1",
    "kaiten_v2",
    "bentoml_predict",
)
ROUTES: tuple[RouteSpec, ...] = tuple(
    route for name in _PROTOCOLS for route in import_module(f"{__name__}.{name}").ROUTES
)
