"""TRL's GRPOTrainer as a peer of the step benchmark: its own training loop, stopped at each step for the driver.

float32 on the CPU, one update a batch (num_iterations 1), no reference model (beta 0), no gradient checkpointing, and
no logging or saving: the least work that its loop does. Needs torch, transformers, accelerate, datasets and trl.
"""

# pyright: reportMissingImports=false
# This file runs in an interpreter that has the peer; the project's own need not.

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.paired import Link, settings


def _distinct_share(text: str) -> float:
    words = text.split()
    return len(set(words)) / max(1, len(words))


def main() -> None:
    link = Link()
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.figures import versions

    given = settings()
    folder = Path(given["folder"])
    torch.set_num_threads(given["threads"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    # One id beyond the vocabulary: TRL wants an end and a padding token, and no row may end early.
    never = "<never>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token=never, pad_token=never, padding_side="left"
    )
    assert tokenizer.eos_token_id == given["vocab_size"], tokenizer.eos_token_id
    lengths: list[int] = []

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths[:] = map(len, completion_ids)
        return [_distinct_share(text) for text in completions]

    class Rounds(TrainerCallback):
        """Waits for the driver before each step and answers it afterwards."""

        started = cpu = 0.0

        def on_step_begin(self, args, state, control, **_):
            while (message := link.receive()) is not None:
                if message["command"] == "run":
                    self.started, self.cpu = time.perf_counter(), time.process_time()
                    return
                link.reply(**versions("torch", "transformers", "trl"), threads=torch.get_num_threads())
            raise SystemExit  # the driver has closed the conversation: there is nothing left to train for

        def on_step_end(self, args, state, control, **_):
            seconds, cpu_s = time.perf_counter() - self.started, time.process_time() - self.cpu
            link.reply(seconds=seconds, cpu_s=cpu_s, tokens=sum(lengths))

    rows = given["prompts"] * given["group"]
    with tempfile.TemporaryDirectory() as output:
        config = GRPOConfig(
            output_dir=output,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=given["micro_batch"],
            gradient_accumulation_steps=rows // given["micro_batch"],
            num_generations=given["group"],
            max_completion_length=given["new"],
            num_iterations=1,
            beta=0.0,
            temperature=1.0,
            learning_rate=1e-6,
            max_steps=10_000,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_num_workers=0,
        )
        prompts = json.loads((folder / "prompts.json").read_text())
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
            callbacks=[Rounds()],
        )
        trainer.train()


if __name__ == "__main__":
    main()
