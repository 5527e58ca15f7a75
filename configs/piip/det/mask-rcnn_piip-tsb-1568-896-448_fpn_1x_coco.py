_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'

# The authors' budget. The large network sees 448 pixels, the small one 1568. Give each branch an init_cfg with its weights.
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3, pad_size_divisor=224),
    backbone=dict(_delete_=True, type='mmext.PIIP', arch='TSB'),
    neck=dict(in_channels=[768] * 4),
)

scale = dict(scale=(1568, 941))
train_pipeline = [dict(step, **scale) if step['type'] == 'Resize' else step for step in _base_.train_pipeline]
test_pipeline = [dict(step, **scale) if step['type'] == 'Resize' else step for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmext.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.85, norm_decay_mult=0.0, bias_decay_mult=0.0),
)
