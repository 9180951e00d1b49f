"""The same served edge that the routes are tested on."""

from tests.edge.routes.conftest import face

__all__ = ["face"]
