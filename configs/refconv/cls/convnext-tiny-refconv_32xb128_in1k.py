# Stage 2 of mmpretrain's convnext-tiny_32xb128_in1k.py: every 7 x 7 depthwise kernel of stage 1 as a frozen basis.
_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ConvNeXt',
        rules=[dict(depthwise=True, to=dict(type='mmext.RefConv2d'))],
    )
)
# Stage 1's checkpoint, e.g. 'work_dirs/convnext-tiny_32xb128_in1k/epoch_300.pth'. With None the basis is random, and stays so.
load_from = None
