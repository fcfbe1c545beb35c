"""What the data holds and what the global model makes of it."""

import numpy as np

from scpo_ray.data.loading import read_preferences
from scpo_ray.evaluation.metrics import ranked_right
from scpo_ray.experiment import (
    global_rewards,
    load_inputs,
    open_run_dir,
    with_tokens,
)
from scpo_ray.launch.worker import local_worker
from scpo_ray.methods.account import truncated_texts
from scpo_ray.methods.margins import look_at_margins
from scpo_ray.methods.mixture import culture_weights_of
from scpo_ray.models.same_tokens import check_pairs_left
from scpo_ray.records import InputError
from scpo_ray.report.overviews import CultureScores, DataHealth, GlobalScores
from scpo_ray.settings.run import RunConfig
from scpo_ray.statistics.intervals import detectable_difference

# Supposed of two models worth comparing, before there is any: the share of pairs that one ranks
# right and the other wrong, and how much a person's pairs agree in which of the two it is.
DIFFERING_SHARE = 0.2
DIFFERENCE_CORRELATION = 0.05


def data_health(config: RunConfig) -> DataHealth:
    """The data's counts and warnings, and what a training would refuse.

    Without the model's tokenizer nothing is said of what is cut.

    Raises: InputError naming the bad rows.
    """
    run_dir = open_run_dir(config)
    data = read_preferences(config.data, run_dir.stores.data)
    refusals, cut = list(data.refusals), None
    try:
        culture_weights_of(config, data)
    except InputError as error:
        refusals += error.problems
    try:
        inputs = with_tokens(config, data, run_dir)
        data, cut = inputs.data, truncated_texts(inputs.data, inputs.tokens)
        check_pairs_left(data)
    except InputError as error:
        refusals += [": ".join([error.title, *error.problems])]
    return DataHealth(
        counts=data.counts,
        truncated_texts=cut,
        max_length=config.model.max_length,
        warnings=list(data.warnings),
        fingerprint=data.fingerprint,
        detectable={
            culture: detectable_difference(
                np.unique(
                    data.test.cluster_codes[data.test.culture_codes == code], return_counts=True
                )[1],
                differing_share=DIFFERING_SHARE,
                correlation=DIFFERENCE_CORRELATION,
            )
            for code, culture in enumerate(data.test.cultures)
        },
        refusals=refusals,
    )


def global_scores(config: RunConfig, *, on_ray: bool) -> GlobalScores:
    """Computes the global model's rewards, here or on Ray, or finds them in the score store."""
    if config.model.new_head:
        raise InputError("model.new_head = true: an untrained head has no scores worth keeping")
    run_dir = open_run_dir(config)
    inputs = load_inputs(config, run_dir)
    if on_ray:
        from scpo_ray.launch.ray_score import score_on_ray

        score_on_ray(config, inputs)
    rewards = global_rewards(inputs, local_worker(config))
    if rewards is None:
        raise ValueError("a model with a trained head must have rewards")
    pairs, settings = inputs.data.train, config.selection
    chosen, rejected = rewards[pairs.chosen], rewards[pairs.rejected]
    threshold = None if settings.filter_threshold == "auto" else settings.filter_threshold
    temperature = None if settings.weight_temperature == "auto" else settings.weight_temperature
    cultures = {}
    for code, culture in enumerate(pairs.cultures):
        mine = pairs.culture_codes == code
        look = look_at_margins(
            chosen[mine], rejected[mine], threshold=threshold, temperature=temperature
        )
        cultures[culture] = CultureScores(
            num_pairs=int(mine.sum()),
            accuracy=float(ranked_right(chosen[mine], rejected[mine]).mean()),
            mean_margin=float((chosen[mine] - rejected[mine]).mean()),
            kept_share=look.num_kept / int(mine.sum()),
            margins=look,
        )
    path = run_dir.stores.scores.path(inputs.global_model.score_key)
    return GlobalScores(cultures, threshold, temperature, len(inputs.data.texts), str(path))
