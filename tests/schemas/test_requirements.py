"""What an endpoint requires of a host: GPUs by name and compute capability, labels, and how the file is refused."""

import pytest

from schemas.endpoint import EndpointInvalid, parse_endpoint
from schemas.endpoint_parts import GpuRequirement, describe_unmet_labels, has_words

HEAD = 'name = "x"\nimage = "x"\n'
GPU = "\n[resources]\ngpus = 1\n"


@pytest.mark.parametrize(
    ("name", "words", "matches"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX 4090", True),
        ("NVIDIA GeForce RTX 4090", "rtx4090", False),
        ("NVIDIA GeForce RTX 4090", "geforce rtx", True),
        ("NVIDIA GeForce RTX 4090 D", "RTX 4090", True),
        ("NVIDIA GeForce RTX 4080", "RTX 4090", False),
        ("NVIDIA GeForce GTX 40900", "4090", False),
        ("NVIDIA A100-SXM4-80GB", "a100", True),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB", False),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4", True),
        ("NVIDIA A1000", "A100", False),
        ("Tesla T4", "T4", True),
    ],
)
def test_a_model_is_found_by_whole_words(name: str, words: str, matches: bool) -> None:
    assert has_words(name, words) is matches


@pytest.mark.parametrize(
    ("name", "capability", "met"),
    [
        ("NVIDIA GeForce RTX 4090", "8.9", True),
        ("NVIDIA L40S", "8.9", True),
        ("NVIDIA GeForce RTX 3090", "8.6", False),
        ("NVIDIA L40S", "7.5", False),
        ("NVIDIA L40S", None, False),
    ],
)
def test_a_gpu_needs_a_name_and_a_capability(name: str, capability: str | None, met: bool) -> None:
    assert GpuRequirement(("RTX 4090", "L40S"), "8.9").is_met_by(name, capability) is met


@pytest.mark.parametrize(("found", "met"), [("9.0", False), ("10.0", True), ("12.0", True), ("8.9", False)])
def test_capabilities_are_compared_as_numbers(found: str, met: bool) -> None:
    assert GpuRequirement((), "10.0").is_met_by("GPU", found) is met


def test_labels_that_are_missing_are_listed() -> None:
    assert describe_unmet_labels({"disk": "nvme"}, {"disk": "nvme", "zone": "a"}) is None
    assert describe_unmet_labels({"disk": "nvme", "zone": "a"}, {"disk": "hdd"}) == (
        "label disk = nvme (it has hdd), label zone = a (it has no such label)"
    )


def test_requirements_are_read() -> None:
    text = f'{HEAD}gpu = ["RTX 4090"]\ncompute_capability = "8.0"\nlabels = {{disk = "nvme"}}{GPU}'
    endpoint = parse_endpoint(text)
    assert endpoint.required_gpu == GpuRequirement(("RTX 4090",), "8.0")
    assert endpoint.labels == {"disk": "nvme"}
    assert parse_endpoint(HEAD).required_gpu.is_any
    assert parse_endpoint(f'{HEAD}secrets = ["token", "TOKEN"]').secrets == ("token", "TOKEN")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (f"gpu = [4090]{GPU}", 'gpu[0] is 4090: it must be the name of a GPU model, as in "RTX 4090"'),
        (f'gpu = ["-"]{GPU}', 'gpu[0] is "-": it must be the name of a GPU model, as in "RTX 4090"'),
        (f'gpu = "RTX 4090"{GPU}', 'gpu is "RTX 4090": it must be a list, each item the name of a GPU model, as in'),
        (f"compute_capability = 8.0{GPU}", 'compute_capability is 8.0: it must be text with two numbers, as in "8.0"'),
        (f'compute_capability = "8"{GPU}', 'compute_capability is "8": it must be text with two numbers, as in "8.0"'),
        ("labels = {disk = 1}", "labels.disk is 1: it must be text of 1 to 100 characters"),
        (
            'labels = {"a b" = "c"}',
            'labels."a b" has a name that is not allowed: it must be a name of up to 63 letters',
        ),
        ('label = {disk = "nvme"}', "label is an unknown field (did you mean labels?)"),
        (
            f'gpu = ["RTX 4090", "A100", "rtx 4090"]{GPU}',
            'gpu[2] is "rtx 4090", the same as gpu[0]: remove one',
        ),
        ('secrets = ["HF_TOKEN", "HF_TOKEN"]', 'secrets[1] is "HF_TOKEN", the same as secrets[0]: remove one'),
        (
            'network = "egress"\nallow = ["*.hf.co", "hf.co", "HF.co"]',
            'allow[2] is "HF.co", the same as allow[1]: remove one',
        ),
        ('gpu = ["T4"]', "gpu and compute_capability need a GPU: set resources.gpus to 1 or more"),
    ],
)
def test_a_wrong_requirement_is_refused_with_what_is_allowed(line: str, error: str) -> None:
    with pytest.raises(EndpointInvalid) as refused:
        parse_endpoint(f"{HEAD}{line}\n")
    assert error in str(refused.value)
