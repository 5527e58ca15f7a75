_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'

# The authors' recipe: their rate of 1e-3 is for 512 images. The variant is an argument: T, S, B. B has a weight decay of 0.05.
model = dict(
    backbone=dict(_delete_=True, type='mmext.LSNet', arch='T', out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        _delete_=True,
        type='LeViTClsHead',
        num_classes=1000,
        in_channels=384,
        distillation=False,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
)
train_dataloader = dict(batch_size=256, sampler=dict(type='RepeatAugSampler', shuffle=True))
optim_wrapper = dict(
    type='mmext.AdaptiveClipOptimWrapper',
    clip_factor=0.02,
    optimizer=dict(lr=4e-3, weight_decay=0.025),
    paramwise_cfg=dict(custom_keys={'mixer.biases': dict(decay_mult=0.0)}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=2.5e-4, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5),
]
auto_scale_lr = dict(base_batch_size=2048)
