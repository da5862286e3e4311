"""train.py as it ships: the model is causal, the kernels agree with a reference, the optimizer does what it says."""

import ast
import math

import pytest
import torch
import torch.nn.functional as F

import train
from autoresearch.task import OWN_GAME
from conftest import ROOT

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
    for got, wanted in zip(torch.autograd.grad((out * weights).sum(), (q, k, v)),
                           torch.autograd.grad((expected * weights).sum(), (q, k, v)), strict=True):
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


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = train.build_model()
    with torch.no_grad():
        for parameter in model.parameters():            # the outputs of a new block are zero: nothing would be seen
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
    assert 0.7 < values.min() and values.max() < 1.3


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


def test_every_parameter_has_one_optimizer():
    model = train.build_model()
    adamw, muon = train.build_optimizers(model)
    owned = [p for group in adamw.param_groups for p in group["params"]] + [p for stack in muon.stacks.values() for p in stack]
    assert len(owned) == len({id(p) for p in owned}) == len(list(model.parameters()))


def test_learning_rate_falls_to_its_end():
    rates = [train.learning_rate(i / 100) for i in range(101)]
    assert rates[0] == 1 and rates[-1] == pytest.approx(train.FINAL_LR) and sorted(rates, reverse=True) == rates


def test_peak_is_known_or_left_open(monkeypatch):
    monkeypatch.setattr(train, "GPU", True)
    for name, peak in [("NVIDIA H100 80GB HBM3", 989.5e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-80GB", 312e12),
                       ("NVIDIA GeForce RTX 4090", 165.2e12), ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
                       ("NVIDIA L40S", 362e12), ("NVIDIA L40", None), ("Some New Card", None)]:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert train.peak_flops() == peak, name


def test_train_py_keeps_its_promise_to_the_scorer():
    """Importing it trained nothing (this module did), and the task's own check passes."""
    assert OWN_GAME.fault(ROOT, {"train.py": b""}) is None


def test_the_two_files_stand_alone():
    """A person can copy train.py and prepare.py out and still train."""
    for name in ("train.py", "prepare.py"):
        tree = ast.parse((ROOT / name).read_text())
        modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not [module for module in modules if module.split(".")[0] in ("autoresearch", "loop")]
