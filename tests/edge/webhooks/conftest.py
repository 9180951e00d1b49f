"""Services over the fake bus, whose webhook receivers are real servers."""

from tests.edge.services.conftest import edge, fake

__all__ = ["edge", "fake"]
