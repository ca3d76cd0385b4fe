"""The options that several commands have, and what they refuse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from hpo.errors import HpoError

StudyOption = Annotated[str, typer.Option("--study", help="A study in studies/ by name, or a path to its YAML file.")]
OneStudyOption = Annotated[str | None, typer.Option("--study", help="One study; all of the storage when not given.")]
ConfigOption = Annotated[Path | None, typer.Option(help="A configuration in YAML or JSON.")]
EnvOption = Annotated[
    str | None,
    typer.Option("--env", metavar="NAME", help="local, colab, kaggle, cluster or ci; detected when not given."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the configuration; may be repeated."),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        envvar="HPO_STORAGE",
        show_envvar=False,
        help="SQLAlchemy URL of the study database; also read from $HPO_STORAGE, where a password stays out of ps.",
    ),
]
LauncherOption = Annotated[
    str | None,
    typer.Option("--launcher", metavar="NAME", help="How ranks start: fork_server (warm, the default) or torchrun."),
]
DeadlineOption = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="End within this, such as 9h: what runs is parked; the same command goes on."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
SelectOption = Annotated[
    Literal["best", "one-standard-error", "ensemble"],
    typer.Option(
        "--select",
        help="The best mean; the cheapest within one standard error of it; or the models of the best folds, averaged.",
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option("--top-k", min=2, metavar="K", help="Models to average; the folds of the best trial when not given."),
]
TrialOption = Annotated[
    int | None,
    typer.Option("--trial", min=0, metavar="N", help="That trial; with several objectives, one of the front."),
]


def require_output_only(settings: Sequence[str] | None, why: str) -> None:
    """Raises HpoError where ``--set`` changes more than where things are kept, and says `why` it may not."""
    if any(not setting.strip().startswith("output.") for setting in settings or ()):
        raise HpoError(f"{why}: --set takes only output.* keys here")
