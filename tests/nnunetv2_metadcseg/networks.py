"""Small nnU-Net U-Nets for the tests, built by the library that nnU-Net builds them with."""

from __future__ import annotations

from torch import nn


def small_unet(dim: int = 3, heads: int = 2, residual: bool = False, deep_supervision: bool = True) -> nn.Module:
    """Three stages of 4, 8 and 8 features: two outputs with deep supervision."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dim == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    return (ResidualEncoderUNet if residual else PlainConvUNet)(
        1,
        3,
        [4, 8, 8],
        conv,
        3,
        [1, 2, 2],
        1,
        heads,
        1,
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=deep_supervision,
    )
