"""OpenRLHF's reward function: `--reward.remote_url` takes this file's path.

`scpo_ray.serve.rewards` says how the environment sets it up. The culture, or the mixture, rides
in the labels: as a label, or as `culture` of a label that is a JSON object.
"""

from typing import Any

from torch import Tensor, tensor

from scpo_ray.serve.payloads import OpenRlhfRequest, openrlhf_items
from scpo_ray.serve.rewards import finite_rewards, from_environment


def reward_func(queries: list[str], prompts: list[str], labels: list[Any]) -> dict[str, Any]:
    """(N,) rewards of N samples, as OpenRLHF takes them.

    Args:
        queries: prompt and response of each, decoded with the special tokens of the policy.
        prompts: the prompts alone, rendered or plain.
        labels: whose reward is asked for.

    Raises: InputError that names the sample; a reward that is not finite is one.
    """
    rewards, scale = from_environment()
    request = OpenRlhfRequest(query=queries, prompts=prompts, labels=labels)
    items = openrlhf_items(request, None, rewards.cultures)
    found: Tensor = tensor(finite_rewards(rewards, items, scale))
    return {"rewards": found, "scores": found, "extra_logs": {"reward": found}}
