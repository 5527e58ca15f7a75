# The released recipe: a ResNet-18 with a 3 x 3 stem and no max-pooling, batch 128, 200 epochs, cosine schedule.
_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'

model = dict(backbone=dict(conv_cfg=dict(type='mmext.PHConv2d', n=4)))
optim_wrapper = dict(optimizer=dict(weight_decay=5e-4))
param_scheduler = dict(_delete_=True, type='CosineAnnealingLR', T_max=200, by_epoch=True)
