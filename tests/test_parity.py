"""The paper's five methods against a loop that shares with ours the order of the pairs alone."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from scpo_ray.experiment import load_inputs, prepare_run
from scpo_ray.inputs import open_run_dir
from scpo_ray.launch.runs import start_run
from scpo_ray.models.export import load_exported
from scpo_ray.models.scoring import score_tokens
from scpo_ray.records import ALONE
from tests.tiny import tiny_config

TAU, BETA, STEPS, BATCH, RATE, DECAY, CLIP = 0.5, 0.3, 12, 8, 1e-3, 0.01, 1.0


class PlainLoop:
    """The paper's definitions, pair by pair: two texts, two forward passes, one text a batch."""

    def __init__(self, folder, texts):
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.texts = texts

    def reward(self, text: int) -> torch.Tensor:
        said = self.texts[text]
        encoded = self.tokenizer(said.prompt, said.response, return_tensors="pt")
        return self.model(**encoded).logits[0, 0]

    @torch.no_grad()
    def rewards(self, texts) -> np.ndarray:
        return np.array([self.reward(int(text)).item() for text in texts])

    def train(self, pairs, weights, batches) -> None:
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=DECAY)
        for number, rows in enumerate(batches):
            loss = sum(
                weights[row]
                * -torch.log(torch.sigmoid(self.reward(pairs[row][0]) - self.reward(pairs[row][1])))
                for row in rows
            ) / len(rows)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            optimizer.param_groups[0]["lr"] = RATE * (1 - number / STEPS)
            optimizer.step()
            optimizer.zero_grad()


def kept(method: str, chosen: float, rejected: float) -> bool:
    win = math.exp(chosen) / (math.exp(chosen) + math.exp(rejected))
    return win < TAU if method in ("filter", "scpo") else True


def weight(method: str, chosen: float, rejected: float) -> float:
    if method in ("weight", "scpo"):
        return min(math.exp((chosen - rejected) / BETA), 1.0)
    return max(math.exp(rejected - chosen), 1.0) if method == "inverse" else 1.0


@pytest.mark.parametrize("method", ["finetune", "filter", "weight", "inverse", "scpo"])
def test_pairs_weights_and_trained_rewards_are_those_of_the_papers_definitions(
    tiny_reward_model, tmp_path, method
):
    config = tiny_config(
        tiny_reward_model,
        tmp_path,
        method=method,
        selection={"filter_threshold": TAU, "weight_temperature": BETA},
        train={
            "batch_size": BATCH,
            "max_steps": STEPS,
            "learning_rate": RATE,
            "weight_decay": DECAY,
            "max_grad_norm": CLIP,
            "dropout": False,
        },
    )
    run = prepare_run(config, load_inputs(config, open_run_dir(config)), ALONE)
    task, pairs = run.task, run.task.train_pairs
    plain = PlainLoop(tiny_reward_model, task.data.texts)

    chosen, rejected = plain.rewards(pairs.chosen), plain.rewards(pairs.rejected)
    rows = [i for i in range(len(pairs)) if kept(method, chosen[i], rejected[i])]
    weights = [weight(method, chosen[i], rejected[i]) for i in rows]

    assert run.rows.tolist() == rows
    np.testing.assert_allclose(run.weights, weights, rtol=1e-4)
    assert run.plan is not None
    both = [(int(pairs.chosen[i]), int(pairs.rejected[i])) for i in rows]
    plain.train(both, weights, [step.rows.tolist() for step in run.plan.steps_from(0)])

    _, folder = start_run(config)
    ours = score_tokens(load_exported(folder / "model", device="cpu"), task.tokens)
    theirs = plain.rewards(range(len(task.data.texts)))
    # The head's bias has no gradient but rounding, which Adam makes steps of: no pair sees it.
    np.testing.assert_allclose(ours - ours.mean(), theirs - theirs.mean(), atol=1e-4)
    # And training did change them.
    assert np.abs(ours[pairs.chosen] - chosen).max() > 1e-2
