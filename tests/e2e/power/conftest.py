"""The networks of edge and host for the tests of power."""

from tests.support.namespaces import net

__all__ = ["net"]
