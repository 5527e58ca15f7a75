_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# All images are squeezed into the one size that the network is built for. No weights are loaded, so that it builds without
# a download. A classifier's matrices fit another size nowhere but over the channels.
side = 512
model = dict(
    backbone=dict(_delete_=True, type='mmext.XMLP', arch='T', img_size=side, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 512], start_level=0),
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
