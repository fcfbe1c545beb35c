"""What a method is, and the table of those that are there.

A method is one file in `scpo_ray/methods/`, or an entry point of another package in the group
`scpo_ray.methods`: nothing here names one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from scpo_ray.settings.plugins import Plugins
from scpo_ray.settings.section import Section


@dataclass(frozen=True, slots=True)
class Style:
    """How a method is drawn; marker and dashes tell it apart where colour does not.

    `ink`, `ink_on_dark`: hexadecimal colours on a white and on a dark page. `marker`: one of
    matplotlib's.
    """

    ink: str
    ink_on_dark: str
    marker: str
    dashes: Literal["-", "--", "-.", ":"]

    def __post_init__(self) -> None:
        for ink in (self.ink, self.ink_on_dark):
            if not re.fullmatch("#[0-9a-f]{6}", ink):
                raise ValueError(f"a colour must be # and six hexadecimal digits, got {ink!r}")


OTHER_STYLE = Style("#20262e", "#e4e7eb", "*", "-")


def accepts_all(given: Any) -> None:
    """Refuses nothing."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to a culture's reward model: what it checks, which pairs it takes, how it fits.

    `scpo_ray.methods.task` has the types of what its functions are given and return.

    Attributes:
        name: in `method:` and in tables. about: one line for the settings page and the report.
        version: raised when the same settings come to give another model: earlier runs of this
            method are then other runs.
        select: Task -> Selection, which training pairs are kept and what each counts.
        fit: (PreparedRun, FitContext) -> Fitted, the model, or the rewards, and what to tell of it.
        check: Task -> None; raises InputError where the data is not what it needs.
        check_settings: RunConfig -> None; raises ValueError where settings do not go together.
        settings: its own section, below `methods.<name>`; None: it has none.
        style: in pictures.
        is_rival: False for the paper's own, which a comparison runs where its space names none.
        trains: whether the network's weights are trained, by the plan's steps.
        needs_global_model: whether it reads the global model's rewards or features.
        pools: one model for all cultures: in a comparison or a sweep, theirs is one run.
        learns_from_all: from the pairs of all cultures of the data, whatever `culture_weights` is.
    """

    name: str
    about: str
    version: int
    select: Callable[[Any], Any]
    fit: Callable[[Any, Any], Any]
    check: Callable[[Any], None] = accepts_all
    check_settings: Callable[[Any], None] = accepts_all
    settings: type[Section] | None = None
    style: Style = OTHER_STYLE
    is_rival: bool = True
    trains: bool = True
    needs_global_model: bool = False
    pools: bool = False
    learns_from_all: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z][a-z0-9_]*", self.name):
            raise ValueError(
                f"a method's name must be lower-case letters, digits and _, got {self.name!r}"
            )


METHODS = Plugins("scpo_ray.methods", group="scpo_ray.methods", attribute="METHODS", kind=Method)


def method_names() -> list[str]:
    """Every method's name: the paper's own, then the rivals, then those of other packages."""
    own = own_methods()
    return [*own, *(name for name in METHODS.names() if name not in own)]


def own_methods() -> list[str]:
    """The paper's, in its order."""
    return [method.name for method in METHODS.own() if not method.is_rival]


def method_order(name: str) -> int:
    """Where a method stands among others in a table; one that is not there any more comes last."""
    names = method_names()
    return names.index(name) if name in names else len(names)


def usable_methods() -> list[Method]:
    """All that can be had, in that order."""
    return sorted(METHODS.usable(), key=lambda method: method_order(method.name))
