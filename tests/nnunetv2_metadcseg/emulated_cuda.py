"""CUDA's rules without a GPU: tensors that say they lie on cuda:0, computed on the CPU.

Not speed, memory or CUDA's kernels, but what goes wrong first: such a tensor meets none on the CPU (but numbers, and
indices into it), does not become an array, and autocast computes in float16, so that nnU-Net's gradient scaler has work
to do. `waits` counts what makes the host wait for the device. PyTorch's C++ code still sees CPU tensors: functions that
make tensors there are named in `emulated_cuda`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import arg_tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
JOINING = {aten.cat.default, aten.stack.default}  # do not even take numbers on the CPU
COPYING = {aten._to_copy.default, aten.copy_.default, aten._has_compatible_shallow_copy_type.default}
WAITING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default}
waits: Counter[str] = Counter()


class EmulatedTensor(torch.Tensor):
    """Says it lies on cuda:0; `value` is the tensor on the CPU that it stands for."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @staticmethod
    def __new__(cls, value: torch.Tensor):
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            value.size(),
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            layout=value.layout,
        )
        self.value = value
        return self

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})

    def __repr__(self) -> str:
        return f"EmulatedTensor({self.value})"

    def __deepcopy__(self, memo: dict):
        copy = EmulatedTensor(self.detach().value.clone())
        parameter = isinstance(self, torch.nn.Parameter)
        copy = torch.nn.Parameter(copy, self.requires_grad) if parameter else copy.requires_grad_(self.requires_grad)
        memo[id(self)] = copy
        return copy

    def cpu(self) -> torch.Tensor:
        waits["cpu"] += 1
        return ToCPU.apply(self)

    def to(self, *args, copy: bool = False, **kwargs) -> torch.Tensor:
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        out = self if dtype in (None, self.dtype) else super().to(dtype)
        out = out if memory_format is None else out.contiguous(memory_format=memory_format)
        if device is not None and device.type == "cpu":
            return out.cpu()
        return out.clone() if copy and out is self else out

    def new_tensor(self, data, **kwargs) -> torch.Tensor:
        return torch.tensor(data, **({"dtype": self.dtype, "device": CUDA} | kwargs))

    def tolist(self) -> list:
        return self.cpu().tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy


class ToCPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: EmulatedTensor) -> torch.Tensor:
        return tensor.value.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return EmulatedTensor(gradient)


class EveryFunction(TorchDispatchMode):
    """For functions that make tensors on a device, or copy them there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


def on_cuda(device) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def run(function, args: tuple, kwargs: dict):
    """Computes on the values, after looking whether CUDA would."""
    tensors = [x for x in arg_tree_leaves(*args, **kwargs) if isinstance(x, torch.Tensor)]
    emulated = [x for x in tensors if isinstance(x, EmulatedTensor)]
    if emulated and function not in COPYING:
        check(function, args, tensors)
    if function is aten.copy_.default:
        there = isinstance(args[0], EmulatedTensor)
    else:
        there = bool(emulated) or on_cuda(kwargs.get("device"))
    if there and "device" in kwargs:
        kwargs = kwargs | {"device": torch.device("cpu")}
    inner = tree_map(lambda x: x.value if isinstance(x, EmulatedTensor) else x, (args, kwargs))
    out = function(*inner[0], **inner[1])
    out = tree_map(lambda x: EmulatedTensor(x) if there and isinstance(x, torch.Tensor) else x, out)
    return return_and_correct_aliasing(function, args, kwargs, out) if emulated else out


def check(function, args: tuple, tensors: list[torch.Tensor]) -> None:
    """Raises as CUDA does where tensors of both devices meet; counts what the host waits for."""
    indexed = function in INDEXING
    elsewhere = [x for x in tensors if not isinstance(x, EmulatedTensor)]
    if indexed and not isinstance(args[0], EmulatedTensor):
        raise RuntimeError(f"{function}: indices on cuda:0 into a tensor on cpu")
    if not indexed and any(x.dim() > 0 or function in JOINING for x in elsewhere):
        raise RuntimeError(f"{function}: expected all tensors to be on the same device, found cuda:0 and cpu")
    masked = indexed and any(x is not None and x.dtype == torch.bool for x in args[1])
    if masked or function in WAITING:
        waits["mask as index" if masked else str(function)] += 1


def on_values(function):
    """For functions whose C++ code makes tensors on the device that it sees."""

    def wrapped(x: torch.Tensor, *args, **kwargs):
        known = isinstance(x, EmulatedTensor)
        return EmulatedTensor(function(x.value, *args, **kwargs)) if known else function(x, *args, **kwargs)

    return wrapped


def tensor_on(make):
    """`torch.tensor` for the emulated device."""

    def wrapped(data, *, device=None, **kwargs):
        return make(data, **kwargs).to(CUDA) if on_cuda(device) else make(data, device=device, **kwargs)

    return wrapped


def half_on_cpu(init):
    """Autocast for CUDA becomes autocast to float16 on the CPU."""

    def wrapped(self, device_type, dtype=None, *args, **kwargs):
        cuda = device_type == "cuda"
        init(self, "cpu" if cuda else device_type, torch.float16 if cuda else dtype, *args, **kwargs)

    return wrapped


@contextlib.contextmanager
def emulated_cuda() -> Iterator[None]:
    """Device cuda:0 is there, emulated."""
    autocast_enabled = torch.is_autocast_enabled
    replaced = {
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.get_device_name": lambda *args: "emulated",
        "torch.cuda.empty_cache": lambda: None,
        "torch.cuda.synchronize": lambda *args: None,
        "torch.backends.cudnn.version": lambda: None,
        "torch.optim.Optimizer._accelerator_graph_capture_health_check": lambda self: None,
        "torch.autocast.__init__": half_on_cpu(torch.autocast.__init__),
        "torch.is_autocast_enabled": lambda kind="cuda": autocast_enabled("cpu" if kind == "cuda" else kind),
        "torch.tensor": tensor_on(torch.tensor),
        "torch.nanquantile": on_values(torch.nanquantile),
    }
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for name, replacement in replaced.items():
            stack.enter_context(mock.patch(name, replacement))
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # Module.to would keep the CPU's parameters
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        stack.enter_context(EveryFunction())
        waits.clear()
        yield
