"""The world of the services, whose receivers are real servers."""

from tests.edge.services.conftest import edge, fake

__all__ = ["edge", "fake"]
