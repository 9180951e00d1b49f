"""Tests in several processes at once: which files start first, and what becomes of a test that ends its process."""

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController


class _Files(LoadFileScheduling):
    """One file stays on one worker."""

    def remove_node(self, node: WorkerController) -> str | None:
        """xdist's own gives the test that ended a worker to the next worker, which it ends too, until none is left."""
        for tests in self.assigned_work[node].values():
            for crashed in (name for name, done in tests.items() if not done):
                tests[crashed] = True
                super().remove_node(node)
                return crashed
        return super().remove_node(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _Files | None:
    return _Files(config, log) if config.getoption("dist") == "loadfile" else None
