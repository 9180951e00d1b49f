"""What a program that we start inherits of our environment: what any program needs, and nothing that is ours.

Our own variables hold settings: passwords of the broker, keys, where private files lie. So it is a list of what is
handed on, never of what is held back.
"""

from collections.abc import Mapping

NAMES = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_RUNTIME_DIR"),
        *("SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    }
)
PREFIXES = ("LC_",)
# For our own Python programs, and for what loads an NVIDIA driver's libraries or speaks to Docker.
PYTHON = ("PYTHON", "LD_LIBRARY_PATH")
CARDS = (*PYTHON, "CUDA_", "NVIDIA_")
DOCKER = ("DOCKER_",)


def handed_on(environ: Mapping[str, str], *names: str, prefixes: tuple[str, ...] = ()) -> dict[str, str]:
    """The part of `environ` that is handed on; with `names`, and all that begin with one of `prefixes`, besides."""
    wanted, begun = NAMES.union(names), PREFIXES + prefixes
    return {name: value for name, value in environ.items() if name in wanted or name.startswith(begun)}
