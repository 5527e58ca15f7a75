_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'

model = dict(
    backbone=dict(out_indices=(1, 2, 3)),
    head=dict(
        type='mmext.DeepSupervisionClsHead',
        head='LinearClsHead',
        companions=[dict(in_index=0, in_channels=128), dict(in_index=1, in_channels=256)],
    ),
)
custom_hooks = [dict(type='mmext.CompanionWeightHook')]
