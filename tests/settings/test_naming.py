import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.settings.naming import config_params, model_name, result_metrics, run_name, safe_name
from scpo_ray.settings.run import RunConfig
from tests.results import run_result

HARD_NAMES = [
    "Korea, Republic of",
    "Côte d'Ivoire",
    "a/b",
    "..",
    "",
    " ",
    "🇨🇱",
    "A:B",
    "\0",
    "\ud800",
    "South_Africa",
    "Chile-0a1b2c3d",
    "x" * 100_000,
    "中国",
    "scpo\n",
]


def test_safe_names_keep_plain_names_readable():
    assert safe_name("Chile") == "Chile"
    assert safe_name("South Africa") == "South_Africa"
    assert re.fullmatch(r"Cote_d_Ivoire-[0-9a-f]{8}", safe_name("Côte d'Ivoire"))


@given(st.text(st.characters()))
def test_safe_names_are_short_and_of_safe_characters(culture):
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,89}", safe_name(culture))


@given(st.sets(st.text(st.sampled_from("aA _-./'é0\0"), max_size=4), min_size=2))
def test_two_cultures_never_share_a_safe_name(cultures):
    names = {safe_name(culture) for culture in cultures}
    names |= {safe_name(name) for name in names}

    assert len(names) >= len(cultures)
    assert len({safe_name(culture) for culture in cultures}) == len(cultures)


def test_hard_names_stay_apart_also_from_their_own_safe_names():
    names = [safe_name(culture) for culture in HARD_NAMES]

    assert len(set(names)) == len(HARD_NAMES)
    assert not {safe_name(name) for name in names if name[-9:-8] == "-"} & set(names)


def test_run_name_shows_method_cultures_and_seed():
    config = RunConfig(culture_weights={"South Africa": 1.0, "Chile": 0.3, "Peru": 0.0}, seed=2)

    assert run_name(config) == "scpo-South_Africa+Chile-s2"


def test_a_mixture_is_named_by_its_weights_not_by_their_order():
    result = run_result()
    one = model_name(replace(result, culture_weights={"Chile": 1.0, "Peru": 0.5, "Cuba": 0.0}))
    same = model_name(replace(result, culture_weights={"Peru": 0.5, "Chile": 1.0}))
    other = model_name(replace(result, culture_weights={"Peru": 0.6, "Chile": 1.0}))

    assert re.fullmatch(r"scpo-mix-[0-9a-f]{8}", one)
    assert one == same != other


def test_params_are_dotted_settings_without_places():
    params = config_params(RunConfig(culture_weights={"Korea, Republic of": 1.0}))

    assert params["train.learning_rate"] == "1e-06"
    assert params["culture_weights"] == '{"Korea, Republic of": 1.0}'
    assert not [
        name for name in params if name.startswith(("output_dir", "tracking", "device", "launch"))
    ]
    assert "train.batch_size" in params
    assert not {"train.num_workers", "train.engine", "train.zero_stage"} & params.keys()


def test_a_long_param_is_cut_and_a_change_in_the_rest_still_shows():
    cultures = {f"culture number {i}": 1.0 for i in range(1_000)}
    long = config_params(RunConfig(culture_weights=cultures))
    changed = config_params(RunConfig(culture_weights={**cultures, "one more": 1.0}))

    assert len(long["culture_weights"]) <= 6_000
    assert long["culture_weights"] != changed["culture_weights"]


def test_result_metrics_carry_the_numbers_and_leave_out_what_is_missing():
    result = run_result()
    chile = result.evaluation["Chile"]
    nothing = replace(chile.after["all"], value=None, low=None, high=None)
    evaluation = {
        "Chile": chile,
        "Côte d'Ivoire": replace(chile, after={**chile.after, "all": nothing}),
    }

    metrics = result_metrics(replace(result, evaluation=evaluation))

    other = safe_name("Côte d'Ivoire")
    assert metrics["accuracy/all/Chile"] == chile.after["all"].value
    assert metrics["accuracy/all/Chile/low"] == chile.after["all"].low
    assert metrics["accuracy_before/all/Chile"] == chile.before["all"].value
    assert metrics["accuracy_difference/all/Chile/p_holm"] == chile.difference["all"].p_holm
    assert metrics["selection/kept_share/Chile"] == result.selection["Chile"].kept_share
    assert f"accuracy/all/{other}" not in metrics
    assert metrics["accuracy_macro/all"] == chile.after["all"].value
    assert metrics["accuracy_macro/all/num_cultures"] == 1
    # The model is Chile's: what it reaches elsewhere is another number, and on all it has none.
    assert metrics["accuracy_macro/agreed"] == chile.after["agreed"].value
    assert metrics["accuracy_macro/agreed/num_cultures"] == 1
    assert metrics["accuracy_others/agreed/num_cultures"] == 1
    assert "accuracy_others/all" not in metrics


def test_what_dev_users_say_is_named_apart():
    result = run_result()
    on_dev = dict(result.evaluation)
    on_dev["Chile"] = replace(on_dev["Chile"], after=on_dev["Israel"].after)

    metrics = result_metrics(replace(result, dev=on_dev))

    israel = result.evaluation["Israel"].after["all"]
    assert metrics["dev/accuracy/all/Chile"] == israel.value
    assert metrics["dev/accuracy/all/Chile/low"] == israel.low
    assert metrics["dev/accuracy_macro/all"] == israel.value
    assert metrics["accuracy/all/Chile"] == result.evaluation["Chile"].after["all"].value
    assert "dev/accuracy_difference/all/Chile/high" in metrics
    without = result_metrics(replace(result, dev={}))
    assert not [name for name in without if name.startswith("dev/")]
