"""LoRA training step of Hugging Face transformers + PEFT on the CPU: the peer of `unsloth bench --shape qwen2.5-0.5b`.

Needs torch, transformers and peft. Prints tokens per second of the fastest of four steps, and torch's own 2048-cubed product.
    python3 test/peers/peer_cpu.py [threads ...]
"""

import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config

TOKENS = 512
SHAPE = dict(
    vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
    num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True, use_cache=False,
)


def lora_model(dtype):
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    model = AutoModelForCausalLM.from_config(Qwen2Config(**SHAPE), attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    model.requires_grad_(False)
    adapters = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, adapters).train()


def step_seconds(model):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, SHAPE["vocab_size"], (1, TOKENS))
    times = []
    for _ in range(4):
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return min(times)


def product_gflops(dtype, n=2048, repeats=5):
    a, b = torch.randn(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
    a @ b
    start = time.perf_counter()
    for _ in range(repeats):
        a @ b
    return repeats * 2 * n**3 / (time.perf_counter() - start) / 1e9


for threads in [int(word) for word in sys.argv[1:]] or [2]:
    torch.set_num_threads(threads)
    for dtype in (torch.float32, torch.bfloat16):
        rate = TOKENS / step_seconds(lora_model(dtype))
        print(f"{threads} threads, {dtype}: {rate:.0f} tokens/s, product {product_gflops(dtype):.0f} GFLOP/s", flush=True)
