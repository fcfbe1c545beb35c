"""A culture, or a mixture, as one text."""

import pytest

from scpo_ray.records import InputError
from scpo_ray.serve.choices import Choice, read_choice, read_models

CULTURES = ("Chile", "Mexico", "A=B")


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("Chile", Choice("Chile")),
        ("  Chile ", Choice("Chile")),
        ("A=B", Choice("A=B")),
        ("Chile=0.5,Mexico=0.5", Choice(mix={"Chile": 0.5, "Mexico": 0.5})),
        ("Chile=0.3, Mexico=0.7:people", Choice(mix={"Chile": 0.3, "Mexico": 0.7}, how="people")),
        ("A=B=1:worst", Choice(mix={"A=B": 1.0}, how="worst")),
    ],
)
def test_a_text_names_a_culture_or_a_mixture(text, choice):
    assert read_choice(text, CULTURES, "label") == choice


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Chle", "label = 'Chle': no such culture; nearest: 'Chile'"),
        ("", "label = '': no such culture"),
        ("Chile=0.5,Peru=0.5", "label: mix = 'Peru': no such culture"),
        ("Chile=0.5,Mexico=0.4", "label: mix: weights must sum to 1, got 0.9"),
        ("Chile=-1,Mexico=2", "label: mix.Chile = -1: must not be negative"),
        ("Chile=nan", "label: mix.Chile = nan: must be a finite number"),
        ("Chile=half", "label = Chile=half: 'Chile=half' is no weight"),
        ("Chile=0.5,Chile=0.5", "label = Chile=0.5,Chile=0.5: Chile twice"),
        ("Chile=1:best", "'best' must be one of linear, people, worst"),
    ],
)
def test_a_text_that_names_none_is_refused(text, said):
    with pytest.raises(InputError, match=said.replace("[", r"\[")):
        read_choice(text, CULTURES, "label")


def test_models_are_named_by_culture():
    assert read_models(["Chile=runs/a=b", "Mexico=x, y"]) == {
        "Chile": ("runs/a=b",),
        "Mexico": ("x", "y"),
    }


@pytest.mark.parametrize(
    "argument", ["Chile", "=runs/a", "Chile=", "Chile=again", "Peru=a,", "Peru=a,a"]
)
def test_a_model_without_its_culture_is_refused(argument):
    with pytest.raises(InputError, match=f"^{argument}: "):
        read_models(["Chile=runs/a", argument])
