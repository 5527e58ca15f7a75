# A trained density in every k x k layer, with the released optimizer: its learning rate is a hundred times the kernels'.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

model = dict(backbone=dict(conv_cfg=dict(type='mmext.WeightedConv2d', trainable=True)))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-2),
    paramwise_cfg=dict(custom_keys={'.density': dict(lr_mult=100)}),
)
param_scheduler = dict(_delete_=True, type='CosineAnnealingLR', T_max=100, eta_min=1e-6, by_epoch=True)
