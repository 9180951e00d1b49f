"""The same served edge that the routes are tested on."""

from tests.edge.routes.conftest import edge as face

__all__ = ["face"]
