"""Tensor functions compiled into few kernels, where nnU-Net compiles the network.

A step of MetaDCSeg calls hundreds of small tensor functions. On a CPU they cost what they compute; a GPU is done before
the next one is asked for, and waits. Functions that are fused must not change numbers of Python (a number that changes
is compiled anew), only tensors, and must not ask for values of tensors. No decorators on them: torch.compile would
search the versions of all functions that have the same decorator.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch import nn
from torch._dynamo import OptimizedModule
from torch._dynamo.exc import TorchDynamoException

Fuse = Callable[[Callable], Callable]

# How often a function is compiled before torch gives up, silently, and runs it as it is. One version is needed for one
# given-label or trusted patch, one for several, and some for states that are empty at first.
VERSIONS = 32


def unfused(function: Callable) -> Callable:
    """The function as it is."""
    return function


def fused(function: Callable) -> Callable:
    """The function through torch.compile; as it is, with a warning, from when that fails."""
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # its name until torch 2.6
    setattr(config, limit, max(VERSIONS, getattr(config, limit)))
    compiled = torch.compile(function)

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        nonlocal compiled
        try:
            return compiled(*args)
        except TorchDynamoException as error:
            # Training goes on, slower: a compiler that fails on one of our functions has not failed on the network.
            what = str(error).strip().splitlines() or [type(error).__name__]
            text = f"torch.compile failed on {function.__qualname__}, which stays as it is: {what[0]}"
            warnings.warn(text, stacklevel=2)
            compiled = function
            return function(*args)

    return run


def fuse_like(network: nn.Module) -> Fuse:
    """`fused` where nnU-Net has compiled this network, on one GPU: over several, functions sum over the ranks."""
    return fused if isinstance(network, OptimizedModule) else unfused
