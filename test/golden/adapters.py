"""What golden cases of adapters hold beyond `generate.py`: dropout with known masks, weights that NF4 represents exactly, and the starts
of PiSSA and LoftQ."""
import re

import peft
import torch
from peft.utils.loftq_utils import _low_rank_decomposition

SEED, STEP, RATE = 7, 3, 0.25
NF4 = torch.tensor([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
                    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
                    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0])


def philox(counter, key):
    """Philox4x32-10 (Salmon et al., SC'11) on int64 tensors."""
    low = 0xFFFFFFFF
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [((second >> 32) & low) ^ c[1] ^ k[0], second & low, ((first >> 32) & low) ^ c[3] ^ k[1], first & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c


class KeyedDropout(torch.nn.Module):
    """Dropout whose mask is a function of seed, step, sample, position, place and column; see the command `dropout`."""

    def __init__(self, site):
        super().__init__()
        self.site = site

    def forward(self, x):
        rows, width, columns = x.shape
        shape = (rows, width, -(-columns // 4))
        grid = [torch.arange(n).view([-1 if i == at else 1 for i in range(3)]).expand(shape) for at, n in enumerate(shape)]
        words = philox([grid[0], grid[1], torch.full(shape, self.site), grid[2]], [SEED, STEP])
        kept = torch.stack(words, -1).reshape(rows, width, -1)[..., :columns] >= int(RATE * 2 ** 32)
        return x * kept / (1 - RATE)


ORDER = ["q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "o_proj", "attention.dense", "gate_proj", "up_proj", "gate_up_proj",
         "dense_h_to_4h", "down_proj", "dense_4h_to_h"]


def place(name):
    """Where a module stands in the order in which a layer uses them."""
    layer = re.search(r"\.(?:layers|h)\.(\d+)\.", name)
    return int(layer.group(1)) if layer else -1, next((i for i, end in enumerate(ORDER) if name.endswith("." + end)), -1)


def with_dropout(model):
    """The adapters' dropout replaced by one of known masks, in the order of the modules."""
    layers = [module for name, module in sorted(model.named_modules(), key=lambda pair: place(pair[0]))
              if isinstance(module, peft.tuners.lora.layer.Linear)]
    for site, layer in enumerate(layers):
        layer.lora_dropout["default"] = KeyedDropout(site)
    return model.train()


def nf4(weight):
    """The values that NF4 in blocks of 64 stands for, with maxima in fp32."""
    blocks = weight.detach().float().reshape(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    codes = (blocks / largest)[..., None].sub(NF4).abs().argmin(-1)
    return (NF4[codes] * largest).to(torch.bfloat16).reshape(weight.shape)


def to_nf4(p):
    """Weights that NF4 represents as they are: maxima are powers of 2."""
    blocks = p.detach().float().reshape(-1, 64)
    largest = 2.0 ** blocks.abs().amax(1, keepdim=True).log2().round()
    blocks = blocks.clamp(-largest, largest)
    blocks[torch.arange(len(blocks)), blocks.abs().argmax(1)] = largest[:, 0]
    return nf4(blocks).reshape(p.shape)


def starts(model, targets, rank, alpha):
    """scale·B·A that PiSSA begins with, and the B·A of LoftQ, of each adapted matrix."""
    plain = {name: module.weight.detach().clone() for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights="pissa")
    adapted = peft.get_peft_model(model, config)
    found = {}
    for name, module in adapted.base_model.model.named_modules():
        if isinstance(module, peft.tuners.lora.layer.Linear):
            found[f"pissa.{name}"] = module.get_delta_weight("default")
            parts = _low_rank_decomposition(plain[name].float() - nf4(plain[name]).float(), reduced_rank=rank)
            found[f"loftq.{name}"] = parts["L"] @ parts["R"]
    return found
