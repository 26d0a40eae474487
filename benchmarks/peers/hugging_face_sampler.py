"""Hugging Face `generate` as a peer of the sampling benchmark: static batches, each until its longest row ends.

`tune` times every way to call `generate` that helps on some machine (attention, cache, compilation) on the job itself;
`run` takes the one it is told. Needs torch and transformers.
"""

# pyright: reportMissingImports=false
# This file runs in an interpreter that has the peer; the project's own need not.

from __future__ import annotations

from typing import Any

from benchmarks.paired import Link, settings, timed

# name → (attention, cache, compiled)
VARIANTS = {
    "sdpa, dynamic cache": ("sdpa", "dynamic", False),
    "eager, dynamic cache": ("eager", "dynamic", False),
    "sdpa, static cache": ("sdpa", "static", False),
    "eager, static cache": ("eager", "static", False),
    "sdpa, static cache, compiled": ("sdpa", "static", True),
}


def main() -> None:
    link = Link()
    import torch
    from transformers import AutoModelForCausalLM, CompileConfig

    from benchmarks.figures import versions

    given = settings()
    torch.set_num_threads(given["threads"])
    model = AutoModelForCausalLM.from_pretrained(given["folder"], dtype=torch.float32).eval()

    def batch(prompts: list[list[int]], new: int, variant: str, sample: bool = True) -> list[list[int]]:
        attention, cache, compiled = VARIANTS[variant]
        model.set_attn_implementation(attention)
        options: dict[str, Any] = {"do_sample": sample}
        if sample:
            options |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        if cache == "static":
            options["cache_implementation"] = "static"
        if compiled:
            compilation: Any = CompileConfig(mode="default")
            compilation._compile_all_devices = True  # else `generate` compiles on accelerators alone
            options["compile_config"] = compilation
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                pad_token_id=0,
                eos_token_id=None,
                **options,
            )
        return out[:, ids.shape[1] :].tolist()

    def greedy(prompts: list[list[int]], new: int) -> dict[str, Any]:
        return {"tokens": batch(prompts, new, "eager, dynamic cache", sample=False)}

    def run(prompts, new_tokens, rows, seed, variant) -> dict[str, Any]:
        torch.manual_seed(seed)
        parts = range(0, len(prompts), rows)

        def work() -> int:
            drawn = 0
            for start in parts:
                lengths = new_tokens[start : start + rows]
                out = batch(prompts[start : start + rows], max(lengths), variant)
                drawn += sum(min(len(ids), length) for ids, length in zip(out, lengths, strict=True))
            return drawn

        spent, tokens = timed(work)
        return {**spent, "tokens": tokens}

    def tune(prompts, new_tokens, rows) -> dict[str, Any]:
        seconds, failed = {}, {}
        for name in given["variants"] or VARIANTS:
            try:
                run(prompts, new_tokens, rows, 0, name)
                seconds[name] = min(run(prompts, new_tokens, rows, i, name)["seconds"] for i in (1, 2))
            except Exception as error:  # a variant that this machine cannot run is a finding, not an end
                failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return {"best": min(seconds, key=lambda name: seconds[name]), "seconds": seconds, "failed": failed}

    found = {**versions("torch", "transformers"), "threads": torch.get_num_threads()}
    link.serve({"hello": lambda: found, "greedy": greedy, "tune": tune, "run": run})


if __name__ == "__main__":
    main()
