"""LoRA fine-tuning with transformers and PEFT on one GPU, at the shapes of `unsloth bench`: random weights, bf16, r = 16 on all
linear layers, AdamW. One JSON line a case: real tokens per second and the allocator's peak.

    python test/peers/peer_gpu.py CASE…
    CASE  SHAPE:BATCH:TOKENS[:full][:compile]     rows of one length; full: every layer recomputed
          SHAPE:BATCH:instruction[:full]          rows of the lengths of instruction data, padded to the longest of the batch
"""
import gc
import json
import math
import statistics
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config


def llama(hidden, ffn, layers, heads, tied, head_dim):
    return LlamaConfig(vocab_size=128256, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
                       num_key_value_heads=8, head_dim=head_dim, max_position_embeddings=131072, rms_norm_eps=1e-5, rope_theta=5e5,
                       tie_word_embeddings=tied, use_cache=False)


SHAPES = {
    "llama-3.1-8b": lambda: llama(4096, 14336, 32, 32, False, 128),
    "llama-3.2-1b": lambda: llama(2048, 8192, 16, 32, True, 64),
    "qwen2.5-0.5b": lambda: Qwen2Config(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
                                        num_key_value_heads=2, max_position_embeddings=32768, rms_norm_eps=1e-6, rope_theta=1e6,
                                        tie_word_embeddings=True, use_cache=False),
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WARM, STEPS = 3, 8


def model_of(shape, recompute):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(SHAPES[shape](), attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    model.requires_grad_(False)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM"))
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def lengths(batch, steps):
    """Log-normal, median 118, mean about 150, between 16 and 1024."""
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(steps, batch, generator=generator) * 0.7 + math.log(118)).exp().clamp(16, 1024).long()


def measure(case):
    shape, batch, tokens, *options = case.split(":")
    batch = int(batch)
    model = model_of(shape, "full" in options)
    vocabulary = model.config.vocab_size
    run = torch.compile(model) if "compile" in options else model
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    of_step = lengths(batch, WARM + STEPS) if tokens == "instruction" else torch.full((WARM + STEPS, batch), int(tokens))
    torch.cuda.reset_peak_memory_stats()
    times, real = [], []
    for step in range(WARM + STEPS):
        mine = of_step[step]
        ids = torch.randint(0, vocabulary, (batch, int(mine.max())), device="cuda")
        mask = (torch.arange(ids.shape[1])[None] < mine[:, None]).cuda()
        inputs = {"input_ids": ids, "labels": ids.masked_fill(~mask, -100)}
        if tokens == "instruction":
            inputs["attention_mask"] = mask.long()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        if step >= WARM:
            times.append(time.perf_counter() - begin)
            real.append(int(mine.sum()))
    seconds = sum(times) if tokens == "instruction" else statistics.median(times) * len(times)
    return {"case": case, "tokens_per_second": round(sum(real) / seconds), "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1)}


for name in sys.argv[1:]:
    try:
        print(json.dumps(measure(name)), flush=True)
    except torch.cuda.OutOfMemoryError:
        print(json.dumps({"case": name, "error": "out of memory"}), flush=True)
    gc.collect()
    torch.cuda.empty_cache()
    torch._dynamo.reset()
