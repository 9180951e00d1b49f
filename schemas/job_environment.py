"""What an endpoint gives to the program of a job beside its input: environment variables and secrets.

`[env]` of endpoint.toml holds plain values. `secrets` names values that an operator or an owner has stored at the edge;
the program finds each in a file of that name in the folder that SECRETS_VARIABLE names.
"""

from typing import Annotated

from msgspec import Meta

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
