# The second stage, after that of resnet.py: twice the budget, as in the paper.
_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(kernel_size=3, to=dict(type='mmext.RefConv2d'))],
    )
)
load_from = 'work_dirs/compare/resnet/seed0/epoch_6.pth'
