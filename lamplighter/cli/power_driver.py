"""`lamplighter power-driver`: power a rented box on or off, as a program of the `command` driver.

It follows the driver's exit contract (deploy/power/README.md): `on` and `off` exit with 0 if the order was accepted or
there was nothing to do, with 75 if the provider has no free GPU, and otherwise with 1 and the reason in the last line.
`state` prints one word. Keys come from the environment only, because other users of the machine can read arguments.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click

from edge.power.provider_programs import (
    AutoDlBox,
    CompShareBox,
    PilotWaits,
    ProviderRefused,
    RentedBox,
    SlurmPilot,
    SlurmRefused,
    find_states,
    switch,
)

FAILED_EXIT = 1
NO_CAPACITY_EXIT = 75
F = TypeVar("F", bound=Callable[..., Any])


def _verb_argument(command: F) -> F:
    return click.argument("verb", type=click.Choice(["on", "off", "state"]))(command)


def _place_option(name: str, variable: str, help_text: str, *, required: bool = True) -> Callable[[F], F]:
    return click.option(f"--{name}", envvar=variable, show_envvar=True, required=required, help=help_text)


@click.group("power-driver")
def power_driver() -> None:
    """Power a rented GPU box on or off, for `[hosts.NAME]` with `driver = "command"`."""


@power_driver.command()
@_verb_argument
@_place_option("host", "COMPSHARE_HOST", "The id of the box, uhost-…")
@_place_option("region", "COMPSHARE_REGION", "Its region, such as cn-wlcb.")
@_place_option("zone", "COMPSHARE_ZONE", "Its zone, such as cn-wlcb-01.")
def compshare(verb: str, host: str, region: str, zone: str) -> None:
    """A box at UCloud CompShare. Reads COMPSHARE_PUBLIC_KEY and COMPSHARE_PRIVATE_KEY."""
    url = os.environ.get("COMPSHARE_URL", CompShareBox.url)
    keys = (_read_key("COMPSHARE_PUBLIC_KEY"), _read_key("COMPSHARE_PRIVATE_KEY"))
    _run("CompShare", CompShareBox(*keys, region, zone, host, url), verb)


@power_driver.command()
@_verb_argument
@_place_option("instance", "AUTODL_INSTANCE", "The id of the container instance, pro-…")
def autodl(verb: str, instance: str) -> None:
    """A container instance "Pro" at AutoDL. Reads AUTODL_TOKEN."""
    url = os.environ.get("AUTODL_URL", AutoDlBox.url)
    _run("AutoDL", AutoDlBox(_read_key("AUTODL_TOKEN"), instance, url), verb)


@power_driver.command()
@click.argument("verb", type=click.Choice(["on", "off", "state", "states"]))
@_place_option("host", "LAMPLIGHTER_HOST", "The host; the edge sets it.", required=False)
@_place_option("script", "SLURM_PILOT", "The batch script of the pilot.", required=False)
@click.option("--option", "options", multiple=True, metavar="OPTION", help="An option for sbatch. May be repeated.")
def slurm(verb: str, host: str | None, script: str | None, options: tuple[str, ...]) -> None:
    """A pilot in a Slurm cluster, submitted by this user (deploy/slurm)."""
    try:
        if verb == "states":
            for one, state in find_states(_read_key("LAMPLIGHTER_HOSTS").split()).items():
                click.echo(f"{one} {state}")
            return
        if host is None or (verb == "on" and script is None):
            raise click.UsageError(
                "LAMPLIGHTER_HOST or SLURM_PILOT is not set: the edge sets the first, `env` of [hosts.NAME] the second"
            )
        pilot = SlurmPilot(host, script or "", options)
        if verb == "state":
            click.echo(pilot.state())
        elif verb == "on":
            pilot.switch_on()
        else:
            pilot.switch_off()
    except PilotWaits as error:
        _fail(str(error), verb, NO_CAPACITY_EXIT)
    except SlurmRefused as error:
        _fail(str(error), verb, FAILED_EXIT)


def _read_key(variable: str) -> str:
    key = os.environ.get(variable)
    if not key:
        raise click.UsageError(
            f"the variable {variable} is not set: set it for the edge, and name it in `inherit` of [hosts.NAME]"
        )
    return key


def _run(provider: str, box: RentedBox, verb: str) -> None:
    try:
        if verb == "state":
            click.echo(box.state())
        else:
            switch(box, verb)
    except ProviderRefused as error:
        _fail(f"{provider}: {error}", verb, NO_CAPACITY_EXIT if error.is_sold_out else FAILED_EXIT)
    except (OSError, ValueError) as error:
        _fail(f"{provider} does not answer: {error}", verb, FAILED_EXIT)


def _fail(reason: str, verb: str, code: int) -> NoReturn:
    """Exit with the reason. For `state` the last line is a word: exit code 1 alone means off."""
    click.echo(reason)
    if verb == "state":
        click.echo("unknown")
    sys.exit(code)
