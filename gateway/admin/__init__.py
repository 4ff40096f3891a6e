"""Routes for operators: probes, metrics, the state of the service, and the API's documents."""

from gateway.admin import docs, operations, probes
from gateway.routes import RouteSpec

ROUTES: tuple[RouteSpec, ...] = (*probes.ROUTES, *operations.ROUTES, *docs.ROUTES)
