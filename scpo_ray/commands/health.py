"""What the data holds, and what in it a training would refuse."""

import numpy as np

from scpo_ray.data.loading import read_preferences
from scpo_ray.inputs import open_run_dir, truncated_texts, with_tokens
from scpo_ray.methods.mixture import culture_weights_of
from scpo_ray.models.files import resolve_model_dir
from scpo_ray.models.known_renderer import known_renderer
from scpo_ray.models.same_tokens import check_pairs_left
from scpo_ray.records import InputError
from scpo_ray.report.overviews import DataHealth
from scpo_ray.settings.run import RunConfig
from scpo_ray.statistics.intervals import detectable_difference

# Supposed of two models worth comparing, before there is any: the share of pairs that one ranks
# right and the other wrong, and how much a person's pairs agree in which of the two it is.
DIFFERING_SHARE = 0.2
DIFFERENCE_CORRELATION = 0.05


def data_health(config: RunConfig) -> DataHealth:
    """The data's counts and warnings, and what a training would refuse.

    Without the model's tokenizer nothing is said of what is cut. Where the tokens are kept
    already neither torch nor the tokenizer is loaded.

    Raises: InputError naming the bad rows.
    """
    stores = open_run_dir(config).stores
    data = read_preferences(config.data, stores.data)
    refusals, cut = list(data.refusals), None
    try:
        culture_weights_of(config, data)
    except InputError as error:
        refusals += error.problems
    try:
        model_dir = resolve_model_dir(config.model, stores.converted)
        renderer = known_renderer(model_dir, config.model, stores.renderers)
        data, tokens = with_tokens(data, renderer, stores.tokens)
        cut = truncated_texts(data, tokens)
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
