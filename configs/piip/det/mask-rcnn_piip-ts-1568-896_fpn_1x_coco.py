_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'

# DeiT-S sees 896 pixels, DeiT-T 1568. Give each an init_cfg with its weights. The authors' smallest detector is this one with
# arch='TSB' in the backbone and in_channels=[768] * 4 in the neck.
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3, pad_size_divisor=224),
    backbone=dict(
        _delete_=True,
        type='mmext.PIIP',
        arch=dict(
            branches=(
                dict(depth=12, embed_dims=384, num_heads=6, drop_path_rate=0.05, window_size=14),
                dict(depth=12, embed_dims=192, num_heads=3, drop_path_rate=0.05, window_size=14),
            ),
            sizes=(896, 1568),
        ),
    ),
    neck=dict(in_channels=[384] * 4),
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
