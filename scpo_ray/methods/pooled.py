"""One model for all cultures, trained on all of their pairs."""

from scpo_ray.methods.ways import check_several_cultures, select_every_pair, train
from scpo_ray.settings.methods import Method, Style

METHODS = Method(
    name="pooled",
    about="one model for all cultures, trained on all of their pairs",
    version=1,
    check=check_several_cultures,
    select=select_every_pair,
    fit=train,
    style=Style("#1d8fb3", "#6cc9e6", "h", "-."),
    pools=True,
)
