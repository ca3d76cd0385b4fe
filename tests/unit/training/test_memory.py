"""What a step takes is predicted without a GPU, and to the byte where bytes can be known."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.nn import functional
from torch.optim import SGD, AdamW, Optimizer
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import checkpoint

from training.errors import TrainingError
from training.fake_device import fake_device
from training.fake_world import fake_world
from training.memory import Kind, Ledger, StepMemory, trace_step, with_ddp_buckets

WIDTH, LAYERS, ROWS = 256, 4, 2048
WEIGHT, BIAS = WIDTH * WIDTH * 4, WIDTH * 4
ACTIVATION = ROWS * WIDTH * 4


def stack(layers: int = LAYERS) -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))


def adamw(model: nn.Module) -> Optimizer:
    return AdamW([p for p in model.parameters() if p.requires_grad], fused=True)


def rows(count: int = ROWS, *, dtype: torch.dtype | None = None, device: str = "cuda") -> Callable[[nn.Module], None]:
    def step(model: nn.Module) -> None:
        with torch.autocast(device, dtype, enabled=dtype is not None):
            output = model(torch.zeros(count, WIDTH, device=device))
        output.backward(torch.zeros_like(output))  # no loss, whose temporary tensors are another matter

    return step


class Attention(nn.Module):
    """Self-attention over 1024 tokens, whose matrix would take 1024 x 1024 values per head."""

    HEADS, TOKENS = 8, 1024
    MATRIX = HEADS * TOKENS * TOKENS

    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.project = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        shape = (1, self.TOKENS, self.HEADS, WIDTH // self.HEADS)
        query, key, value = (part.view(shape).transpose(1, 2) for part in self.project(tokens).chunk(3, dim=-1))
        mask = torch.ones(1, 1, self.TOKENS, self.TOKENS, dtype=torch.bool) if self.masked else None
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=0.1)


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(stack(), nn.Dropout(0.1)) for _ in range(LAYERS))
        self.reentrant = reentrant

    def forward(self, value: Tensor) -> Tensor:
        value = value.requires_grad_()
        for layer in self.layers:
            value = checkpoint(layer, value, use_reentrant=self.reentrant)
        return value


# What is counted exactly


def test_parameters_gradients_and_optimizer_state_are_exact() -> None:
    step = trace_step(stack, adamw, rows())
    parameters = LAYERS * (WEIGHT + BIAS)
    assert step.parameters_bytes == step.gradients_bytes == parameters
    assert step.optimizer_bytes == 2 * parameters + 2 * LAYERS * 512  # a step counter each, in the smallest block


def test_state_that_a_first_step_makes_is_no_activation_of_the_second() -> None:
    step = trace_step(stack, adamw, rows(1))
    assert step.activations_bytes < step.optimizer_bytes / 2


def test_an_optimizer_without_state_has_none() -> None:
    step = trace_step(stack, lambda model: SGD(model.parameters(), lr=1.0), rows())
    assert step.optimizer_bytes == 0


def test_the_activations_of_a_stack_are_exact() -> None:
    step = trace_step(stack, adamw, rows())
    forward = (1 + LAYERS) * ACTIVATION  # the batch and every output
    last_layer = 2 * ACTIVATION + WEIGHT + BIAS  # the gradients of its output, input, weight and bias
    assert step.activations_alone_bytes == forward + last_layer


def test_the_parts_add_up_to_the_peak() -> None:
    step = trace_step(stack, adamw, rows())
    held = step.parameters_bytes + step.gradients_bytes + step.optimizer_bytes
    assert step.peak_bytes == held + step.activations_bytes + step.workspace_bytes
    assert 0 < step.activations_bytes <= step.activations_alone_bytes


def test_the_ledger_knows_when_memory_is_taken_and_given_back() -> None:
    with fake_device("cuda"), Ledger("cuda") as ledger:
        first = torch.empty(1000)  # 4000 bytes in blocks of 512
        view = first[10:]
        second = first * 2
        assert ledger.bytes[Kind.ACTIVATION] == 2 * 4096
        del first
        assert ledger.bytes[Kind.ACTIVATION] == 2 * 4096  # the view still needs it
        del view
        assert ledger.bytes[Kind.ACTIVATION] == 4096
        second += 1
        second.untyped_storage().resize_(0)
        assert ledger.bytes[Kind.ACTIVATION] == 0
        assert ledger.peak_bytes == 2 * 4096


def test_memory_of_the_host_is_not_the_device_s() -> None:
    with fake_device("cuda"), Ledger("cuda") as ledger:
        on_host = torch.empty(1000, device="cpu")
        assert ledger.bytes.total() == 0
        on_device = on_host.to("cuda")
        assert ledger.bytes.total() == 4096
        assert on_device.to("cuda").untyped_storage()._cdata == on_device.untyped_storage()._cdata


# What follows from the kernels of a GPU


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_attention_never_makes_its_matrix(masked: bool, dtype: torch.dtype | None) -> None:
    def step(model: nn.Module) -> None:
        with torch.autocast("cuda", dtype, enabled=dtype is not None):
            loss = model(torch.zeros(1, Attention.TOKENS, WIDTH)).sum()
        loss.backward()

    memory = trace_step(lambda: Attention(masked=masked), adamw, step)
    assert memory.activations_alone_bytes < Attention.MATRIX * (2 if dtype else 4)


def test_dropout_keeps_a_byte_per_element() -> None:
    class Dropout(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(ROWS, WIDTH))

        def forward(self, value: Tensor) -> Tensor:
            return functional.dropout(value + self.shift, 0.1, self.training)

    with fake_device("cuda"), Ledger("cuda") as ledger:
        model = Dropout()
        ledger.assign(Kind.PARAMETER, model.parameters())
        output = model(torch.zeros(ROWS, WIDTH))
        assert ledger.bytes[Kind.ACTIVATION] == ACTIVATION + ACTIVATION // 4
        del output


def test_a_layer_adds_its_bias_within_the_product() -> None:
    with fake_device("cuda"), Ledger("cuda") as ledger:
        layer = nn.Linear(WIDTH, WIDTH)
        ledger.assign(Kind.PARAMETER, layer.parameters())
        output = layer(torch.zeros(2, ROWS // 2, WIDTH))
        assert ledger.peak_activations_bytes == 2 * ACTIVATION
        del output


def test_autocast_keeps_its_copies_of_the_weights() -> None:
    step = trace_step(stack, adamw, rows(1, dtype=torch.bfloat16))
    assert step.activations_alone_bytes >= LAYERS * WEIGHT // 2


def test_bfloat16_takes_less() -> None:
    single, half = (trace_step(lambda: stack(16), adamw, rows(dtype=dtype)) for dtype in (None, torch.bfloat16))
    assert half.activations_alone_bytes < 0.75 * single.activations_alone_bytes
    assert half.parameters_bytes == single.parameters_bytes


def test_twice_the_batch_is_twice_the_activations() -> None:
    once, twice = (trace_step(stack, adamw, rows(n)).activations_alone_bytes for n in (ROWS, 2 * ROWS))
    assert twice == pytest.approx(2 * once, rel=0.05)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_checkpointing_takes_less(reentrant: bool, dtype: torch.dtype | None) -> None:
    class Kept(Checkpointed):
        def forward(self, value: Tensor) -> Tensor:
            return nn.Sequential(*self.layers)(value)

    kept = trace_step(lambda: Kept(reentrant=False), adamw, rows(dtype=dtype))
    less = trace_step(lambda: Checkpointed(reentrant=reentrant), adamw, rows(dtype=dtype))
    assert less.activations_alone_bytes < kept.activations_alone_bytes
    assert less.gradients_bytes == kept.gradients_bytes


def test_frozen_weights_have_neither_gradient_nor_state() -> None:
    def with_adapter() -> nn.Module:
        model = stack().requires_grad_(False)
        return nn.Sequential(model, nn.Linear(WIDTH, 8, bias=False))

    step = trace_step(with_adapter, adamw, rows())
    assert step.parameters_bytes == LAYERS * (WEIGHT + BIAS) + WIDTH * 8 * 4
    assert step.gradients_bytes == WIDTH * 8 * 4
    assert step.optimizer_bytes == 2 * WIDTH * 8 * 4 + 512


def test_a_second_micro_batch_meets_the_gradients_of_the_first() -> None:
    def twice(model: nn.Module) -> None:
        rows()(model)
        rows()(model)

    once, accumulated = trace_step(stack, adamw, rows()), trace_step(stack, adamw, twice)
    assert accumulated.gradients_bytes == once.gradients_bytes
    assert accumulated.peak_bytes > once.peak_bytes
    assert accumulated.activations_alone_bytes == once.activations_alone_bytes


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_transformers_and_peft_build_without_data() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}

    def build(*, adapted: bool) -> nn.Module:
        network = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", vocab_size=100, **sizes))
        return get_peft_model(network, LoraConfig(r=4, target_modules="all-linear")) if adapted else network

    def step(model: nn.Module) -> None:
        tokens = torch.zeros(8, 32, dtype=torch.long, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens[:, 0]).loss
        loss.backward()

    full, lora = (trace_step(lambda on=on: build(adapted=on), adamw, step) for on in (False, True))  # type: ignore[misc]
    assert lora.gradients_bytes < full.gradients_bytes / 3
    assert lora.optimizer_bytes < full.optimizer_bytes / 3
    assert lora.parameters_bytes > full.parameters_bytes


# Many ranks


def sharded(world_size: int, offload: OffloadPolicy | None = None) -> StepMemory:
    def build() -> nn.Module:
        mesh = init_device_mesh("cuda", (world_size,))
        model = stack().to("cuda")
        for layer in model:
            fully_shard(layer, mesh=mesh, offload_policy=offload or OffloadPolicy())
        return fully_shard(model, mesh=mesh, offload_policy=offload or OffloadPolicy())

    with fake_world(world_size):
        return trace_step(build, adamw, rows())


def test_a_rank_of_fsdp_holds_its_share() -> None:
    share = LAYERS * (WEIGHT + BIAS) // 2
    step = sharded(2)
    assert step.parameters_bytes == step.gradients_bytes == share
    assert step.optimizer_bytes == 2 * share + 2 * LAYERS * 512
    assert step.activations_alone_bytes > trace_step(stack, adamw, rows()).activations_alone_bytes  # gathered weights


def test_a_share_of_fsdp_is_padded_to_whole_rows() -> None:
    rows_of_a_share = -(-WIDTH // 3)
    assert sharded(3).gradients_bytes >= LAYERS * rows_of_a_share * WIDTH * 4


def test_offloading_leaves_nothing_on_the_device_but_activations() -> None:
    step = sharded(2, CPUOffloadPolicy())
    assert (step.parameters_bytes, step.gradients_bytes, step.optimizer_bytes) == (0, 0, 0)
    assert step.activations_bytes > LAYERS * ACTIVATION


@pytest.mark.parametrize(("momentum", "states"), [(0.9, 1), (0.0, 0)])
def test_sgd_keeps_a_momentum_per_parameter_or_nothing(momentum: float, states: int) -> None:
    def sgd(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, fused=True)

    step = trace_step(stack, sgd, rows())
    assert step.optimizer_bytes == states * step.parameters_bytes


def test_a_copied_layer_has_parameters_of_its_own() -> None:
    """As peft copies a head that it trains whole; copying the storage of a tensor without data corrupts memory."""
    with fake_device("cuda"):
        layer = nn.Linear(WIDTH, WIDTH)
        copied = copy.deepcopy(layer)
        assert isinstance(copied.weight, nn.Parameter)
        assert copied.weight is not layer.weight
        assert (copied.weight.shape, copied.weight.device) == (layer.weight.shape, layer.weight.device)


def test_under_ddp_all_gradients_are_there_when_activations_are_at_their_most() -> None:
    step = trace_step(stack, adamw, rows())
    held = step.parameters_bytes + step.gradients_bytes + step.optimizer_bytes + step.workspace_bytes
    assert with_ddp_buckets(step).peak_bytes == held + step.activations_alone_bytes > step.peak_bytes


def test_a_rank_of_a_real_job_does_not_pretend() -> None:
    with fake_world(2), pytest.raises(TrainingError, match="process of its own"), fake_world(2):
        pass


# What happens to this machine


def test_a_model_larger_than_any_memory_is_no_trouble() -> None:
    def huge() -> nn.Module:
        return nn.Linear(10**6, 10**6, bias=False)

    def step(model: nn.Module) -> None:
        model(torch.zeros(1, 10**6)).sum().backward()

    assert trace_step(huge, adamw, step).peak_bytes >= 16 * 10**12


def test_torch_is_left_as_it_was() -> None:
    with pytest.raises(ZeroDivisionError), fake_device("cuda"):
        torch.zeros(1).sum() / (1 // 0)
    assert torch.zeros(1).device.type == "cpu"
    assert _get_current_dispatch_mode() is None
    assert torch.autograd.is_multithreading_enabled()
    value = torch.ones(4, requires_grad=True)
    functional.linear(value, torch.ones(4, 4)).sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [4.0] * 4


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch knows CUDA of itself")
def test_torch_knows_no_gpu_afterwards() -> None:
    with fake_device("cuda"):
        torch.zeros(1).copy_(torch.ones(1))
    with FakeTensorMode(), pytest.raises(RuntimeError, match="not linked with support for cuda"):
        torch.zeros(1, device="cuda").copy_(torch.ones(1, device="cuda"))


@pytest.mark.parametrize("build", [stack, lambda: Checkpointed(reentrant=False)], ids=["plain", "checkpointed"])
def test_the_prediction_for_a_cpu_is_what_its_allocator_says(build: Callable[[], nn.Module]) -> None:
    take = rows(device="cpu")  # in float32: a CPU's bfloat16 products take scratch memory that no GPU would
    predicted = trace_step(build, adamw, take, device="cpu")
    assert predicted.peak_bytes == pytest.approx(measured_on_cpu(build, take), rel=0.01)


def measured_on_cpu(build: Callable[[], nn.Module], take: Callable[[nn.Module], None]) -> int:
    """The peak of a second step: state, and every allocation and release that torch's profiler saw."""
    model = build().train()
    optimizer = adamw(model)

    def step() -> None:
        take(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    step()
    optimizer.zero_grad()
    gc.collect()
    state = [value for values in optimizer.state.values() for value in values.values()]
    held = sum(tensor.nbytes for tensor in [*model.parameters(), *state])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return held + peak
