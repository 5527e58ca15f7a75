_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# mmpretrain's vision transformer as it is, with a pyramid from its last map. All images are squeezed into one square, for a
# grid of tokens is square. No weights are loaded, so that it builds without a download.
side = 512
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext.swap_layers',
        model='mmpretrain.VisionTransformer',
        arch='deit-tiny',
        img_size=side,
        patch_size=16,
        out_type='featmap',
        drop_path_rate=0.1,
        rules=[dict(layer='MultiheadAttention', to=dict(type='mmext.GaussianMixtureAttention', num_extra_tokens=1))],
    ),
    neck=dict(_delete_=True, type='mmext.SimpleFPN', in_channels=192, out_channels=256, scales=(2, 1, 0.5), num_outs=5),
)
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(side, side), keep_ratio=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(side, side), keep_ratio=False),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05))
