"""llama.cpp in float32 as a peer of the sampling benchmark: one context, a sequence for each row, a token a row a step.

Weights become a GGUF file here; keys stay float32; tokens are drawn by its own sampler, without log-probabilities.
`tune` tries its attention and memory layouts. Needs llama-cpp-python, gguf and safetensors.
"""

# pyright: reportMissingImports=false
# This file runs in an interpreter that has the peer; the project's own need not.

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.paired import Link, settings, timed

# name → (flash attention, one memory for all sequences)
VARIANTS = {
    "flash attention": (1, False),
    "flash attention, unified memory": (1, True),
    "plain attention": (0, False),
    "plain attention, unified memory": (0, True),
}


def write_gguf(folder: Path) -> Path:
    """Returns the GGUF file made of a folder's safetensors; pairs of the rotation lie side by side in it."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, tensor in load_file(folder / "model.safetensors").items():
        projection = name.split(".")[-2]
        if projection in heads:
            halves = tensor.reshape(heads[projection], 2, -1, tensor.shape[1])
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def main() -> None:
    link = Link()
    import llama_cpp as cpp

    from benchmarks.figures import versions

    given = settings()
    cpp.llama_backend_init()
    path = write_gguf(Path(given["folder"]))
    model = cpp.llama_model_load_from_file(str(path).encode(), cpp.llama_model_default_params())
    assert model is not None, f"llama.cpp cannot read {path}"

    def make_context(rows: int, length: int, variant: str):
        params = cpp.llama_context_default_params()
        flash, params.kv_unified = VARIANTS[variant]
        params.flash_attn_type = flash
        params.n_ctx, params.n_seq_max = rows * length, rows
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = given["threads"]
        params.type_k = params.type_v = 0  # float32
        context = cpp.llama_init_from_model(model, params)
        assert context is not None, variant
        return context

    def decode(context, batch, tokens: Iterable[tuple[int, int, int, bool]]) -> None:
        """Runs (token, position, row, wanted) entries."""
        count = 0
        for token, position, row, wanted in tokens:
            batch.token[count], batch.pos[count], batch.logits[count] = token, position, wanted
            batch.n_seq_id[count], batch.seq_id[count][0] = 1, row
            count += 1
        batch.n_tokens = count
        assert cpp.llama_decode(context, batch) == 0, "llama_decode failed"

    def generate(prompts: list[list[int]], new: int, variant: str, choose: Callable[[], Any]) -> list[list[int]]:
        rows, width = len(prompts), len(prompts[0])
        context = make_context(rows, width + new, variant)
        batch = cpp.llama_batch_init(512, 0, 1)
        samplers = [choose() for _ in prompts]
        out: list[list[int]] = [[] for _ in prompts]
        together = max(1, 512 // width)
        for first in range(0, rows, together):
            part = range(first, min(rows, first + together))
            decode(context, batch, ((t, i, row, i == width - 1) for row in part for i, t in enumerate(prompts[row])))
            for place, row in enumerate(part):
                out[row].append(cpp.llama_sampler_sample(samplers[row], context, (place + 1) * width - 1))
        for step in range(1, new):
            decode(context, batch, ((out[row][-1], width + step - 1, row, True) for row in range(rows)))
            for row in range(rows):
                out[row].append(cpp.llama_sampler_sample(samplers[row], context, row))
        for sampler in samplers:
            cpp.llama_sampler_free(sampler)
        cpp.llama_batch_free(batch)
        cpp.llama_free(context)
        return out

    def greedy(prompts: list[list[int]], new: int) -> dict[str, Any]:
        return {"tokens": generate(prompts, new, "plain attention", cpp.llama_sampler_init_greedy)}

    def run(prompts, new_tokens, rows, seed, variant) -> dict[str, Any]:
        seeds = iter(range(seed * rows, (seed + 1) * rows))
        spent, out = timed(
            lambda: generate(prompts, max(new_tokens), variant, lambda: cpp.llama_sampler_init_dist(next(seeds)))
        )
        return {**spent, "tokens": sum(map(len, out))}

    def tune(prompts, new_tokens, rows) -> dict[str, Any]:
        work = {"prompts": prompts, "new_tokens": new_tokens, "rows": rows}
        seconds = {name: min(run(**work, seed=i, variant=name)["seconds"] for i in range(2)) for name in VARIANTS}
        return {"best": min(seconds, key=lambda name: seconds[name]), "seconds": seconds, "failed": {}}

    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    found = versions("llama-cpp-python", "gguf")
    link.serve({"hello": lambda: found, "greedy": greedy, "tune": tune, "run": run})


if __name__ == "__main__":
    main()
