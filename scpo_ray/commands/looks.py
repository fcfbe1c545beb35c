"""What the global model makes of the data."""

from scpo_ray.evaluation.metrics import ranked_right
from scpo_ray.experiment import global_rewards, load_inputs
from scpo_ray.inputs import open_run_dir
from scpo_ray.launch.worker import local_worker
from scpo_ray.methods.margins import look_at_margins
from scpo_ray.records import InputError
from scpo_ray.report.overviews import CultureScores, GlobalScores
from scpo_ray.settings.run import RunConfig


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
