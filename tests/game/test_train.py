"""train.py as it ships: the model is causal, the kernels agree with a reference, the optimizer does what it says."""

import ast
import dataclasses
import math
import os
import subprocess
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

import train
from autoresearch.agents.sweep import steps
from autoresearch.constants import constants, literal, with_texts
from autoresearch.task import OWN_GAME

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def reference_attention(q, k, v, window: int):
    """Softmax over the visible keys, written out in float64."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT / math.sqrt(q.size(-1))
    position = torch.arange(q.size(2), device=q.device)
    distance = position[:, None] - position
    scores = scores.masked_fill((distance < 0) | (distance > window), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("attention", [train.masked_attention, train.product_attention])
@pytest.mark.parametrize("window", [0, 1, 7, 63, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_agrees_with_the_reference(attention, window, dtype):
    torch.manual_seed(window)
    q, k, v = (torch.randn(2, 64, 3, 16).to(dtype).requires_grad_() for _ in "qkv")
    out, expected = attention(window)(q, k, v), reference_attention(q, k, v, window)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    assert (out - expected).norm() / expected.norm() < tolerance
    weights = torch.randn_like(expected)
    for got, wanted in zip(
        torch.autograd.grad((out * weights).sum(), (q, k, v)),
        torch.autograd.grad((expected * weights).sum(), (q, k, v)),
        strict=True,
    ):
        assert (got - wanted).norm() <= tolerance * max(wanted.norm(), 1.0)


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("attention", [train.masked_attention, train.flex_attention, train.varlen_attention])
@pytest.mark.parametrize("window", [128, 256, 512])
def test_attention_on_a_gpu_agrees_with_the_reference(attention, window, monkeypatch):
    monkeypatch.setattr(train, "MAX_SEQ_LEN", 512)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 512, 2, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in "qkv")
    out, expected = torch.compile(attention(window))(q, k, v), reference_attention(q, k, v, window)
    assert (out - expected).norm() / expected.norm() < 1e-2
    out.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


@pytest.mark.parametrize("window", [5, 64])
@pytest.mark.slow
def test_flex_attention_agrees_with_the_reference(window):
    """Its eager form, which runs on a CPU too."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 64, 3, 16, device=train.DEVICE) for _ in "qkv")
    expected = reference_attention(q, k, v, window)
    assert (train.flex_attention(window)(q, k, v) - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("length", [1, 20])
def test_attention_of_a_shorter_row(length):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, length, 3, 16, device=train.DEVICE) for _ in "qkv")
    for attention in (train.masked_attention, train.product_attention, train.flex_attention):
        for window in (5, 64):
            expected = reference_attention(q, k, v, window)
            assert (attention(window)(q, k, v) - expected).norm() / expected.norm() < 1e-5, attention.__name__


def test_cudnn_attention_agrees_with_the_reference():
    """The backend that the device does have: here it is another one."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 64, 3, 16, device=train.DEVICE) for _ in "qkv")
    expected = reference_attention(q, k, v, 64)
    assert (train.cudnn_attention(64)(q, k, v) - expected).norm() / expected.norm() < 1e-5


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """train.py as it chooses on an H100, while kernels that need one fail, as kernels do."""
    monkeypatch.setattr(train, "GPU", True)
    monkeypatch.setattr(train, "COMPILE", {"backend": "eager"})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    train.compiled.cache_clear()
    train.choose_attention.cache_clear()
    yield
    train.compiled.cache_clear()
    train.choose_attention.cache_clear()


def test_a_kernel_that_does_not_run_is_passed_over(as_on_a_gpu, capsys):
    assert train.choose_attention(32) is not train.varlen_attention
    assert "varlen_attention does not run here" in capsys.readouterr().out


def test_a_kernel_that_is_wrong_is_passed_over(as_on_a_gpu, monkeypatch, capsys):
    """Plain causal attention in the place of a windowed one: a known bug elsewhere."""
    wrong = lambda window: train.masked_attention(train.MAX_SEQ_LEN)  # noqa: E731
    wrong.__name__ = "varlen_attention"
    monkeypatch.setattr(train, "varlen_attention", wrong)
    monkeypatch.setattr(train, "flex_attention", train.masked_attention)
    assert train.choose_attention(32) is train.masked_attention
    assert "varlen_attention is wrong here" in capsys.readouterr().out


def test_a_kernel_with_wrong_gradients_is_passed_over(as_on_a_gpu, monkeypatch, capsys):
    """What it gives is right; its keys get no gradient from what they should."""

    def varlen_attention(window):
        masked = train.masked_attention(window)
        return lambda q, k, v: masked(q, k.detach(), v) + 0 * k

    monkeypatch.setattr(train, "varlen_attention", varlen_attention)
    monkeypatch.setattr(train, "flex_attention", train.masked_attention)
    assert train.choose_attention(32) is train.masked_attention
    assert "varlen_attention is wrong here, by 1.000" in capsys.readouterr().out


def test_a_fused_kernel_is_not_compared_with_itself(as_on_a_gpu, monkeypatch, capsys):
    """What PyTorch takes by itself may be the kernel that is checked. Both are wrong here, and plain products right."""
    right = F.scaled_dot_product_attention

    def fused(*inputs, **options):
        return right(*inputs, **options) * (1.5 if torch.backends.cuda.flash_sdp_enabled() else 1.0)

    monkeypatch.setattr(F, "scaled_dot_product_attention", fused)
    monkeypatch.setattr(train, "varlen_attention", train.product_attention)
    assert train.choose_attention(train.MAX_SEQ_LEN) is train.product_attention
    assert "cudnn_attention is wrong here, by 0.5" in capsys.readouterr().out


def test_a_kernel_that_rounds_otherwise_is_taken(as_on_a_gpu, monkeypatch, capsys):
    """bf16 between its products, where the masked kernel keeps float32."""
    monkeypatch.setattr(train, "varlen_attention", train.product_attention)
    for window in (8, 32):
        assert train.choose_attention(window) is train.product_attention, capsys.readouterr().out


def test_full_attention_is_cudnn_on_an_h100_alone(as_on_a_gpu, monkeypatch):
    assert train.choose_attention(train.MAX_SEQ_LEN) is train.cudnn_attention
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    train.choose_attention.cache_clear()
    assert train.choose_attention(train.MAX_SEQ_LEN) is train.masked_attention


@pytest.mark.slow
def test_compiled_parts_give_what_the_model_gives(monkeypatch):
    """Whole graphs, one for each kind of block, and the same loss and gradients."""
    monkeypatch.setattr(train, "DEPTH", 9)
    kinds = {(block.window, block.has_value_embedding) for block in train.build_model().blocks}
    monkeypatch.setattr(train, "COMPILE", {"fullgraph": True, "dynamic": False, "backend": "aot_eager"})
    monkeypatch.setattr(train, "compiled", lambda part: torch.compile(part, **train.COMPILE))
    idx = torch.randint(512, (2, 64), device=train.DEVICE)
    results, graphs = [], torch._dynamo.utils.counters["stats"]
    for compiled in (False, True):
        torch.manual_seed(0)
        model, before = train.build_model(), graphs["unique_graphs"]
        if compiled:
            model.compile()
        loss = model.loss(model.hidden(idx), idx.flip(1))
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    assert graphs["unique_graphs"] - before == len(kinds) + 2  # the embedding, and the head with the loss
    for plain, other in zip(*results, strict=True):
        assert torch.allclose(plain, other, atol=1e-5)


FAKE_GPU = """
import contextlib, types
import torch
torch.cuda.is_available = lambda: True
torch.cuda.get_device_capability = lambda *_: (9, 0)
torch.cuda.get_device_name = lambda *_: "NVIDIA H200"
torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(multi_processor_count=132, major=9, minor=0)
torch.cuda.mem_get_info = lambda *_: (139 << 30, 141 << 30)
import train
assert (train.DEPTH, train.WIDTH, train.HEADS, train.BATCH_TOKENS) == (9, 640, 5, 2**18)
assert train.WIDTH == -(-9 * 57 // train.HEAD_DIM) * train.HEAD_DIM  # the published rule: up to whole heads
assert train.choose_micro_batch() == 128
assert 60 < 128 * 2048 * train.token_bytes() / 2**30 < 66  # an H100's peak at 64 rows was 31
torch.cuda.mem_get_info = lambda *_: (78 << 30, 79 << 30)
assert train.choose_micro_batch() == 128
torch.cuda.mem_get_info = lambda *_: (46 << 30, 47 << 30)
assert train.choose_micro_batch() == 64
train.choose_attention = lambda window: train.product_attention if window >= 2048 else train.varlen_attention
train.DEVICE, train.autocast = torch.device("meta"), contextlib.nullcontext
model = train.build_model()
assert [block.window for block in model.blocks] == [256] * 4 + [2048] + [256] * 3 + [2048]
adamw, muon = train.build_optimizers(model)
scale = (640 / 768) ** -0.5
rates = [(group["lr"], *group["betas"], group["weight_decay"]) for group in adamw.param_groups]
assert [(round(lr / scale, 9), *rest) for lr, *rest in rates[:3]] == [
    (0.9, 0.8, 0.95, 0.001), (0.9, 0.8, 0.95, 0.003), (0.005, 0.8, 0.95, 0.01)
]
assert rates[3:] == [
    (0.005, 0.8, 0.95, 0.0), (0.5, 0.96, 0.95, 0.0)
]
assert {tuple(shape): len(state[0]) for shape, state in muon.state.items()} == {
    (640, 640): 9 * 4, (2560, 640): 9, (640, 2560): 9, (5, 32): 5
}
assert [train.muon_momentum(steps) for steps in (0, 200, 1000)] == [0.85, 0.95, 0.95]
with torch.device("meta"):
    idx = torch.zeros(128, 2048, dtype=torch.int64)
logits = model(idx)
assert logits.shape == (128, 2048, 8192) and logits.dtype == torch.float32
model.loss(model.hidden(idx), idx).backward()
assert not [p for p in model.parameters() if p.grad.shape != p.shape]
train.compiled = lambda function: function
train.Muon(model.blocks.parameters()).step(lr=0.1, beta=0.9, weight_decay=0.1)
print(sum(p.numel() for p in model.parameters()), train.flops_per_token(model))
"""


@pytest.mark.slow
def test_a_step_on_a_gpu_that_is_not_there():
    """The published end point in its sizes, rates and windows; model, loss and Muon in full size, as shapes alone."""
    ended = subprocess.run(
        [sys.executable, "-c", FAKE_GPU],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "AUTORESEARCH_PROFILE": "gpu", "AUTORESEARCH_DATA": "sotu"},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    parameters, flops = ended.stdout.split()
    assert 80e6 < int(parameters) < 82e6 and 3.3e8 < float(flops) < 3.5e8


@pytest.mark.parametrize(
    "name, properties, depth, batch",
    [
        ("NVIDIA H100 80GB HBM3", (132, 9, 0), 9, 2**18),
        ("NVIDIA B200", (148, 10, 0), 9, 2**18),
        ("NVIDIA A100-SXM4-80GB", (108, 8, 0), 5, 2**17),
        ("NVIDIA GeForce RTX 4090", (128, 8, 9), 4, 2**16),
        ("NVIDIA GeForce RTX 3090", (82, 8, 6), 2, 2**16),
        ("Some New Card", (20, 13, 0), 2, 2**14),
    ],
)
def test_smaller_gpus_get_less_to_do(name, properties, depth, batch, monkeypatch):
    monkeypatch.setattr(train, "GPU", True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    facts = dict(zip(("multi_processor_count", "major", "minor"), properties, strict=True))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: types.SimpleNamespace(**facts))
    assert train.fitted(9, 2**18) == (depth, batch)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = train.build_model()
    with torch.no_grad():
        for parameter in model.parameters():  # the outputs of a new block are zero: nothing would be seen
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def test_a_new_model_knows_nothing():
    torch.manual_seed(0)
    idx = torch.randint(512, (4, 64), device=train.DEVICE)
    loss = F.cross_entropy(train.build_model()(idx).flatten(0, 1), idx.flatten())
    assert loss.item() == pytest.approx(math.log(512), abs=0.05)


def test_logits_have_shape_and_dtype(model):
    logits = model(torch.zeros(2, 64, dtype=torch.int64, device=train.DEVICE))
    assert logits.shape == (2, 64, 512) and logits.dtype == torch.float32


@pytest.mark.parametrize("cut", [1, 17, 63])
def test_the_future_changes_nothing(model, cut):
    idx = torch.randint(512, (3, 64), device=train.DEVICE)
    other = idx.clone()
    other[:, cut:] = (idx[:, cut:] + 1) % 512
    with torch.no_grad():
        one, two = model(idx), model(other)
    assert torch.equal(one[:, :cut], two[:, :cut])
    assert not torch.equal(one[:, cut:], two[:, cut:])


def test_every_layer_sees_the_past_that_it_should(model):
    """The last token's logits depend on the first token: the last block sees everything."""
    idx = torch.randint(512, (1, 64), device=train.DEVICE)
    other = idx.clone()
    other[0, 0] = (idx[0, 0] + 1) % 512
    with torch.no_grad():
        assert not torch.equal(model(idx)[0, -1], model(other)[0, -1])
    assert model.blocks[-1].window >= 64 > 0 and model.blocks[0].window == train.SHORT_WINDOW


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 64, 256), (2, 256, 64)])
def test_polar_express_makes_singular_values_one(shape, monkeypatch):
    monkeypatch.setattr(train, "BF16", False)
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.linalg.svdvals(train.orthogonalize(u * torch.linspace(0.1, 1.0, 64) @ v))
    assert values.min() > 0.7 and values.max() < 1.3


def test_rotation_after_the_norm_is_rotation_before_it():
    torch.manual_seed(0)
    x, angles = torch.randn(2, 7, 3, 16), torch.randn(7, 1, 8)
    before, after = (
        train.norm(train.rotate(x, angles.cos(), angles.sin())),
        train.rotate(train.norm(x), angles.cos(), angles.sin()),
    )
    assert torch.allclose(before, after, atol=1e-5)


def muon_after(parameters, gradients):
    """The parameters after two steps of Muon on the same gradients."""
    muon = train.Muon(parameters)
    for _ in range(2):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        muon.step(lr=0.1, beta=0.9, weight_decay=0.1)
    return [parameter.detach() for parameter in parameters]


def test_muon_makes_queries_keys_and_values_orthogonal_apart():
    torch.manual_seed(0)
    weights, gradients = torch.randn(2, 3, 16, 24, device=train.DEVICE)
    together = muon_after([torch.nn.Parameter(weights.clone())], [gradients])
    apart = muon_after([torch.nn.Parameter(matrix.clone()) for matrix in weights], gradients)
    assert torch.allclose(together[0], torch.stack(apart), atol=1e-5)
    block = train.build_model().blocks[0]
    assert block.query_key_value.shape == (3, train.WIDTH, train.WIDTH)


@pytest.mark.parametrize("shape, evened", [((16, 64), 0), ((64, 16), 1), ((16, 16), 1)])
def test_muon_evens_out_the_side_that_is_longer(shape, evened):
    """After one step from zero all columns of a wide matrix are of one size, or all rows of a tall one."""
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(shape, device=train.DEVICE))
    parameter.grad = torch.randn(shape, device=train.DEVICE) * torch.linspace(0.1, 1, shape[0])[:, None].to(parameter)
    train.Muon([parameter]).step(lr=0.1, beta=0.9, weight_decay=0.0)
    sizes = [parameter.detach().norm(dim=side) for side in (0, 1)]
    spread = [(size.std() / size.mean()).item() for size in sizes]
    assert spread[evened] < 1e-3 < spread[1 - evened]


def test_muon_descends():
    torch.manual_seed(0)
    target = torch.randn(32, 48)
    parameter = torch.nn.Parameter(torch.zeros(32, 48, device=train.DEVICE))
    muon = train.Muon([parameter])
    distances = []
    for _ in range(60):
        parameter.grad = parameter.detach() - target.to(train.DEVICE)
        distances.append(parameter.grad.norm().item())
        muon.step(lr=0.1, beta=0.9, weight_decay=0.0)
    assert distances[-1] < 0.5 * distances[0]


def steps_of_sizes():
    """Edits of train.py that change one whole number, as the built-in agents do."""
    source = (ROOT / "train.py").read_bytes()
    found = [constant for constant in constants("train.py", source, gpu=False) if type(constant.value) is int]
    assert {"WIDTH", "HEAD_DIM"} < {constant.name for constant in found}
    for constant in found:
        for value in steps(constant.value):
            text = literal(value, constant.text)
            yield pytest.param(
                with_texts({"train.py": source}, [(constant, text)])["train.py"], id=constant.change(value)
            )


@pytest.mark.parametrize("source", list(steps_of_sizes()))
def test_each_size_may_change_alone(source):
    """Half the width, for one, with the same heads: an agent would learn that a narrow model is bad, from a crash."""
    edited = types.ModuleType("edited")
    exec(compile(source, "train.py", "exec"), edited.__dict__)
    model = edited.build_model()
    _, muon = edited.build_optimizers(model)
    ids = torch.zeros(1, 64, dtype=torch.long)
    model.loss(model.hidden(ids), ids).backward()
    muon.step(0.01, 0.9, 0.0)
    assert model(ids).shape == (1, 64, edited.VOCAB_SIZE)


def test_every_parameter_has_one_optimizer():
    model = train.build_model()
    adamw, muon = train.build_optimizers(model)
    owned = [p for group in adamw.param_groups for p in group["params"]] + [
        p for stack in muon.stacks.values() for p in stack
    ]
    assert len(owned) == len({id(p) for p in owned}) == len(list(model.parameters()))


def test_learning_rate_falls_to_its_end():
    rates = [train.learning_rate(i / 100) for i in range(101)]
    assert rates[0] == 1 and rates[-1] == pytest.approx(train.FINAL_LR) and sorted(rates, reverse=True) == rates


def test_momentum_rises_and_weight_decay_falls_straight():
    ramp = train.MUON_RAMP
    assert [train.muon_momentum(steps) for steps in (0, ramp // 2, ramp, 9 * ramp)] == pytest.approx(
        [0.85, 0.9] + [0.95] * 2
    )
    decays = [train.matrix_weight_decay(progress) for progress in (0.0, 0.25, 1.0)]
    assert decays == pytest.approx([train.MATRIX_WEIGHT_DECAY, 0.75 * train.MATRIX_WEIGHT_DECAY, 0.0])


def test_peak_is_known_or_left_open(monkeypatch):
    monkeypatch.setattr(train, "GPU", True)
    for name, peak in [
        ("NVIDIA H100 80GB HBM3", 989.5e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("Some New Card", None),
    ]:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert train.peak_flops() == peak, name


def test_train_py_keeps_its_promise_to_the_scorer():
    """Importing it trained nothing (this module did), and the task's own check passes."""
    any_size = dataclasses.replace(OWN_GAME, largest_literal=100)  # it is compared with a file that is empty
    assert any_size.fault(ROOT, {"train.py": b""}) is None


def test_the_two_files_stand_alone():
    """A person can copy train.py and prepare.py out and still train: only preparing data imports the package."""
    for name in ("train.py", "prepare.py"):
        for statement in ast.parse((ROOT / name).read_text()).body:
            if getattr(statement, "name", "") == "prepared":
                continue
            for node in ast.walk(statement):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module] if isinstance(node, ast.ImportFrom) else []
                assert not [module for module in modules if module.split(".")[0] in ("autoresearch", "loop")]


def test_the_packages_of_the_game_are_no_circle():
    """prepare.py is imported by the referee and knows nothing of it; what makes the data imports neither."""

    def imported(path):
        for statement in ast.parse(path.read_text()).body:  # at the top level: TYPE_CHECKING is an `if`
            if isinstance(statement, ast.Import | ast.ImportFrom):
                yield getattr(statement, "module", None) or statement.names[0].name

    for path in (ROOT / "autoresearch/data").glob("*.py"):
        assert not [name for name in imported(path) if name == "prepare" or name.startswith("autoresearch.referee")]
    assert "referee" not in "".join(imported(ROOT / "prepare.py"))
