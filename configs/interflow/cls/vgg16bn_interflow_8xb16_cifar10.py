_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'

model = dict(
    # VGG-16's 13 convolutions in 4 stages: blocks 1 and 2, block 3, block 4, block 5; each taken after its pooling.
    backbone=dict(_delete_=True, type='VGG', depth=16, norm_cfg=dict(type='BN'), out_indices=(1, 2, 3, 4)),
    neck=None,
    head=dict(type='mmext.InterflowHead', in_channels=(128, 256, 512, 512)),
)
optim_wrapper = dict(optimizer=dict(weight_decay=5e-4))
