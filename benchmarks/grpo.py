"""GRPO (TRL) with two cultures' rewards: each policy sample is judged by its prompt's culture.

    python benchmarks/grpo.py runs/grpo [STEPS]

Generated data, and a tiny model of each culture, trained here; then a tiny policy from random
weights. Prints the curve, and writes it as a picture beside the models.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import matplotlib
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    set_seed,
)

from scpo_ray.data.synthetic import TOPICS, SyntheticConfig, vocabulary
from scpo_ray.launch.runs import start_run
from scpo_ray.models.tiny import make_tiny_backbone
from scpo_ray.serve.rewards import CultureReward, trl
from scpo_ray.settings.model import ModelConfig
from scpo_ray.settings.run import RunConfig
from scpo_ray.settings.tracking import TrackingConfig
from scpo_ray.settings.train import TrainConfig

MAJORITY = "Majority"
CULTURES = ("North", "South")
SPECIAL = ["<pad>", "<eos>", "<unk>"]
COMPLETION_TOKENS = 12


def train_cultures(folder: Path, *, users: int = 80, steps: int = 250) -> dict[str, str]:
    """Culture -> the folder of its run: a tiny model that learned from its people alone."""
    backbone = folder / "backbone"
    if not backbone.is_dir():
        make_tiny_backbone(backbone, vocabulary(), seed=0)

    def run(culture: str) -> Path:
        data = SyntheticConfig(
            source="synthetic",
            cultures=[culture],
            users={MAJORITY: users, **dict.fromkeys(CULTURES, users)},
            interactions_per_user=8,
        )
        model = ModelConfig(path=str(backbone), max_length=48, new_head=True)
        train = TrainConfig(batch_size=32, max_steps=steps, learning_rate=2e-3, warmup_steps=20)
        _, made = start_run(
            RunConfig(
                experiment="grpo",
                method="finetune",
                output_dir=folder,
                device="cpu",
                culture_weights={culture: 1.0},
                data=data,
                model=model,
                train=train,
                tracking=TrackingConfig(tracker="none"),
            )
        )
        return made

    return {culture: str(run(culture)) for culture in CULTURES}


def policy_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each word of the generated data, and for the cultures' names."""
    words = [*SPECIAL, *CULTURES, *vocabulary()]
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    )


def train_policy(function: CultureReward, folder: Path, *, steps: int, seed: int = 0) -> list[dict]:
    """TRL's log, a row for each step; see `CultureReward` for the fields."""
    from trl import GRPOConfig, GRPOTrainer

    set_seed(seed)
    tokenizer = policy_tokenizer()
    policy = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            tie_word_embeddings=False,
        )
    )
    # The policy sees the prompt alone: the culture must be written in it.
    rows = [
        {"prompt": f"{culture} please tell me about {topic}", "culture": culture}
        for topic in TOPICS
        for culture in CULTURES
    ]
    config = GRPOConfig(
        output_dir=str(folder / "policy"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        max_steps=steps,
        per_device_train_batch_size=64,
        num_generations=8,
        max_completion_length=COMPLETION_TOKENS,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        seed=seed,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        beta=0.0,
    )
    trainer = GRPOTrainer(
        policy,
        function,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    # Too few prompts for a batch: TRL then trains no step and says nothing.
    if trainer.state.global_step != steps:
        raise RuntimeError(f"{trainer.state.global_step} steps were trained, not {steps}")
    return [row for row in trainer.state.log_history if "reward" in row]


def curves(log: list[dict]) -> dict[str, list[float | None]]:
    """Field of the log -> its value at each step; None where a step had no row of the culture."""
    fields = sorted({field for row in log for field in row if field.startswith("reward/")})
    return {field: [row.get(field) for row in log] for field in fields}


def window(values: list[float | None], begin: int, end: int) -> float:
    known = [value for value in values[begin:end] if value is not None]
    return sum(known) / len(known)


def draw(found: dict[str, list[float | None]], file: Path) -> None:
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(CULTURES), figsize=(8, 3), sharey=True)
    for axis, culture in zip(axes, CULTURES, strict=True):
        for field, values in found.items():
            if field == f"reward/{culture}" or field.startswith(f"reward/{culture}/by/"):
                judge = field.rpartition("/by/")[2] if "/by/" in field else culture
                own = judge == culture
                axis.plot(
                    range(1, len(values) + 1),
                    [float("nan") if value is None else value for value in values],
                    label=f"judged by {judge}",
                    color="#0f766e" if own else "#9ca3af",
                    linewidth=2 if own else 1.5,
                )
        axis.set_title(f"prompts of {culture}", fontsize=10)
        axis.set_xlabel("step")
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("standardised reward")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int, nargs="?", default=30)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    function = trl(train_cultures(arguments.folder), device="cpu", report_all=True)
    begun = time.perf_counter()
    log = train_policy(function, arguments.folder, steps=arguments.steps)
    seconds = time.perf_counter() - begun
    found = curves(log)
    (arguments.folder / "curve.json").write_text(json.dumps(found) + "\n")
    draw(found, arguments.folder / "grpo.svg")
    print("| prompts of | judged by | steps 1-5 | middle 5 | last 5 |\n|---|---|---|---|---|")
    middle = arguments.steps // 2
    for culture in CULTURES:
        for judge in sorted(CULTURES, key=lambda name: name != culture):
            field = f"reward/{culture}" + ("" if judge == culture else f"/by/{judge}")
            parts = [(0, 5), (middle - 2, middle + 3), (arguments.steps - 5, arguments.steps)]
            shown = " | ".join(f"{window(found[field], *part):.2f}" for part in parts)
            print(f"| {culture} | {judge} | {shown} |")
    print(f"\n{arguments.steps} steps in {seconds:.0f} s, {platform.machine()}, 1 thread")


if __name__ == "__main__":
    main()
