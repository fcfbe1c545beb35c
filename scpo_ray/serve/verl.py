"""verl's reward function: `reward.custom_reward_function.path` takes this file's path, and
`reward.custom_reward_function.name` is `compute_score`.

`scpo_ray.serve.rewards` says how the environment sets it up. verl does not pass the prompt, so the
data brings it: `extra_info` must have `prompt` (text, or messages) and `culture`. One sample is
asked at a time, and by many processes: a server (SCPO_URL) makes batches of them.
"""

from collections.abc import Mapping
from typing import Any

from scpo_ray.records import InputError
from scpo_ray.serve.rewards import COLUMN, CultureReward, from_environment


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    **others: Any,
) -> dict[str, float]:
    """`score`, the reward of one response, as verl takes it.

    Args:
        solution_str: the response.
        extra_info: with `prompt` and, where several cultures are loaded, `culture`.
        data_source, ground_truth, others: not looked at.

    Raises: InputError if the prompt or the culture is missing; a reward that is not finite.
    """
    rewards, scale = from_environment()
    known = extra_info or {}
    if known.get("prompt") is None:
        raise InputError("extra_info must have the prompt: verl passes the response alone")
    function = CultureReward(rewards, name="scpo", scale=scale, column=COLUMN, report_all=False)
    culture = known.get(COLUMN)
    columns = {} if culture is None else {COLUMN: [culture]}
    prompt = known["prompt"]
    # Out of a Parquet file, messages come as an array.
    prompt = prompt if isinstance(prompt, str) else list(prompt)
    (score,) = function([prompt], [solution_str], **columns)
    return {"score": score}
