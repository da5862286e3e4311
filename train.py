"""The agent's side of the game: model, optimizer and training loop of a small language model.

    uv run train.py           # train for the time budget, then print the score

This is the only file that an experiment edits, and everything in it is free, but for two promises
that the scorer needs: importing the file trains nothing, and `build_model()` returns a module with
`model(idx) -> logits`, idx (B, T) integer, logits (B, T, VOCAB_SIZE), position t seeing idx[:, :t+1].
"""

import atexit
import functools
import gc
import math
import re

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from prepare import MAX_SEQ_LEN, PROFILE, SEED, VOCAB_SIZE, TrainBatches, finish, warmup_batch

GPU = torch.cuda.is_available() and PROFILE.name != "cpu"
if PROFILE.name == "gpu" and not GPU:
    raise SystemExit(
        "error: PyTorch finds no GPU here, which the `gpu` profile needs; `uv run loop.py doctor` says more"
    )

# ----------------------------------------------------------------------------------------------
# Hyperparameters. `a if GPU else b`: the value on a GPU, and the one of the small game on a CPU.
# fmt: off

# Model
DEPTH = 9 if GPU else 3                     # blocks; on a GPU slower than an H100 fewer, see `fitted`
WIDTH = 640 if GPU else 64                  # channels of the residual stream: 9 blocks x 57, up to whole heads [1]
HEAD_DIM = 128 if GPU else 64               # channels a head
WINDOW_PATTERN = "SSSSL" if GPU else "SSL"  # of each block, repeated: S short window, L all; the last is L [1]
SHORT_WINDOW = 256 if GPU else 32           # tokens back that an S block sees [1]
MLP_RATIO = 4                               # hidden channels of the MLP in units of WIDTH
ROTARY_BASE = 200_000 if GPU else 40_000    # longest wavelength of the rotary embedding [1]
QK_SCALE = 1.0 if GPU else 1.15             # queries and keys are multiplied by this after their norm [2]
LOGIT_CAP = 15.0 if GPU else 0.0            # logits stay within +-LOGIT_CAP, softly; 0 is no cap
INIT_SCALE = 0.68                           # of the matrices, in units of sqrt(3 / WIDTH) [1]
X0_INIT = 0.05                              # share of the embedding that each block gets again [1]

# Optimizer
BATCH_TOKENS = 2**18 if GPU else 2**11      # tokens a step; on a GPU slower than an H100 fewer, see `fitted` [1]
EMBEDDING_LR = 0.9 if GPU else 0.3          # AdamW, token embedding; above 0.8 only with its weight decay [1]
VALUE_EMBEDDING_LR = 0.9 if GPU else 0.3    # AdamW, value embeddings [1]
UNEMBEDDING_LR = 0.005                      # AdamW, output head [1]
SCALAR_LR = 0.5 if GPU else 0.1             # AdamW, per-block scalars
MATRIX_LR = 0.04 if GPU else 0.02           # Muon, all other matrices
EMBEDDING_WEIGHT_DECAY = 0.001              # AdamW [1]
VALUE_EMBEDDING_WEIGHT_DECAY = 0.003        # AdamW [1]
UNEMBEDDING_WEIGHT_DECAY = 0.01             # AdamW [1]
MATRIX_WEIGHT_DECAY = 0.2                   # Muon, cautious, falls to zero
BETA1 = 0.8                                 # AdamW; 0.96 for the share of the embedding
BETA2 = 0.95                                # AdamW
MUON_MOMENTUM = 0.95                        # reached from 0.85 after MUON_RAMP
MUON_RAMP = 200 if GPU else 32              # optimizer steps [1]
MUON_BETA2 = 0.95                           # of the second moment that evens out Muon's rows or columns
WARMDOWN = 0.75                             # last share of the budget in which learning rates fall [1]
FINAL_LR = 0.05                             # learning rates end at this fraction [1]
# fmt: on

# End of hyperparameters
# ----------------------------------------------------------------------------------------------
# Where the numbers come from. Those of the GPU are the end point of the public night exp/H100/mar8 of
# github.com/karpathy/autoresearch, 0.9979 to 0.9697 on an H100: [1] is what that night changed (pull request 44,
# discussion 43), the rest is where it began. [2]: nanochat took such a scale in later nights, at other sizes; not yet
# measured on a GPU here. Methods name their papers where they stand. Numbers behind `else` were found here, on 2 cores.
# docs/log.md lists what differs from that end point.

# fmt: off
DEVICE = torch.device("cuda" if GPU else "cpu")
HEADS = max(1, WIDTH // HEAD_DIM)           # a head may be wider than the stream
GATE_CHANNELS = min(32, WIDTH)              # channels that a value embedding's gate looks at
POLAR_EXPRESS = (                           # Amsel et al. 2025, arXiv 2505.16932: five odd quintics towards sign(x)
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
PEAK_FLOPS = {                              # dense bf16, from the data sheets; the longest name that fits counts
    "A100": 312e12, "A10": 125e12, "A40": 149.7e12, "A6000": 154.8e12, "L4": 121e12, "L40S": 362e12,
    "H100": 989.5e12, "H100 PCIe": 756e12, "H200": 989.5e12, "B200": 2250e12, "B300": 2250e12,
    "RTX 3090": 71e12, "RTX 4090": 165.2e12, "RTX 5090": 209.5e12, "A4000": 76.7e12, "A5000": 111.1e12,
    "RTX 6000 Ada": 364.2e12, "RTX PRO 6000": 503.8e12, "H100 NVL": 835.5e12, "H20": 148e12, "GB300": 2500e12,
}
MULTIPROCESSOR_FLOPS = {                    # of one multiprocessor: A100, RTX 3090, RTX 4090, H100, B200, RTX 5090
    (8, 0): 2.9e12, (8, 6): 0.87e12, (8, 9): 1.3e12, (9, 0): 7.5e12, (10, 0): 15.2e12, (12, 0): 1.2e12,
}
# fmt: on


def bf16_is_native() -> bool:
    """Whether the device multiplies bf16 in hardware; elsewhere float32 is faster."""
    if GPU:
        if torch.cuda.get_device_capability()[0] < 8:
            raise SystemExit(
                f"error: {torch.cuda.get_device_name()} has no bf16; a GPU of the Ampere generation or later "
                "is needed. AUTORESEARCH_PROFILE=cpu trains on the CPU"
            )
        return True
    return torch.cpu._is_amx_tile_supported()


BF16 = bf16_is_native()


def peak_flops() -> float | None:
    """The device's dense bf16 rate, None where it is not known."""
    words = re.split(r"[^A-Za-z0-9]+", torch.cuda.get_device_name()) if GPU else []
    if {"Laptop", "MIG"} & set(words):  # slower than the card of the same name
        return None
    known = [key for key in PEAK_FLOPS if set(key.split()) <= set(words)]
    return PEAK_FLOPS[max(known, key=len)] if known else None


def fitted(depth: int, batch_tokens: int) -> tuple[int, int]:
    """(Blocks, tokens a step) for this GPU, of what fits an H100.

    With a share s of an H100's arithmetic, nine blocks become fewer with the square root of s, since parameters and
    tokens should grow alike (Hoffmann et al. 2022, arXiv 2203.15556); the batch is halved until it is at most what is
    left, s / sqrt(s), so that steps stay as many or become more. A block more is one more on every GPU, or trials would
    be spent on edits that change nothing. The share is the data sheet's or follows from the multiprocessors: were it
    measured, two trials of one code could differ, and so could training and scoring.
    """
    device = torch.cuda.get_device_properties(0)
    estimate = device.multi_processor_count * MULTIPROCESSOR_FLOPS.get((device.major, device.minor), 1e12)
    share = min(1.0, (peak_flops() or estimate) / PEAK_FLOPS["H100"])
    blocks = max(2, round(9 * share**0.5))
    halvings = math.ceil(-math.log2(share * 9 / blocks))
    return max(1, depth - 9 + blocks), max(2**13, batch_tokens >> halvings)


if GPU:
    DEPTH, BATCH_TOKENS = fitted(DEPTH, BATCH_TOKENS)


# ----------------------------------------------------------------------------------------------
# Attention. Each function takes a window, how many tokens back a token sees (MAX_SEQ_LEN means all), and
# returns a function of q, k, v (B, T, HEADS, HEAD_DIM) to the same shape; masks are made once, outside of
# what is compiled. PyTorch's own kernels only: nothing is downloaded at run time.


def window_mask(window: int) -> torch.Tensor:
    """(MAX_SEQ_LEN, MAX_SEQ_LEN) bool: query i sees key j when 0 <= i - j <= window."""
    position = torch.arange(MAX_SEQ_LEN, device=DEVICE)
    distance = position[:, None] - position
    return (distance >= 0) & (distance <= window)


def masked_attention(window: int):
    """scaled_dot_product_attention; for short windows with an explicit mask. Works everywhere."""
    mask = window_mask(window) if window < MAX_SEQ_LEN else None

    def attend(q, k, v):
        length = q.size(1)
        visible = mask[:length, :length] if mask is not None else None
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None).transpose(1, 2)

    return attend


def product_attention(window: int):
    """Two matrix products: on a CPU with bf16 units twice as fast as the fused kernel, backward included."""
    hidden = torch.zeros(MAX_SEQ_LEN, MAX_SEQ_LEN, device=DEVICE).masked_fill_(~window_mask(window), float("-inf"))

    def attend(q, k, v):
        batch, length, heads, channels = q.shape
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        bias = hidden[:length, :length].to(q.dtype).expand(batch * heads, -1, -1)
        scores = torch.baddbmm(bias, q, k.mT, alpha=channels**-0.5)
        return (scores.softmax(-1) @ v).unflatten(0, (batch, heads)).transpose(1, 2)

    return attend


def cudnn_attention(window: int):
    """scaled_dot_product_attention of all that went before, by cuDNN: the fastest on an H100."""
    assert window >= MAX_SEQ_LEN, "cuDNN is asked for full attention alone"
    masked = masked_attention(window)

    def attend(q, k, v):
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], set_priority=True):
            return masked(q, k, v)

    return attend


def flex_attention(window: int):
    """FlexAttention, which skips the blocks outside the window. Fast only when it is compiled."""
    from torch.nn.attention.flex_attention import create_block_mask  # takes a second, and is seldom needed
    from torch.nn.attention.flex_attention import flex_attention as flex

    kernel = compiled(flex)
    mask = create_block_mask(
        lambda batch, head, query, key: (query >= key) & (query - key <= window),
        None,
        None,
        MAX_SEQ_LEN,
        MAX_SEQ_LEN,
        device=DEVICE,
    )
    masked = masked_attention(window)

    def attend(q, k, v):
        if q.size(1) != MAX_SEQ_LEN:
            return masked(q, k, v)
        return kernel(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=mask).transpose(1, 2)

    return attend


def varlen_attention(window: int):
    """Flash attention with a window, every row a sequence of its own."""
    from torch.nn.attention.varlen import varlen_attn  # of torch 2.11 and later

    def attend(q, k, v):
        batch, length = q.shape[:2]
        ends = torch.arange(0, (batch + 1) * length, length, dtype=torch.int32, device=q.device)
        flat = varlen_attn(*(x.flatten(0, 1) for x in (q, k, v)), ends, ends, length, length, window_size=(window, 0))
        return flat.unflatten(0, (batch, length))

    return attend


@functools.cache
def choose_attention(window: int):
    """The first kernel for a window that runs here and gives what plain products give, its gradients included."""
    if not GPU:
        return product_attention if BF16 else masked_attention
    own = cudnn_attention if torch.cuda.get_device_capability() == (9, 0) else masked_attention
    fastest = (own, varlen_attention) if window >= MAX_SEQ_LEN else (varlen_attention, flex_attention)
    numbers = torch.arange(4 * MAX_SEQ_LEN * 2 * HEAD_DIM, device=DEVICE).mul(0.7).sin()  # not random: no seed is spent
    q, k, v, upstream = numbers.view(4, 1, MAX_SEQ_LEN, 2, HEAD_DIM).bfloat16()
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]

    def results(kernel):
        out = kernel(window)(*inputs)
        return out, *torch.autograd.grad(out, inputs, upstream)

    with sdpa_kernel(SDPBackend.MATH):  # else a fused kernel could be compared with itself
        expected = results(masked_attention)
    for kernel in fastest:
        try:
            pairs = zip(results(kernel), expected, strict=True)
            wrong = torch.stack([(got - wanted).norm() / wanted.norm() for got, wanted in pairs]).max()
            if wrong < 0.02:  # not so for nan
                return kernel
            print(f"{kernel.__name__} is wrong here, by {wrong:.3f}")
        except Exception as error:  # whatever a kernel says that does not run on this device
            print(f"{kernel.__name__} does not run here: {type(error).__name__} {str(error)[:100]!r}")
    return masked_attention


@functools.cache
def attention(window: int):
    """The function that attends; blocks of one window share it, and so what is compiled for it."""
    return choose_attention(window)(window)


# ----------------------------------------------------------------------------------------------
# Model


def norm(x):
    """RMSNorm without weights, over the last dimension."""
    return F.rms_norm(x, (x.size(-1),))


def rotate(x, cos, sin):
    """Rotary position embedding (Su et al. 2021) of x (B, T, heads, HEAD_DIM); cos, sin (T, 1, HEAD_DIM / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


COMPILE = {"fullgraph": True, "dynamic": False}


@functools.cache
def compiled(function):
    """The function, compiled once where that pays."""
    return torch.compile(function, **COMPILE) if GPU else function


def autocast():
    """bf16 matrix products where the device has them."""
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=BF16)


class Block(nn.Module):
    """Attention and MLP, each on the normed residual stream and added back to it."""

    def __init__(self, index: int):
        super().__init__()
        kind = "L" if index == DEPTH - 1 else WINDOW_PATTERN[index % len(WINDOW_PATTERN)]
        self.window = MAX_SEQ_LEN if kind == "L" else SHORT_WINDOW
        self.attend = attention(self.window)
        self.query_key_value = nn.Parameter(torch.empty(3, HEADS * HEAD_DIM, WIDTH))  # three matrices, one product
        self.attention_out = nn.Linear(HEADS * HEAD_DIM, WIDTH, bias=False)
        self.mlp_in = nn.Linear(WIDTH, MLP_RATIO * WIDTH, bias=False)
        self.mlp_out = nn.Linear(MLP_RATIO * WIDTH, WIDTH, bias=False)
        self.has_value_embedding = index % 2 == (DEPTH - 1) % 2  # every other block, the last one included
        if self.has_value_embedding:
            self.value_gate = nn.Linear(GATE_CHANNELS, HEADS, bias=False)

    def forward(self, x, x0, residual_scale, x0_scale, idx, value_table, cos, sin):
        """x, x0: the stream and what it began as, (B, T, WIDTH); value_table (VOCAB_SIZE, HEADS * HEAD_DIM) or None."""
        x = residual_scale * x + x0_scale * x0
        x = x + self.attention(norm(x), idx, value_table, cos, sin)
        return x + self.mlp(norm(x))

    def attention(self, x, idx, value_table, cos, sin):
        batch, length, _ = x.shape
        q, k, v = F.linear(x, self.query_key_value.flatten(0, 1)).view(batch, length, 3, HEADS, HEAD_DIM).unbind(2)
        if value_table is not None:
            gate = 2 * torch.sigmoid(self.value_gate(x[..., :GATE_CHANNELS]))
            v = v + gate[..., None] * F.embedding(idx, value_table).view_as(v).type_as(v)
        q, k = (rotate(QK_SCALE * norm(t), cos, sin).type_as(v) for t in (q, k))  # a rotation keeps the norm
        return self.attention_out(self.attend(q, k, v).reshape(batch, length, -1))

    def mlp(self, x):
        x = F.relu(self.mlp_in(x))
        return self.mlp_out(x * x)  # the same numbers as its square, of which autocast would make float32 on a GPU


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB_SIZE, WIDTH)
        self.blocks = nn.ModuleList(Block(index) for index in range(DEPTH))
        self.value_embeddings = nn.ModuleDict(
            {
                str(index): nn.Embedding(VOCAB_SIZE, HEADS * HEAD_DIM)
                for index, block in enumerate(self.blocks)
                if block.has_value_embedding
            }
        )
        self.unembedding = nn.Linear(WIDTH, VOCAB_SIZE, bias=False)
        self.residual_scale = nn.Parameter(torch.ones(DEPTH))  # of the stream that enters each block
        self.x0_scale = nn.Parameter(torch.full((DEPTH,), X0_INIT))  # of the embedding added to it
        frequencies = ROTARY_BASE ** -torch.arange(0, 1, 2 / HEAD_DIM)
        angles = torch.outer(torch.arange(MAX_SEQ_LEN), frequencies)[:, None, :]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.initialize()

    @torch.no_grad()
    def initialize(self):
        """Uniform matrices, zero outputs of each block (it starts as the identity), a quiet head."""
        bound = INIT_SCALE * math.sqrt(3 / WIDTH)
        nn.init.normal_(self.embedding.weight)
        nn.init.normal_(self.unembedding.weight, std=0.001)
        for table in self.value_embeddings.values():
            nn.init.uniform_(table.weight, -bound, bound)
        for block in self.blocks:
            nn.init.uniform_(block.query_key_value, -bound, bound)
            nn.init.uniform_(block.mlp_in.weight, -bound, bound)
            nn.init.zeros_(block.attention_out.weight)
            nn.init.zeros_(block.mlp_out.weight)
            if block.has_value_embedding:
                nn.init.zeros_(block.value_gate.weight)

    def embed(self, idx):
        x = self.embedding(idx)
        x = x.bfloat16() if BF16 else x
        return norm(x).type_as(x)  # autocast makes float32 of a norm

    def hidden(self, idx):
        """idx (B, T) -> the residual stream after the last block, (B, T, WIDTH)."""
        with autocast():
            cos, sin = self.cos[: idx.size(1)], self.sin[: idx.size(1)]
            x0 = self.embed(idx)
            x = x0.view_as(x0)  # not the same object, which would make the first block a kind of its own
            for index, block in enumerate(self.blocks):
                table = self.value_embeddings[str(index)].weight if block.has_value_embedding else None
                x = block(x, x0, self.residual_scale[index], self.x0_scale[index], idx, table, cos, sin)
        return x

    def logits(self, x):
        """x (B, T, WIDTH) -> (B, T, VOCAB_SIZE) float32."""
        with autocast():
            logits = self.unembedding(norm(x)).float()
        return LOGIT_CAP * torch.tanh(logits / LOGIT_CAP) if LOGIT_CAP else logits

    def loss(self, x, targets):
        return F.cross_entropy(self.logits(x).flatten(0, 1), targets.flatten())

    def forward(self, idx):
        """idx (B, T) -> logits (B, T, VOCAB_SIZE) float32."""
        return self.logits(self.hidden(idx))

    def compile(self):
        """Compile the parts, not the whole: blocks of a kind share what is compiled, so a cold start is shorter."""
        torch._dynamo.config.recompile_limit = 64  # kinds of blocks, at most
        for block in self.blocks:
            block.compile(**COMPILE)
        self.embed, self.loss = compiled(self.embed), compiled(self.loss)


def build_model() -> nn.Module:
    """The model as it starts, on the device it trains on. The scorer calls this and loads the weights."""
    for window in (SHORT_WINDOW, MAX_SEQ_LEN):
        attention(window)  # launches kernels: not under torch.device below
    with torch.device(DEVICE):
        return GPT()


# ----------------------------------------------------------------------------------------------
# Optimizer


def orthogonalize(matrices):
    """The nearest (semi-)orthogonal matrices to a stack (N, rows, columns), by the Polar Express iteration."""
    x = matrices.bfloat16() if BF16 else matrices
    x = x / (1.02 * x.norm(dim=(-2, -1), keepdim=True) + 1e-6)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def muon_update(weights, gradients, momentum, second_moment, lr, beta, weight_decay):
    """One step of Muon for a stack of matrices of one shape, in place; lr, beta, weight_decay are 0-d tensors.

    Nesterov momentum, orthogonalised (Jordan et al. 2024); rows, or columns where those are more, evened out by their
    second moment at an unchanged total norm (NorMuon, Li et al. 2025, arXiv 2510.05491); weight decay only where it
    agrees with the step (Chen et al. 2025, arXiv 2510.12402).
    """
    momentum.lerp_(gradients, 1 - beta)
    update = orthogonalize(gradients.lerp(momentum, beta)).float()
    size = update.norm(dim=(-2, -1), keepdim=True)
    along = -1 if second_moment.size(-1) == 1 else -2
    second_moment.lerp_(update.square().mean(along, keepdim=True), 1 - MUON_BETA2)
    update = update * second_moment.clamp_min(1e-10).rsqrt()
    update = update * (size / update.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-10))
    step = lr * max(1.0, weights.size(-2) / weights.size(-1)) ** 0.5
    agrees = (update * weights >= 0).float()
    weights.sub_(step * (update + weight_decay * agrees * weights))


class Muon:
    """Muon for matrices, which are stacked by shape so that one product serves all of a shape.

    A parameter (N, rows, columns) is N matrices: queries, keys and values are made orthogonal each on its own.
    """

    def __init__(self, parameters):
        self.stacks = {}
        for parameter in parameters:
            self.stacks.setdefault(parameter.shape[-2:], []).append(parameter)
        self.state = {}
        for (rows, columns), stack in self.stacks.items():
            count = sum(p.numel() for p in stack) // (rows * columns)
            second_moment = (count, rows, 1) if rows >= columns else (count, 1, columns)
            self.state[rows, columns] = (
                torch.zeros(count, rows, columns, device=DEVICE),
                torch.zeros(second_moment, device=DEVICE),
            )
        self.scalars = torch.zeros(3, device=DEVICE).unbind()  # filled each step: nothing is copied from the host

    @torch.no_grad()
    def step(self, lr: float, beta: float, weight_decay: float):
        for scalar, value in zip(self.scalars, (lr, beta, weight_decay), strict=True):
            scalar.fill_(value)
        for shape, stack in self.stacks.items():
            matrices = [p.detach().view(-1, *shape) for p in stack]
            weights = torch.cat(matrices)
            gradients = torch.cat([p.grad.view(-1, *shape) for p in stack])
            compiled(muon_update)(weights, gradients, *self.state[shape], *self.scalars)
            torch._foreach_copy_(matrices, weights.split([len(m) for m in matrices]))


def build_optimizers(model: GPT) -> tuple[torch.optim.AdamW, Muon]:
    scale = (WIDTH / 768) ** -0.5  # learning rates were tuned at width 768
    groups = [
        (model.embedding.parameters(), EMBEDDING_LR * scale, BETA1, EMBEDDING_WEIGHT_DECAY),
        (model.value_embeddings.parameters(), VALUE_EMBEDDING_LR * scale, BETA1, VALUE_EMBEDDING_WEIGHT_DECAY),
        (model.unembedding.parameters(), UNEMBEDDING_LR * scale, BETA1, UNEMBEDDING_WEIGHT_DECAY),
        ([model.residual_scale], SCALAR_LR * 0.01, BETA1, 0.0),
        ([model.x0_scale], SCALAR_LR, 0.96, 0.0),
    ]
    adamw = torch.optim.AdamW(
        [
            {"params": list(params), "lr": lr, "base_lr": lr, "betas": (beta1, BETA2), "weight_decay": decay}
            for params, lr, beta1, decay in groups
        ],
        eps=1e-10,
        fused=True,
    )
    return adamw, Muon(model.blocks.parameters())


def learning_rate(progress: float) -> float:
    """Fraction of the full learning rate: constant, then straight down to FINAL_LR."""
    remaining = min(1.0, (1.0 - progress) / WARMDOWN)
    return FINAL_LR + (1.0 - FINAL_LR) * remaining


def muon_momentum(steps: int) -> float:
    """Of the next optimizer step, after so many."""
    return MUON_MOMENTUM - 0.1 * max(0.0, 1.0 - steps / MUON_RAMP)


def matrix_weight_decay(progress: float) -> float:
    """Straight down to zero."""
    return MATRIX_WEIGHT_DECAY * (1.0 - progress)


# ----------------------------------------------------------------------------------------------
# Training


def flops_per_token(model: GPT) -> float:
    """Arithmetic of one token, forward and backward: six a matrix weight, twelve a channel and visible key."""
    matrices = sum(p.numel() for p in (*model.blocks.parameters(), *model.unembedding.parameters()))
    keys = sum(min(block.window, MAX_SEQ_LEN) for block in model.blocks)
    return 6 * matrices + 12 * HEADS * HEAD_DIM * keys


def token_bytes() -> int:
    """Memory that a token takes between forward and backward pass: activations and logits.

    bench/without_gpu.py traces about 1% less, of 2, 4 and 9 blocks. An H100's peak was 10% below this.
    """
    return (39 * DEPTH + 6) * WIDTH + 4 * VOCAB_SIZE


def choose_micro_batch() -> int:
    """Rows a forward pass: the most that fit into free memory, a power-of-two share of the batch."""
    rows = BATCH_TOKENS // MAX_SEQ_LEN
    if GPU:
        row_bytes = MAX_SEQ_LEN * token_bytes()
        while rows > 1 and rows % 2 == 0 and rows * row_bytes > 0.85 * torch.cuda.mem_get_info()[0]:
            rows //= 2
    return rows


def train() -> None:
    torch.manual_seed(SEED)
    model = build_model()
    if GPU:
        model.compile()
    adamw, muon = build_optimizers(model)

    def step(progress: float, steps: int) -> None:
        scale = learning_rate(progress)
        for group in adamw.param_groups:
            group["lr"] = group["base_lr"] * scale
        adamw.step()
        muon.step(MATRIX_LR * scale, muon_momentum(steps), matrix_weight_decay(progress))
        model.zero_grad(set_to_none=True)

    def warm_up(rows: int) -> bool:
        """Compile and run on noise, off the clock. Whether the memory sufficed."""
        try:
            for _ in range(2):
                inputs, targets = warmup_batch(rows, DEVICE)
                model.loss(model.hidden(inputs), targets).backward()
                step(progress=0.0, steps=0)
            return True
        except torch.OutOfMemoryError:
            return False

    initial = {name: value.clone() for name, value in model.state_dict().items()}
    micro_batch = choose_micro_batch()
    if not warm_up(micro_batch):
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        micro_batch = max(1, micro_batch // 2)
        if not warm_up(micro_batch):
            raise SystemExit(
                f"error: the memory of the GPU does not hold {micro_batch} rows; a smaller model would fit"
            )
    model.load_state_dict(initial)
    adamw, muon = build_optimizers(model)
    accumulation = max(1, BATCH_TOKENS // (micro_batch * MAX_SEQ_LEN))
    kernels = ", ".join(
        f"window {window}: {choose_attention(window).__name__}"
        for window in sorted({block.window for block in model.blocks})
    )
    print(
        f"{DEVICE.type}, {'bf16' if BF16 else 'float32'}, {kernels}, {DEPTH} blocks, "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, "
        f"{accumulation} x {micro_batch} rows of {MAX_SEQ_LEN} tokens a step"
    )

    gc.collect()
    gc.freeze()  # no pauses for garbage while the clock runs
    gc.disable()
    atexit.register(gc.unfreeze)  # else libraries complain of leaks at the exit
    atexit.register(gc.enable)
    batches = TrainBatches(micro_batch, DEVICE)
    steps = 0
    for inputs, targets in batches:
        loss = model.loss(model.hidden(inputs), targets)
        (loss / accumulation).backward()
        if batches.batches % accumulation:
            continue
        step(batches.progress, steps)
        steps += 1
        if steps % 50 == 0:
            copied = loss.detach().to("cpu", non_blocking=True)
        if steps > 50 and steps % 50 == 2:  # two batches on, which TrainBatches has waited for: the copy has arrived
            value = copied.item()
            seconds = batches.elapsed
            rate = batches.tokens / seconds
            print(f"step {steps:5d}  loss {value:.4f}  {seconds:5.1f} s  {rate:,.0f} tokens/s", flush=True)
            batches.report(loss=value, step=steps)
            if not math.isfinite(value):
                raise SystemExit("the loss is not a finite number")

    peak = peak_flops()
    used = flops_per_token(model) * batches.tokens / batches.elapsed
    finish(model, batches, num_steps=steps, depth=DEPTH, mfu_percent=peak and 100 * used / peak)


if __name__ == "__main__":
    train()
