"""The page about the GPU: its section of output is written by one command."""

from datetime import UTC, datetime

import pytest

from deploy import gpu_page
from deploy.gpu_page import MARK, PAGE, with_output

AT = datetime(2026, 11, 22, tzinfo=UTC)


def test_output_takes_the_place_of_the_one_before():
    page = PAGE.read_text()
    once = with_output(page, AT, "name\nNVIDIA A100\n", "1 passed\n")
    twice = with_output(once, AT, "name\nNVIDIA H200\n", "2 passed\n")
    assert once.startswith(page.partition(MARK)[0])
    assert "On 2026-11-22" in once
    assert ("NVIDIA A100" in once, "1 passed" in once) == (True, True)
    assert ("NVIDIA A100" in twice, "1 passed" in twice, "2 passed" in twice) == (False, False, True)


def test_a_page_without_its_mark_is_left_alone():
    with pytest.raises(ValueError, match="has lost its mark"):
        with_output("# another page", AT, "", "")


def test_without_a_gpu_nothing_is_written(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(gpu_page, "GPU_QUERY", ["nvidia-smi-that-is-not-there"])
    before = PAGE.read_text()
    assert gpu_page.main() == 2
    assert PAGE.read_text() == before
    assert "no GPU to write about" in capsys.readouterr().out


def test_heygems_selfcheck_is_on_the_page_where_its_image_is(monkeypatch: pytest.MonkeyPatch):
    """An image that is not there is said as well: whoever names one wants to know."""
    monkeypatch.setattr(gpu_page, "HEYGEM_BASES", ("lamplighter-test-nowhere:gone",))
    assert gpu_page.heygem_section({}) == ""
    said = gpu_page.heygem_section({"HEYGEM_BASE": "lamplighter-test-nowhere:gone"})
    assert "`images/heygem/selfcheck lamplighter-test-nowhere:gone` ended with 2 and said:" in said
    page = with_output(PAGE.read_text(), AT, "name\nNVIDIA H200\n", "1 passed\n", said)
    assert page.endswith(said)
