"""Values for the program of a job beside its input: environment variables and secrets.

`[env]` of endpoint.toml holds plain values. `secrets` names values that an operator or an owner has stored at the edge;
the program finds each in a file of that name in the folder that LAMPLIGHTER_SECRETS names.
"""

import re
from typing import Annotated

from msgspec import Meta, Struct

from schemas.job import Moment

VARIABLE_VALUE_LIMIT_CHARS = 32_768
OWN_PREFIX = "LAMPLIGHTER_"  # of the variables of the container contract
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")  # the host chooses a job's GPUs by these

VariableName = Annotated[
    str,
    Meta(
        pattern=rf"^(?!{OWN_PREFIX}|(?:{'|'.join(GPU_VARIABLES)})(?![\s\S]))[A-Za-z_][A-Za-z0-9_]{{0,99}}(?![\s\S])",
        description=(
            f"1 to 100 characters of A-Z a-z 0-9 _, the first one no digit; not {OWN_PREFIX}…, and not "
            f"{' or '.join(GPU_VARIABLES)}, which are set for each job"
        ),
    ),
]
VariableValue = Annotated[
    str,
    Meta(
        pattern=r"^[^\x00]*(?![\s\S])",
        max_length=VARIABLE_VALUE_LIMIT_CHARS,
        description=f"text of at most {VARIABLE_VALUE_LIMIT_CHARS} characters, without NUL",
    ),
]

ENDPOINT_SECRETS_LIMIT = 20
OWNER_SECRETS_LIMIT = 100  # of one owner, and of the installation
SECRET_LEAST_BYTES = 8  # a shorter text may stand in any line of a log, so it could not be removed from there
SECRET_LIMIT_BYTES = 32_768
SECRET_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,63}(?![\s\S])"  # noqa: S105 - a name; it is a token and a file name
SecretName = Annotated[
    str,
    Meta(
        pattern=SECRET_NAME_PATTERN, description="1 to 64 characters of A-Z a-z 0-9 _, of which the first is no digit"
    ),
]


class StoredSecret(Struct, frozen=True, kw_only=True):
    """A row of SECRETS. Its key says whose secret it is: `installation.<name>` or `owner.<owner>.<name>`.

    `sealed`: the value, encrypted by AES-256-GCM with the row's key as associated data, so that a row which was copied
    to another name cannot be opened. `key_id`: of the key in the edge's key file. `set_by`: the id of an API key.
    """

    key_id: str
    nonce: bytes
    sealed: bytes
    set_at: Moment
    set_by: str


class JobSecrets(Struct, frozen=True):
    """The answer to a host that asks for the secrets of a job that it runs: the values by name."""

    secrets: dict[str, str]


def is_secret_name(text: str) -> bool:
    """Return whether `text` may be the name of a secret."""
    return re.match(SECRET_NAME_PATTERN, text) is not None
